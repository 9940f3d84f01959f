package telemetry

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/enroll"
	"github.com/brevet-pki/brevet/translog"
)

const (
	// StoreDoubt is how long the server is not ready after a failed transaction. After that it is ready again, even if no
	// transaction has succeeded: a server that is not ready may get no requests, and so has no transactions. On a database,
	// a renewed lease ends the doubt before if the connection was lost.
	StoreDoubt = time.Minute
	// maxSilence is the maximum age of the responder's last synchronization with the store.
	maxSilence = time.Minute
	// minFree is the required free space on the disk, in bytes: for a transaction, and for the WAL until its checkpoint.
	minFree = 64 << 20
	// scrapeTimeout is the timeout for reading the store to respond to a probe or scrape.
	scrapeTimeout = 2 * time.Second
)

// A Check returns why the server cannot work now, in one line without internal details, or nil. It stops when ctx ends.
type Check func(ctx context.Context) error

// Health holds the checks of a server. It is safe for concurrent use.
type Health struct {
	alive    Check
	ready    []Check
	degraded []Check
}

// NewHealth returns a Health. The check alive must fail only if the server cannot work again before it is restarted, or
// before another process is stopped. A server that is not alive is not ready either.
func NewHealth(alive Check, ready ...Check) *Health {
	return &Health{alive: alive, ready: append([]Check{alive}, ready...)}
}

// Degraded adds checks of what the server can work without for some time. They do not affect its readiness. It must be
// called before the first probe.
func (h *Health) Degraded(checks ...Check) *Health {
	h.degraded = append(h.degraded, checks...)
	return h
}

// Degradation returns what does not work although the server is ready: all reasons, one per line.
func (h *Health) Degradation(ctx context.Context) error { return all(ctx, h.degraded) }

// Readiness returns why this process cannot work now: all reasons, one per line.
func (h *Health) Readiness(ctx context.Context) error {
	return all(ctx, h.ready)
}

// all executes checks, and returns their errors.
func all(ctx context.Context, checks []Check) error {
	ctx, cancel := context.WithTimeout(ctx, scrapeTimeout)
	defer cancel()
	errs := make([]error, len(checks))
	for i, check := range checks {
		errs[i] = check(ctx)
	}
	return errors.Join(errs...)
}

// Copying checks that the second copy of the log's archive can be written. c is nil if there is none.
func Copying(c *translog.Copy) Check {
	return func(context.Context) error {
		if c != nil && c.Failure() != nil {
			return errors.New("the second copy of the log's archive fails: the log says why")
		}
		return nil
	}
}

// Renewing checks that for each CA whose key only other servers have, one of them signs the CRLs.
func Renewing(u interface{ Unsigned() []*x509.Certificate }) Check {
	return func(context.Context) error {
		var unsigned []error
		for _, c := range u.Unsigned() {
			unsigned = append(unsigned, fmt.Errorf("no server signs the CRLs of %s: start one that has its key", c.Subject))
		}
		return errors.Join(unsigned...)
	}
}

// NotFenced checks that no newer process runs under this server's name.
func NotFenced(a interface{ Fenced() bool }) Check {
	return func(context.Context) error {
		if a.Fenced() {
			return ca.ErrReplaced
		}
		return nil
	}
}

// Serving checks that the server has started and is not stopping.
func Serving(serving func() bool) Check {
	return func(context.Context) error {
		if !serving() {
			return errors.New("not serving: starting or stopping")
		}
		return nil
	}
}

// Following checks that the responder is synchronized with the store.
func Following(r interface {
	CurrentAt() time.Time
	IsStale() bool
}, clock func() time.Time,
) Check {
	return func(context.Context) error {
		switch {
		case r.IsStale():
			return errors.New("the server has not read for too long what the others have changed: it refuses calls, and answers OCSP with tryLater")
		case clock().Sub(r.CurrentAt()) > maxSilence:
			return errors.New("the responder has not been synchronized with the store for over a minute")
		}
		return nil
	}
}

// Unexpired checks that the server's own certificate is valid.
func Unexpired(own interface{ Pair() *enroll.Pair }, clock func() time.Time) Check {
	return func(context.Context) error {
		if p := own.Pair(); p == nil || p.Expired(clock()) {
			return errors.New("the server's own certificate has expired")
		}
		return nil
	}
}

// Readable checks that the store can be read.
func Readable(log interface {
	Head(ctx context.Context) (translog.Head, error)
}) Check {
	return func(ctx context.Context) error {
		if _, err := log.Head(ctx); err != nil {
			return errors.New("the store cannot be read")
		}
		return nil
	}
}

// Signing checks that the HSM with the key of the current issuing CA can sign.
func (r *Recorder) Signing() Check {
	return func(context.Context) error {
		if r.issuing.failed.Load() {
			return errors.New("the last signature of the HSM failed")
		}
		return nil
	}
}

// Disk describes the disk with the store and the log's archive. Its methods are safe for concurrent use.
type Disk interface {
	// Sizes returns the size of each file in bytes, keyed by a name from a closed set.
	Sizes() map[string]int64
	// Free returns the free space in bytes, or an error if the store cannot be written.
	Free() (int64, error)
}

// Writable checks that the store can record a certificate now.
func (r *Recorder) Writable(d Disk) Check {
	return func(context.Context) error {
		if r.store.failed.Load() && r.store.since(r.clock()) < StoreDoubt {
			return errors.New("the store failed a call, or the last transaction, within the last minute: the log says why")
		}
		switch free, err := d.Free(); {
		case err != nil:
			return errors.New("the store cannot be written: its file is gone, not the server's, or on a file system that is read-only")
		case free < minFree:
			return fmt.Errorf("the disk is full: less than %d MiB are free", minFree>>20)
		}
		return nil
	}
}
