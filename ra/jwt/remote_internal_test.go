package jwt

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/brevet-pki/brevet/pki"
)

// issuer is what an issuer of keys does. Its methods are safe for concurrent use.
type issuer struct {
	mu      sync.Mutex
	set     *keySet
	err     error
	hangs   bool
	fetches int
	open    int // fetches in progress
	most    int // maximum of open
}

func (i *issuer) fetch(ctx context.Context) (*keySet, error) {
	i.mu.Lock()
	i.fetches++
	i.open++
	i.most = max(i.most, i.open)
	set, err, hangs := i.set, i.err, i.hangs
	i.mu.Unlock()
	if hangs {
		<-ctx.Done()
		set, err = nil, ctx.Err()
	}
	i.mu.Lock()
	i.open--
	i.mu.Unlock()
	return set, err
}

func (i *issuer) answers(set *keySet, err error, hangs bool) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.set, i.err, i.hangs = set, err, hangs
}

func (i *issuer) count() int {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.fetches
}

// run starts keys that are fetched from the issuer.
func (i *issuer) run(t *testing.T, log *strings.Builder) *remoteKeys {
	t.Helper()
	r := newRemoteKeys("ci", origin{}, i.fetch, time.Now, slog.New(slog.NewTextHandler(log, nil)))
	r.refresh()
	t.Cleanup(r.close)
	return r
}

func want(t *testing.T, what string, r *remoteKeys, set *keySet) {
	t.Helper()
	if got, err := r.current(t.Context()); err != nil || got != set {
		t.Errorf("%s: the keys are %p, %v, want %p", what, got, err, set)
	}
}

func wantTemporary(t *testing.T, what string, err error) {
	t.Helper()
	if !pki.IsTemporary(err) || pki.RetryAfter(err) < time.Second || pki.RetryAfter(err) > minInterval+time.Second {
		t.Errorf("%s: %v, want a temporary error", what, err)
	}
}

// In these tests, time passes only while all goroutines wait.

func TestKeysAreRefreshedByAge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		first, second := &keySet{}, &keySet{}
		i, log := &issuer{set: first}, &strings.Builder{}
		r := i.run(t, log)
		want(t, "at the start", r, first)
		i.answers(second, nil, false)
		time.Sleep(refreshAfter - time.Second)
		want(t, "before 15 minutes", r, first)
		time.Sleep(checkEvery + time.Second)
		want(t, "after 15 minutes", r, second)
		if n := i.count(); n != 2 {
			t.Errorf("the keys were fetched %d times, want 2", n)
		}
		if log.Len() > 0 {
			t.Errorf("there were no failures, and it logged %s", log)
		}
	})
}

func TestLastKeysAreKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		set := &keySet{}
		i, log := &issuer{set: set}, &strings.Builder{}
		r := i.run(t, log)
		want(t, "at the start", r, set)
		start := time.Now()
		i.answers(nil, errors.New("the issuer is down"), false)
		time.Sleep(12 * time.Hour)
		i.answers(nil, nil, true)
		time.Sleep(keepFor - 12*time.Hour - 2*time.Second)
		want(t, "a hanging issuer, before 24 hours", r, set)
		if passed := time.Since(start); passed > keepFor {
			t.Errorf("a caller waited, until %s", passed)
		}
		time.Sleep(2 * time.Second)
		_, err := r.current(t.Context())
		wantTemporary(t, "after 24 hours", err)
		if n := strings.Count(log.String(), "level=WARN"); n < 20 || n > 25 {
			t.Errorf("it logged %d warnings in 24 hours", n)
		}
		if n := i.count(); n > int(keepFor/checkEvery)+10 || i.most != 1 {
			t.Errorf("it fetched %d times, and %d at a time", n, i.most)
		}
		i.answers(set, nil, false)
		time.Sleep(2 * checkEvery)
		want(t, "after the issuer has recovered", r, set)
		if !strings.Contains(log.String(), "succeeds again") {
			t.Error("it did not log that the issuer has recovered")
		}
	})
}

func TestFirstKeysAreWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := &issuer{hangs: true}
		r := i.run(t, &strings.Builder{})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := r.current(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a caller with a timeout: %v", err)
		}
		var callers sync.WaitGroup
		for range 100 {
			callers.Go(func() {
				_, err := r.current(t.Context())
				wantTemporary(t, "an issuer that hangs", err)
			})
		}
		callers.Wait()
		start := time.Now()
		_, err := r.current(t.Context())
		wantTemporary(t, "directly after a failure", err)
		if !time.Now().Equal(start) || i.count() != 1 {
			t.Errorf("after a failure, a caller waited %s, and the keys were fetched %d times", time.Since(start), i.count())
		}
		set := &keySet{}
		i.answers(set, nil, false)
		time.Sleep(minInterval)
		want(t, "after 30 seconds", r, set)
	})
}

// TestUnknownKeyFetchesOnce checks what happens if tokens name keys that are not in the set.
func TestUnknownKeyFetchesOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		first, second := &keySet{}, &keySet{}
		i := &issuer{set: first}
		r := i.run(t, &strings.Builder{})
		want(t, "at the start", r, first)
		if set, err := r.newer(first); set != nil || err != nil {
			t.Errorf("keys that were fetched just now: %p, %v", set, err)
		}
		time.Sleep(minInterval)
		i.answers(second, nil, false)
		for range 100 {
			if _, err := r.newer(first); err != nil {
				wantTemporary(t, "while the keys are fetched", err)
			}
		}
		synctest.Wait()
		if set, err := r.newer(first); set != second || err != nil {
			t.Errorf("after the fetch: %p, %v, want %p", set, err, second)
		}
		if set, err := r.newer(second); set != nil || err != nil {
			t.Errorf("a key that is not in the new set either: %p, %v", set, err)
		}
		i.answers(nil, errors.New("down"), false)
		time.Sleep(minInterval)
		for range 100 {
			_, err := r.newer(second)
			wantTemporary(t, "while the issuer is down", err)
			want(t, "while the issuer is down", r, second)
			synctest.Wait()
		}
		if i.count() != 3 || i.most != 1 {
			t.Errorf("the keys were fetched %d times, and %d at a time, want 3 and 1", i.count(), i.most)
		}
	})
}

func TestCloseEndsFetches(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i, log := &issuer{hangs: true}, &strings.Builder{}
		r := newRemoteKeys("ci", origin{}, i.fetch, time.Now, slog.New(slog.NewTextHandler(log, nil)))
		r.refresh()
		answered := make(chan error)
		go func() {
			_, err := r.current(context.Background())
			answered <- err
		}()
		synctest.Wait()
		r.close()
		wantTemporary(t, "a caller that waits", <-answered)
		_, err := r.current(t.Context())
		wantTemporary(t, "a caller after that", err)
		if log.Len() > 0 {
			t.Errorf("closing is logged as a failure: %s", log)
		}
	})
}
