package responder_test

import (
	"context"
	"errors"
	"log/slog"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/revocation"
	"github.com/brevet-pki/brevet/revocation/internal/revtest"
	"github.com/brevet-pki/brevet/revocation/responder"
)

var errAway = errors.New("the feed is away")

// A flakyFeed fails while it is down.
type flakyFeed struct {
	*revtest.Book
	down  atomic.Bool
	looks atomic.Int64
}

func (f *flakyFeed) Snapshot(ctx context.Context, at time.Time, visit func(pki.StatusChange) error) (uint64, error) {
	if f.down.Load() {
		return 0, errAway
	}
	return f.Book.Snapshot(ctx, at, visit)
}

func (f *flakyFeed) Changes(ctx context.Context, after uint64, limit int) ([]pki.StatusChange, uint64, error) {
	f.looks.Add(1)
	if f.down.Load() {
		return nil, 0, errAway
	}
	return f.Book.Changes(ctx, after, limit)
}

// following starts a responder that follows a feed until the test is over.
func following(t *testing.T, feed responder.Feed) *responder.Responder {
	t.Helper()
	return followingAt(t, feed, time.Now)
}

// followingAt is following with a clock.
func followingAt(t *testing.T, feed responder.Feed, clock func() time.Time) *responder.Responder {
	t.Helper()
	r, err := responder.New(responder.Config{Clock: clock, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.Follow(ctx, feed) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Follow: %v", err)
		}
	})
	return r
}

func wait(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func TestFollow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := revtest.NewRoot(t, "CA", "p256")
		feed := &flakyFeed{Book: revtest.NewBook()}
		var refs []pki.CertRef
		issue := func() {
			ref := pki.CertRef{Issuer: ca.ID(), Serial: revtest.Serial(t)}
			feed.Issue(ref, time.Now().Add(24*time.Hour))
			refs = append(refs, ref)
		}
		for range 3000 { // more than one look reads
			issue()
		}
		feed.down.Store(true)
		r := following(t, feed)
		wait(5 * time.Second)
		if at := r.CurrentAt(); !at.IsZero() {
			t.Fatalf("current at %v without a feed", at)
		}
		feed.down.Store(false)
		wait(time.Second)
		if age := time.Since(r.CurrentAt()); age > 250*time.Millisecond {
			t.Errorf("a second after the feed came the responder is %v behind", age)
		}
		for range 2500 {
			issue()
		}
		o := revocation.Change{Action: revocation.Revoke, Certificate: refs[0], At: time.Now()}
		if _, err := feed.Apply(t.Context(), o); err != nil {
			t.Fatal(err)
		}
		wait(250 * time.Millisecond)
		if status, _ := r.Status(refs[0]); status.State != pki.Revoked {
			t.Errorf("a quarter of a second after its revocation a certificate is %v", status.State)
		}
		for _, ref := range refs {
			if _, ok := r.Status(ref); !ok {
				t.Fatalf("%v is not known", ref.Serial)
			}
		}

		feed.down.Store(true)
		lost := time.Now()
		wait(time.Minute)
		if at := r.CurrentAt(); at.After(lost) {
			t.Errorf("current at %v, though the feed was lost at %v", at, lost)
		}
		before := feed.looks.Load()
		wait(time.Minute)
		if n := feed.looks.Load() - before; n < 55 || n > 120 {
			t.Errorf("%d looks in a minute at a feed that fails, want about one a second", n)
		}
		issue()
		feed.down.Store(false)
		wait(1200 * time.Millisecond)
		if _, ok := r.Status(refs[len(refs)-1]); !ok || time.Since(r.CurrentAt()) > 250*time.Millisecond {
			t.Error("the responder does not follow again after the feed came back")
		}
	})
}

// A lateFeed has one certificate. Its Changes repeat late what the certificate was at first, and its Snapshot waits for
// release.
type lateFeed struct {
	now     atomic.Pointer[pki.StatusChange]
	late    atomic.Pointer[pki.StatusChange]
	release chan struct{}
}

