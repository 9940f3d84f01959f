package ca

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// lostJournal is a journal without a connection to its store until it is back.
type lostJournal struct {
	Journal
	isBack atomic.Bool
}

func (j *lostJournal) Renew(context.Context, Epoch) (bool, error) {
	if j.isBack.Load() {
		return false, nil
	}
	return false, errors.New("no connection")
}

// TestLostLeaseIsLoggedOnceAMinute has renewals fail for ten minutes, which must not fill the log.
func TestLostLeaseIsLoggedOnceAMinute(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		j := &lostJournal{}
		w := &writer{journal: j, log: slog.New(slog.NewTextHandler(&log, nil)), kept: make(chan struct{}), renewals: make(chan renewal, 1)}
		ctx, cancel := context.WithCancel(t.Context())
		go w.keep(ctx)
		time.Sleep(10*time.Minute + time.Second/2)
		j.isBack.Store(true)
		time.Sleep(time.Minute)
		j.isBack.Store(false)
		time.Sleep(renewEvery)
		cancel()
		<-w.kept
		failed, back := "renewing the lease failed", "renewing the lease succeeds again"
		if n := strings.Count(log.String(), failed); n != 11 {
			t.Errorf("%d failures are in the log, want one for each of 10 minutes and one after the lease was renewed:\n%s", n, log.String())
		}
		if n := strings.Count(log.String(), back); n != 1 {
			t.Errorf("%q is %d times in the log", back, n)
		}
	})
}
