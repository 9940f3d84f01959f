package jwt

import (
	"context"
	"crypto/x509"
	"log/slog"
	"sync"
	"time"
)

const (
	refreshAfter = 15 * time.Minute // age at which keys are fetched again
	keepFor      = 24 * time.Hour   // age up to which keys are used while fetching fails
	minInterval  = 30 * time.Second // minimum time between the starts of two fetches
	checkEvery   = time.Minute      // time between two checks of the age
	logEvery     = time.Hour        // time between two messages about a failure that continues
)

// remoteKeys is a keySource that fetches its keys. It keeps the keys of the last fetch that succeeded, and fetches them
// again in the background: by age, and if a token names an unknown key.
type remoteKeys struct {
	source string
	origin origin
	fetch  func(context.Context) (*keySet, error)
	clock  func() time.Time
	log    *slog.Logger

	wake    chan struct{} // has a value if a fetch was requested
	running sync.WaitGroup

	mu      sync.Mutex
	cancel  context.CancelFunc // ends the goroutine. Nil if it was not started
	closed  bool
	set     *keySet       // of the last fetch that succeeded, or nil
	fetched time.Time     // start of that fetch
	begun   time.Time     // start of the last fetch
	failure error         // of the last fetch, or nil
	ended   chan struct{} // closed when the current fetch ends. Nil if there is none
	logged  time.Time     // time of the last message about a failure. Zero if the last fetch succeeded
}

// origin is where keys are fetched from.
type origin struct {
	location   string
	credential string
	roots      *x509.CertPool
}

func newRemoteKeys(
	source string, from origin, fetch func(context.Context) (*keySet, error), clock func() time.Time, log *slog.Logger,
) *remoteKeys {
	return &remoteKeys{source: source, origin: from, fetch: fetch, clock: clock, log: log, wake: make(chan struct{}, 1)}
}

// run starts the goroutine that fetches the keys, and checks their age. The caller holds the mutex.
func (r *remoteKeys) run() {
	ctx, cancel := context.WithCancel(context.Background())
	r.cancel = cancel
	r.running.Go(func() {
		ticker := time.NewTicker(checkEvery)
		defer ticker.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-ticker.C:
				r.refresh()
			case <-r.wake:
				r.fetchOnce(ctx)
			}
		}
	})
}

// adopt takes over the keys of another source that fetches them from the same place.
func (r *remoteKeys) adopt(from *remoteKeys) {
	if r.origin.location != from.origin.location || r.origin.credential != from.origin.credential ||
		!r.origin.roots.Equal(from.origin.roots) {
		return
	}
	from.mu.Lock()
	set, fetched := from.set, from.fetched
	from.mu.Unlock()
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.set == nil {
		r.set, r.fetched = set, fetched
	}
}

// refresh requests a fetch if the keys are old.
func (r *remoteKeys) refresh() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if now := r.clock(); r.set == nil || now.Sub(r.fetched) >= refreshAfter {
		r.begin(now)
	}
}

// begin requests a fetch, unless one is in progress, or the last one began too recently. It returns a channel that is
// closed when the fetch ends, and nil if there is none. The caller holds the mutex.
func (r *remoteKeys) begin(now time.Time) <-chan struct{} {
	if r.ended != nil {
		return r.ended
	}
	if r.closed || !r.begun.IsZero() && now.Sub(r.begun) < minInterval {
		return nil
	}
	if r.cancel == nil {
		r.run()
	}
	r.begun, r.ended = now, make(chan struct{})
	r.wake <- struct{}{} // has room, because no other fetch is requested
	return r.ended
}

func (r *remoteKeys) fetchOnce(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, fetchTimeout)
	defer cancel()
	set, err := r.fetch(ctx)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.finish(set, err)
}

// finish stores the result of the fetch in progress. The caller holds the mutex.
func (r *remoteKeys) finish(set *keySet, err error) {
	close(r.ended)
	r.ended, r.failure = nil, err
	switch {
	case err == nil:
		if !r.logged.IsZero() {
			r.log.Info("fetching the keys of a JWT source succeeds again", "source", r.source)
		}
		r.set, r.fetched, r.logged = set, r.begun, time.Time{}
	case r.closed:
	case r.logged.IsZero() || r.begun.Sub(r.logged) >= logEvery:
		r.logged = r.begun
		r.log.Warn("fetching the keys of a JWT source failed, retrying", "source", r.source, "keys_from", r.fetched,
			"error", err)
	}
}

// usable returns the keys if they are not too old, and nil otherwise. The caller holds the mutex.
func (r *remoteKeys) usable(now time.Time) *keySet {
	if r.set == nil || now.Sub(r.fetched) >= keepFor {
		return nil
	}
	return r.set
}

func (r *remoteKeys) current(ctx context.Context) (*keySet, error) {
	r.mu.Lock()
	now := r.clock()
	if set := r.usable(now); set != nil {
		r.mu.Unlock()
		return set, nil
	}
	ended := r.begin(now)
	r.mu.Unlock()
	if ended != nil {
		select {
		case <-ended:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if set := r.usable(now); set != nil {
		return set, nil
	}
	return nil, r.unavailable(now)
}

func (r *remoteKeys) newer(set *keySet) (*keySet, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.set != set {
		return r.set, nil
	}
	now := r.clock()
	if r.begin(now) == nil && r.failure == nil && !r.closed {
		return nil, nil
	}
	return nil, r.unavailable(now)
}

// unavailable returns a temporary error with the time until the next fetch can have ended. The caller holds the mutex.
func (r *remoteKeys) unavailable(now time.Time) error {
	if r.ended != nil {
		return &unavailable{"the keys of the JWT source " + r.source + " are being fetched", time.Second, r.failure}
	}
	after := time.Second + max(0, minInterval-now.Sub(r.begun))
	return &unavailable{"the keys of the JWT source " + r.source + " cannot be fetched now", after, r.failure}
}

func (r *remoteKeys) close() {
	r.mu.Lock()
	r.closed = true
	if r.cancel != nil {
		r.cancel()
	}
	r.mu.Unlock()
	r.running.Wait()
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ended != nil { // a fetch was requested and not begun
		r.finish(nil, context.Canceled)
	}
}