func (f *lateFeed) Snapshot(ctx context.Context, _ time.Time, visit func(pki.StatusChange) error) (uint64, error) {
	select {
	case <-f.release:
	case <-ctx.Done():
		return 0, ctx.Err()
	}
	return 1, visit(*f.now.Load())
}

func (f *lateFeed) Changes(_ context.Context, after uint64, _ int) ([]pki.StatusChange, uint64, error) {
	if c := f.late.Swap(nil); c != nil {
		return []pki.StatusChange{*c}, after + 1, nil
	}
	return nil, after, nil
}

// A certificate that was revoked while the clock was ahead, and so forgotten as expired, is not called good when the clock is
// set back: neither by an entry about its issuance that comes late, nor before the new snapshot is in.
func TestClockSetBackMakesNothingGood(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var ahead atomic.Int64
		feed := &lateFeed{release: make(chan struct{})}
		ref := pki.CertRef{Issuer: revtest.NewRoot(t, "CA", "p256").ID(), Serial: revtest.Serial(t)}
		issued := pki.StatusChange{Ref: ref, NotAfter: time.Now().Add(time.Hour), Status: pki.Status{State: pki.Good, Version: 1}}
		feed.now.Store(&issued)
		r := followingAt(t, feed, func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) })
		feed.release <- struct{}{}
		wait(time.Second)
		if status, _ := r.Status(ref); status.State != pki.Good {
			t.Fatalf("a certificate that was issued is %v", status.State)
		}

		ahead.Store(int64(14 * time.Hour))
		wait(2 * time.Minute)
		revoked := issued
		revoked.Status = pki.Status{State: pki.Revoked, Reason: pki.Superseded, Version: 2, RevokedAt: time.Now()}
		feed.now.Store(&revoked)
		r.Apply(revoked)
		feed.late.Store(&issued)

		ahead.Store(0)
		wait(time.Second)
		if status, known := r.Status(ref); known && status.State == pki.Good {
			t.Error("after the clock was set back a revoked certificate is good")
		}
		if at := r.CurrentAt(); !at.IsZero() {
			t.Errorf("the responder answers as of %v without its snapshot", at)
		}
		feed.release <- struct{}{}
		wait(time.Second)
		if status, _ := r.Status(ref); status.State != pki.Revoked || r.CurrentAt().IsZero() {
			t.Errorf("with its snapshot the responder has %v, current at %v", status.State, r.CurrentAt())
		}
	})
}

func TestExpiredCertificatesAreForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := revtest.NewRoot(t, "CA", "p256")
		book := revtest.NewBook()
		long := pki.CertRef{Issuer: ca.ID(), Serial: revtest.Serial(t)}
		book.Issue(long, time.Now().Add(24*time.Hour))
		short := make([]pki.CertRef, 5000)
		changes := make([]pki.StatusChange, len(short))
		for i := range short {
			short[i] = pki.CertRef{Issuer: ca.ID(), Serial: revtest.Serial(t)}
			changes[i] = book.Issue(short[i], time.Now().Add(10*time.Minute))
		}
		r := following(t, book)
		wait(30 * time.Minute)
		for _, ref := range short {
			if _, ok := r.Status(ref); !ok {
				t.Fatal("a certificate is forgotten at once when it ends: slow clocks still ask about it")
			}
		}
		wait(time.Hour)
		known := 0
		for _, ref := range short {
			if _, ok := r.Status(ref); ok {
				known++
			}
		}
		if known > 0 {
			t.Errorf("%d expired certificates are still known", known)
		}
		if _, ok := r.Status(long); !ok {
			t.Error("a valid certificate is forgotten")
		}
		// An old change does not bring back what a newer one, forgotten with it, may have revoked.
		r.Apply(changes...)
		if status, ok := r.Status(short[0]); ok {
			t.Errorf("an old change brings back an expired certificate as %v", status.State)
		}
	})
}
