package telemetry

import (
	"context"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/brevet-pki/brevet/pki"
)

// Token is an HSM token with keys of issuing CAs, as its monitor needs it. Its methods are safe for concurrent use.
type Token interface {
	// Prove has every issuing key in the token sign a self-test, and verifies the signatures. It stops when ctx ends.
	Prove(ctx context.Context) error
	// Calls returns the current and the maximum number of calls in the token. It does not block.
	Calls() (now, most int)
	// Failures returns the number of failures since the token last worked. It does not block.
	Failures() int
}

// IssuingToken is an HSM token and the CAs whose keys it holds.
type IssuingToken struct {
	Token
	Name    string         // as in the configuration
	Issuers []pki.IssuerID // the issuing CAs with a key in the token; empty if it was unavailable at the start
}

// watchedToken is a token with the result of its last signature.
type watchedToken struct {
	IssuingToken
	lastTry
}

// proveEvery is the interval of self-tests of a token that signs nothing else.
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

// tokenOf returns the token with the key of an issuing CA, or nil if there is none.
func (r *Recorder) tokenOf(id pki.IssuerID) *watchedToken {
	i := slices.IndexFunc(r.tokens, func(t *watchedToken) bool { return slices.Contains(t.Issuers, id) })
	if i < 0 {
		return nil
	}
	return r.tokens[i]
}

// WatchTokens runs the self-test of each token until ctx ends, whenever the token has not signed for a while or its
// last signature failed. The server thus detects the loss of a token before a request needs it. It also detects that
// the token is back, even if no clients call a server that is not ready.
func (r *Recorder) WatchTokens(ctx context.Context) error {
	var group errgroup.Group
	for _, t := range r.tokens {
		group.Go(func() error { return r.watchToken(ctx, t) })
	}
	return group.Wait()
}

func (r *Recorder) watchToken(ctx context.Context, t *watchedToken) error {
	tick := time.NewTicker(proveEvery)
	defer tick.Stop()
	for {
		if t.failed.Load() || t.since(r.clock()) >= proveEvery {
			r.proveToken(ctx, t)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// ProveTokens runs the self-test of each token.
func (r *Recorder) ProveTokens(ctx context.Context) {
	for _, t := range r.tokens {
		r.proveToken(ctx, t)
	}
}

func (r *Recorder) proveToken(ctx context.Context, t *watchedToken) {
	limited, cancel := context.WithTimeout(ctx, proveEvery)
	defer cancel()
	if err := t.Prove(limited); ctx.Err() == nil {
		r.noteToken(t, err)
	}
}

// noteToken records the result of a token's last signature. It logs the result if it has changed.
func (r *Recorder) noteToken(t *watchedToken, err error) {
	switch {
	case !t.note(err, r.clock()):
	case err != nil:
		r.log.Error("the token does not sign: no certificates and no CRLs until it does", "token", t.Name, "error", err)
	default:
		r.log.Info("the token signs again", "token", t.Name)
	}
}
