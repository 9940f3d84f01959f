package translog

import (
	"context"
	"log/slog"
	"time"

	"github.com/cenkalti/backoff/v5"
)

const (
	minRetryDelay = 100 * time.Millisecond
	maxRetryDelay = 10 * time.Second
)

// attempt retries a task that may fail. After each failure it pauses for a growing time. It must be used by one
// goroutine.
type attempt struct {
	task    string
	log     *slog.Logger
	backoff *backoff.ExponentialBackOff
	err     error     // of the last try
	retryAt time.Time // the end of the pause after it
}

func newAttempt(task string, log *slog.Logger) attempt {
	pauses := backoff.NewExponentialBackOff()
	pauses.InitialInterval, pauses.MaxInterval = minRetryDelay, maxRetryDelay
	return attempt{task: task, log: log, backoff: pauses}
}

// try runs do, or returns the last error if its pause has not ended.
func (a *attempt) try(ctx context.Context, do func(context.Context) error) error {
	if a.err != nil && time.Now().Before(a.retryAt) {
		return a.err
	}
	before := a.err
	a.err = do(ctx)
	switch {
	case a.err == nil && before != nil:
		a.log.Info("a task of the log succeeds again", "task", a.task)
		a.backoff.Reset()
	case a.err != nil && ctx.Err() == nil:
		pause := a.backoff.NextBackOff()
		a.retryAt = time.Now().Add(pause)
		a.log.Warn("a task of the log failed, retrying",
			"task", a.task, "error", a.err, "wait", pause.Round(time.Millisecond))
	}
	return a.err
}
