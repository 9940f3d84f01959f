package telemetry

import (
	"context"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/brevet-pki/brevet/pki"
)

// Token is an HSM token with keys of issuing CAs, as far as it is watched. Its methods are safe for concurrent use.
type Token interface {
	// Prove has every issuing key in it sign something that attests nothing, and checks the signatures. It ends with ctx.
	Prove(ctx context.Context) error
	// Calls returns how many calls are in the token now, and how many there can be. It does not wait.
	Calls() (now, most int)
	// Failures returns how many failures there have been since the token last worked. It does not wait.
	Failures() int
}

// IssuingToken is an HSM token with the CAs whose keys it holds.
type IssuingToken struct {
	Token
	Name    string         // in the configuration
	Issuers []pki.IssuerID // the issuing CAs with a key there; none for a token that was not available at the start
}

// watchedToken is a token with the result of the last signature that it was asked for.
type watchedToken struct {
	IssuingToken
	lastTry
}

// proveEvery is how often a token proves itself if nothing else asks it for signatures.
const proveEvery = 10 * time.Second

// lastTry is whether something worked when it was last tried.
type lastTry struct {
	tried  atomic.Int64 // Unix time in nanoseconds
	failed atomic.Bool
}

// note keeps the result of a try, and reports whether it differs from the one before.
func (l *lastTry) note(err error, at time.Time) (changed bool) {
	l.tried.Store(at.UnixNano())
	return l.failed.Swap(err != nil) != (err != nil)
}

// since returns the time between the last try and now. It is positive also if the clock was set back.
func (l *lastTry) since(now time.Time) time.Duration {
	return now.Sub(time.Unix(0, l.tried.Load())).Abs()
}

// tokenOf returns the token with the key of an issuing CA, or nil if no token has it.
func (r *Recorder) tokenOf(id pki.IssuerID) *watchedToken {
	i := slices.IndexFunc(r.tokens, func(t *watchedToken) bool { return slices.Contains(t.Issuers, id) })
	if i < 0 {
		return nil
	}
	return r.tokens[i]
}

// WatchTokens has each token prove itself until ctx ends, if no certificate has proved it for a while, or the last one could
// not be signed. So the loss of a token is known before a request needs it, and its return is known although clients stay
// away from a server that is not ready.
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

// ProveTokens has each token prove itself now.
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

// noteToken keeps the result of the last signature that a token was asked for, and logs it once when it has changed.
func (r *Recorder) noteToken(t *watchedToken, err error) {
	switch {
	case !t.note(err, r.clock()):
	case err != nil:
		r.log.Error("the token does not sign: no certificates and no CRLs until it does", "token", t.Name, "error", err)
	default:
		r.log.Info("the token signs again", "token", t.Name)
	}
}
