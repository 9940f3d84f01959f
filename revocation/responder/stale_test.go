package responder_test

import (
	"bytes"
	"context"
	"crypto"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
	"unsafe"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/revocation"
	"github.com/brevet-pki/brevet/revocation/internal/revtest"
	"github.com/brevet-pki/brevet/revocation/responder"
)

// A responder that other processes change the statuses of sends tryLater in place of a cached response when its
// statuses are older than MaxStaleness. The validity of its responses is independent of that.
func TestCachedResponsesAreNotSentWhenStale(t *testing.T) {
	s := newFixture(t, responder.Config{MaxStaleness: responder.DefaultMaxStaleness}, revtest.Key(t, "p256"))
	leaf, _ := s.issue(t)
	known := s.clock.now().Truncate(time.Second)
	_, response := s.read(t, leaf, s.post(t, request(t, leaf, s.ca.Certificate, crypto.SHA1)))
	if !response.NextUpdate.Equal(known.Add(responder.DefaultValidity)) {
		t.Errorf("nextUpdate is %v, and the status was known at %v", response.NextUpdate, known)
	}
	s.clock.advance(responder.DefaultMaxStaleness)
	s.want(t, "just within the limit", leaf, "good")
	if s.IsStale() || responder.CachedCount(s.Responder) != 1 {
		t.Errorf("stale: %t, with %d cached responses", s.IsStale(), responder.CachedCount(s.Responder))
	}
	s.clock.advance(time.Millisecond)
	s.want(t, "past the limit", leaf, tryLater)
	if !s.IsStale() {
		t.Error("the responder is not stale past the limit")
	}
	s.follow(t)
	s.want(t, "current again", leaf, "good")
	s.clock.advance(-10 * time.Minute)
	s.want(t, "before the statuses were read", leaf, tryLater)
	if !s.IsStale() {
		t.Error("the responder is not stale at a time before its statuses were read")
	}
}

// The only process that changes the statuses is never stale, but does not send old statuses either.
func TestOnlyProcessIsNeverStale(t *testing.T) {
	s := newFixture(t, responder.Config{}, revtest.Key(t, "p256"))
	leaf, _ := s.issue(t)
	s.clock.advance(responder.DefaultValidity + time.Second)
	s.want(t, "past the validity", leaf, tryLater)
	if s.IsStale() {
		t.Error("the only process is stale")
	}
}

// shiftMonotonic changes the monotonic clock reading of a time and not the wall clock reading, as if the wall clock had been
// corrected.
func shiftMonotonic(at time.Time, by time.Duration) time.Time {
	(*struct {
		wall uint64
		ext  int64 // nanoseconds of the monotonic clock
		loc  *time.Location
	})(unsafe.Pointer(&at)).ext += int64(by)
	return at
}

// A wall clock that was set back does not make old statuses look new, and one that was set forward does not make them new.
func TestStalenessIsMeasuredByBothClocks(t *testing.T) {
	at := time.Now()
	r, err := responder.New(responder.Config{
		MaxStaleness: responder.DefaultMaxStaleness, Clock: func() time.Time { return at }, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	if !r.IsStale() {
		t.Error("a responder that has read nothing is not stale")
	}
	if err := responder.FollowOnce(r, revtest.NewBook()); err != nil {
		t.Fatal(err)
	}
	read := at
	for name, c := range map[string]struct {
		wall, monotonic time.Duration
		stale           bool
	}{
		"at once":                         {0, 0, false},
		"within the limit":                {5 * time.Second, 5 * time.Second, false},
		"past the limit":                  {6 * time.Second, 6 * time.Second, true},
		"set back, past the limit":        {time.Second, time.Hour, true},
		"asleep, past the limit":          {time.Hour, time.Second, true},
		"set back an hour at once":        {-time.Hour, time.Second, true},
		"set back half a second, current": {500 * time.Millisecond, time.Second, false},
	} {
		at = shiftMonotonic(read.Add(c.wall), c.monotonic-c.wall)
		if r.IsStale() != c.stale {
			t.Errorf("%s: stale: %t, want %t", name, !c.stale, c.stale)
		}
	}
}

func TestMaxStalenessHasARange(t *testing.T) {
	for age, passes := range map[time.Duration]bool{
		-time.Second: false, time.Millisecond: false, 2*time.Second - 1: false, 2 * time.Second: true, 5 * time.Second: true,
		5 * time.Minute: true, 5*time.Minute + 1: false, 1 << 62: false,
	} {
		_, err := responder.New(responder.Config{MaxStaleness: age})
		if (err == nil) != passes || (responder.CheckMaxStaleness(age) == nil) != passes {
			t.Errorf("%v: %v", age, err)
		}
	}
}

// A lateFeed has log entries that are not in the feed yet, and can fail or block.
type lateFeed struct {
	*revtest.Book
	has     atomic.Uint64 // index of the last entry in the feed
	blocked atomic.Bool
}

func (f *lateFeed) Changes(ctx context.Context, after uint64, limit int, apply func([]pki.StatusChange)) (uint64, error) {
	if f.blocked.Load() {
		<-ctx.Done()
		return after, ctx.Err()
	}
	return f.Book.Changes(ctx, after, min(limit, int(f.has.Load()-after)), apply)
}

// While an entry that was written is not in the feed, the statuses are not complete. A read that never ends is given up.
// Both are logged once.
func TestWrittenEntriesMustBeInTheFeed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		feed := &lateFeed{Book: revtest.NewBook()}
		ref := pki.CertRef{Issuer: revtest.NewRoot(t, "CA", "p256").ID(), Serial: revtest.Serial(t)}
		var log bytes.Buffer // the responder's goroutine is durably blocked when the test reads it
		r, err := responder.New(responder.Config{MaxStaleness: responder.DefaultMaxStaleness, Log: slog.New(slog.NewTextHandler(&log, nil))})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- r.Follow(ctx, feed) }()
		defer func() {
			if err := <-done; err != nil {
				t.Error(err)
			}
		}()
		defer cancel()
		want := func(what string, stale bool, reports int) {
			t.Helper()
			if r.IsStale() != stale {
				t.Errorf("%s: stale: %t, want %t", what, !stale, stale)
			}
			if n := strings.Count(log.String(), "the statuses are older than the limit"); n != reports {
				t.Errorf("%s: the log reports it %d times, want %d:\n%s", what, n, reports, log.String())
			}
		}
		wait(time.Second)
		want("without entries", false, 0)
		feed.Issue(ref, time.Now().Add(time.Hour))
		feed.has.Add(1)
		wait(time.Second)
		want("with an entry", false, 0)
		if _, err := feed.Apply(t.Context(), revocation.Change{Action: revocation.Revoke, Certificate: ref, At: time.Now()}); err != nil {
			t.Fatal(err)
		}
		wait(4 * time.Second)
		want("with a late entry", false, 0)
		wait(10 * time.Second)
		want("with an entry that is too late", true, 1)
		if status, _ := r.Status(ref); status.State != pki.Good {
			t.Errorf("the certificate is %v before the feed has its revocation", status.State)
		}
		feed.has.Add(1)
		wait(time.Second)
		want("with all entries", false, 1)
		if status, _ := r.Status(ref); status.State != pki.Revoked {
			t.Errorf("the certificate is %v, want revoked", status.State)
		}
		feed.blocked.Store(true)
		wait(time.Minute)
		want("while reads do not end", true, 2)
		feed.blocked.Store(false)
		wait(10 * time.Second)
		want("when reads end", false, 2)
	})
}
