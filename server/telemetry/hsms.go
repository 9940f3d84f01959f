package telemetry

import (
	"context"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/brevet-pki/brevet/pki"
)

// HSM is what a Recorder uses to monitor an HSM with keys of issuing CAs. Its methods are safe for concurrent use.
type HSM interface {
	// Prove has every issuing key in the HSM sign a self-test, and verifies the signatures. It stops when ctx ends.
	Prove(ctx context.Context) error
	// Calls returns the current and the maximum number of calls in the HSM. It does not block.
	Calls() (now, most int)
	// Failures returns the number of failures since the HSM last worked. It does not block.
	Failures() int
}

// IssuingHSM is an HSM and the CAs whose keys it holds.
type IssuingHSM struct {
	HSM
	Name    string         // its name in the configuration
	Issuers []pki.IssuerID // the issuing CAs with a key in the HSM; empty if the HSM was unavailable at the start
}

// watchedHSM is an HSM with the result of its last signature.
type watchedHSM struct {
	IssuingHSM
	lastTry
}

// proveEvery is the interval of the self-tests of an HSM that signs nothing else, and the timeout of each.
const proveEvery = 10 * time.Second

// lastTry records whether an operation worked when it was last tried.
type lastTry struct {
	tried  atomic.Int64 // Unix time in nanoseconds
	failed atomic.Bool
}

// note records a result, and reports whether it differs from the previous one.
func (l *lastTry) note(err error, at time.Time) (changed bool) {
	l.tried.Store(at.UnixNano())
	return l.failed.Swap(err != nil) != (err != nil)
}

// since returns the time since the last try. It is positive even if the clock was set back.
func (l *lastTry) since(now time.Time) time.Duration {
	return now.Sub(time.Unix(0, l.tried.Load())).Abs()
}

// hsmOf returns the HSM with the key of an issuing CA, or nil if there is none.
func (r *Recorder) hsmOf(id pki.IssuerID) *watchedHSM {
	i := slices.IndexFunc(r.hsms, func(t *watchedHSM) bool { return slices.Contains(t.Issuers, id) })
	if i < 0 {
		return nil
	}
	return r.hsms[i]
}

// WatchHSMs runs until ctx ends. It runs the self-test of an HSM when the HSM has not signed for proveEvery, or when
// its last signature failed. The server thus detects the loss of an HSM before a request needs it. It also detects that
// the HSM works again, although a server that is not ready may get no requests.
func (r *Recorder) WatchHSMs(ctx context.Context) error {
	var group errgroup.Group
	for _, t := range r.hsms {
		group.Go(func() error { return r.watchHSM(ctx, t) })
	}
	return group.Wait()
}

func (r *Recorder) watchHSM(ctx context.Context, t *watchedHSM) error {
	tick := time.NewTicker(proveEvery)
	defer tick.Stop()
	for {
		if t.failed.Load() || t.since(r.clock()) >= proveEvery {
			r.proveHSM(ctx, t)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// ProveHSMs runs the self-test of each HSM.
func (r *Recorder) ProveHSMs(ctx context.Context) {
	for _, t := range r.hsms {
		r.proveHSM(ctx, t)
	}
}

func (r *Recorder) proveHSM(ctx context.Context, t *watchedHSM) {
	limited, cancel := context.WithTimeout(ctx, proveEvery)
	defer cancel()
	if err := t.Prove(limited); ctx.Err() == nil {
		r.noteHSM(t, err)
	}
}

// noteHSM records the result of an HSM's last signature. It logs the result if it has changed.
func (r *Recorder) noteHSM(t *watchedHSM, err error) {
	switch {
	case !t.note(err, r.clock()):
	case err != nil:
		r.log.Error("the HSM does not sign: no certificates and no CRLs until it does", "hsm", t.Name, "error", err)
	default:
		r.log.Info("the HSM signs again", "hsm", t.Name)
	}
}
