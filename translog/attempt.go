package translog

import (
	"context"
	"log/slog"
	"time"

	"github.com/cenkalti/backoff/v5"
)

const (
	firstPause   = 100 * time.Millisecond
	longestPause = 10 * time.Second
)

// attempt is something that may fail, and is then left alone for a pause that grows with each failure. It is for one
// goroutine.
type attempt struct {
	what   string
	log    *slog.Logger
	pauses *backoff.ExponentialBackOff
	err    error     // of the last try
	until  time.Time // when the pause after it ends
}

func newAttempt(what string, log *slog.Logger) attempt {
	pauses := backoff.NewExponentialBackOff()
	pauses.InitialInterval, pauses.MaxInterval = firstPause, longestPause
	return attempt{what: what, log: log, pauses: pauses}
}

// try does the thing, or returns the error of the last try while its pause lasts.
func (a *attempt) try(ctx context.Context, do func(context.Context) error) error {
	if a.err != nil && time.Now().Before(a.until) {
		return a.err
	}
	before := a.err
	a.err = do(ctx)
	switch {
	case a.err == nil && before != nil:
		a.log.Info("can " + a.what + " again")
		a.pauses.Reset()
	case a.err != nil && ctx.Err() == nil:
		pause := a.pauses.NextBackOff()
		a.until = time.Now().Add(pause)
		a.log.Warn("cannot "+a.what+" now", "error", a.err, "retry", pause.Round(time.Millisecond))
	}
	return a.err
}
