package ca

import (
	"context"
	"errors"
	"time"

	"golang.org/x/time/rate"
)

// renewEvery is how often the writer renews its lease.
const renewEvery = Lease / 3

// leaseLogInterval is how often renewals that fail are logged.
const leaseLogInterval = time.Minute

// renewal is the result of a renewal on which the writer must act: the lease of another server has ended, or there is an error
// that wraps ErrFenced.
type renewal struct {
	epoch Epoch
	err   error
}

// keep renews the lease until ctx ends. It never waits for the writer, so that a transaction that takes long does not end the
// lease.
func (w *writer) keep(ctx context.Context) {
	defer close(w.kept)
	tick := time.NewTicker(renewEvery)
	defer tick.Stop()
	var failed *rate.Sometimes // logs failures; nil if the last renewal has not failed
	for !w.replacedOut.Load() {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		epoch := Epoch(w.epoch.Load())
		hasEnded, err := w.journal.Renew(ctx, epoch)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil && !errors.Is(err, ErrFenced):
			if failed == nil {
				failed = &rate.Sometimes{Interval: leaseLogInterval}
			}
			failed.Do(func() { w.log.Error("renewing the lease failed, retrying", "error", err) })
			continue
		}
		if failed != nil && err == nil {
			w.log.Info("renewing the lease succeeds again")
		}
		failed = nil
		if hasEnded || err != nil {
			select {
			case w.renewals <- renewal{epoch, err}:
			default: // the writer has not yet received the last one, and the next renewal has the same result
			}
		}
	}
}

// renewed takes over what another server has left, or gives up an epoch that was fenced.
func (w *writer) renewed(r renewal) {
	if w.fenced || r.epoch != Epoch(w.epoch.Load()) {
		return
	}
	if r.err != nil {
		w.lose(r.err)
		return
	}
	left, err := w.journal.TakeOver(context.Background(), r.epoch) // what is left belongs to no caller
	if err == nil {
		w.takeOver(left)
		return
	}
	if !errors.Is(err, ErrFenced) {
		// The epoch may have taken over intents that are not known here. The next one gets them from BeginAgain.
		w.log.Error("taking over from another server failed, beginning a new epoch", "error", err)
	}
	w.lose(err)
}

// takeOver commits the items that another process left like abandoned ones.
func (w *writer) takeOver(left []Intent) {
	for _, intent := range left {
		for _, i := range intent.Items {
			it := newItem(i)
			it.batch, it.epoch = intent.Batch, w.epoch.Load()
			w.done = append(w.done, it)
		}
		w.log.Warn("revoking certificates that an earlier process prepared but did not deliver",
			"batch", intent.Batch, "count", len(intent.Items))
	}
}

// beginAgain begins another epoch after this one was fenced, such as by another server while this one stood still. It
// reports whether it did.
func (w *writer) beginAgain() bool {
	if w.replaced {
		return false
	}
	epoch, left, err := w.journal.BeginAgain(context.Background(), w.process) // the epoch serves all callers
	if errors.Is(err, ErrReplaced) {
		w.lose(err)
		return false
	}
	if err != nil {
		w.retry = min(max(2*w.retry, minCommitRetry), maxCommitRetry)
		w.log.Error("beginning a new epoch failed, retrying", "error", err)
		return false
	}
	w.epoch.Store(uint64(epoch))
	w.fenced, w.retry = false, 0
	w.takeOver(left)
	w.log.Warn("began a new epoch, because the last one has ended", "epoch", epoch)
	return true
}

// lose gives up an epoch. What it has not recorded is not delivered, and the next epoch accounts for it.
func (w *writer) lose(err error) {
	w.fenced, w.replaced, w.retry = true, errors.Is(err, ErrReplaced), 0
	if w.replaced {
		w.replacedOut.Store(true)
		w.log.Error("another process runs under this server's name, this one stops signing")
	}
	w.refuseAll(w.fencedError())
}

// fencedError returns the error for callers of a writer that is fenced. A new epoch begins soon, unless another process
// has this server's name. Then another server can serve the caller.
func (w *writer) fencedError() error {
	if w.replaced {
		return &unavailable{what: "this process issues nothing any more", after: time.Second, cause: ErrReplaced}
	}
	return &unavailable{what: "this server's epoch has ended, so nothing was delivered", after: time.Second, cause: ErrFenced}
}
