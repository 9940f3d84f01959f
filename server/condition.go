package server

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/pki"
)

// Token is a token with keys of issuing CAs, for whoever watches it. Methods are safe for concurrent use.
type Token interface {
	// Prove has every issuing key in it sign something that attests nothing, and checks the signatures. It ends with ctx.
	Prove(ctx context.Context) error
	// Calls returns how many calls are in the token now, and how many there can be. It does not wait.
	Calls() (now, most int)
	// Failures returns how many failures there have been since the token last worked. It does not wait.
	Failures() int
}

// IssuingToken is a token, and whose keys it holds.
type IssuingToken struct {
	Token
	Name    string         // as the configuration calls it
	Issuers []pki.IssuerID // the issuing CAs with a key there; none for a token that was not available at the start
}

// watchedToken is a token, and how it went when it was last asked for a signature.
type watchedToken struct {
	IssuingToken
	lastTry
}

// tokenOf returns the token with the key of an issuing CA.
func (s *Server) tokenOf(id pki.IssuerID) *watchedToken {
	i := slices.IndexFunc(s.tokens, func(t *watchedToken) bool { return slices.Contains(t.Issuers, id) })
	return s.tokens[i]
}

// issuingToken returns the token with the key of the current issuing CA. Without it no certificate is issued.
func (s *Server) issuingToken() *watchedToken {
	return s.tokenOf(s.config.Issuers[len(s.config.Issuers)-1].ID)
}

// checkTokens refuses an issuing CA whose key is in no token.
func (c Config) checkTokens() error {
	for _, iss := range c.Issuers {
		if !slices.ContainsFunc(c.Tokens, func(t IssuingToken) bool { return slices.Contains(t.Issuers, iss.ID) }) {
			return fmt.Errorf("server: no token holds the key of %s", iss.Certificate.Subject)
		}
	}
	return nil
}

// Disk is where the store and the log's archive lie. Methods are safe for concurrent use.
type Disk interface {
	// Sizes returns the size in octets of each file, by a name from a closed set.
	Sizes() map[string]int64
	// Free returns how many octets there is room for, and an error where nothing can be written.
	Free() (int64, error)
}

const (
	// scrapePatience bounds what an answer on the operations port waits for the store.
	scrapePatience = 2 * time.Second
	// proveEvery is how often a token that nobody asks for signatures is asked for one.
	proveEvery = 10 * time.Second
	// storeDoubt is how long the server is not ready for after the store did not take a transaction. Where calls stay
	// away meanwhile nothing would ever show that it takes them again.
	storeDoubt = time.Minute
	// leastRoom is what has to be free on the disk, in octets: a transaction, and the WAL file until it is taken in.
	leastRoom = 64 << 20
)

// lastTry is how something went when it was last tried.
type lastTry struct {
	tried  atomic.Int64 // Unix time in nanoseconds
	failed atomic.Bool
}

// note reports whether it went otherwise than before.
func (l *lastTry) note(err error, at time.Time) (changed bool) {
	l.tried.Store(at.UnixNano())
	return l.failed.Swap(err != nil) != (err != nil)
}

// since returns how far from the last try this time is, be it that the clock was set back.
func (l *lastTry) since(now time.Time) time.Duration {
	return now.Sub(time.Unix(0, l.tried.Load())).Abs()
}

// watchToken has a token prove itself where no certificate did so for a while, or the last one could not be signed: a token that is lost is known before
// somebody needs it, and one that is back is known though nobody asks an unready server.
func (s *Server) watchToken(ctx context.Context, t *watchedToken) error {
	tick := time.NewTicker(proveEvery)
	defer tick.Stop()
	for {
		if t.failed.Load() || t.since(s.config.Clock()) >= proveEvery {
			s.proveToken(ctx, t)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

func (s *Server) proveToken(ctx context.Context, t *watchedToken) {
	limited, cancel := context.WithTimeout(ctx, proveEvery)
	defer cancel()
	if err := t.Prove(limited); ctx.Err() == nil {
		s.noteToken(t, err)
	}
}

// noteToken keeps how it went when a token was last asked for a signature, and says once what has changed, whoever asked.
func (s *Server) noteToken(t *watchedToken, err error) {
	switch {
	case !t.note(err, s.config.Clock()):
	case err != nil:
		s.log.Error("the token does not sign: no certificates and no CRLs until it does", "token", t.Name, "error", err)
	default:
		s.log.Info("the token signs again", "token", t.Name)
	}
}

// alive returns what only a restart, or stopping the other process, mends.
func (s *Server) alive() error {
	if s.authority.Fenced() {
		return ca.ErrFenced
	}
	return nil
}

// readiness returns what keeps this process from doing its work now.
func (s *Server) readiness(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, scrapePatience)
	defer cancel()
	now := s.config.Clock()
	err := s.alive()
	if !s.serving.Load() {
		err = errors.Join(err, errors.New("not serving: starting or stopping"))
	}
	if age := now.Sub(s.responder.CurrentAt()); age > time.Minute {
		err = errors.Join(err, errors.New("the responder has not heard from the store for over a minute"))
	}
	if p := s.own.Pair(); p == nil || p.Expired(now) {
		err = errors.Join(err, errors.New("the server's own certificate has expired"))
	}
	if _, herr := s.config.Stores.Log.Head(ctx); herr != nil {
		err = errors.Join(err, errors.New("the store cannot be read"))
	}
	if s.issuingToken().failed.Load() {
		err = errors.Join(err, errors.New("the token did not sign when it was last asked"))
	}
	return errors.Join(err, s.writable(now))
}

// writable returns why the store would not take a certificate now.
func (s *Server) writable(now time.Time) error {
	if s.store.failed.Load() && s.store.since(now) < storeDoubt {
		return errors.New("the store failed a call, or the last transaction, within the last minute: the log says why")
	}
	switch free, err := s.config.Disk.Free(); {
	case err != nil:
		return errors.New("the store cannot be written: its file is gone, not the server's, or on a file system that is read-only")
	case free < leastRoom:
		return fmt.Errorf("the disk is full: less than %d MiB are free", leastRoom>>20)
	}
	return nil
}
