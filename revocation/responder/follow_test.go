package responder_test

import (
	"context"
	"errors"
	"fmt"
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

var errFeedDown = errors.New("the feed is down")

// A flakyFeed is a Book whose Snapshot and Changes fail while it is down.
type flakyFeed struct {
	*revtest.Book
	down  atomic.Bool
	reads atomic.Int64
}

func (f *flakyFeed) Snapshot(ctx context.Context, at time.Time, visit func(pki.StatusChange) error) (uint64, error) {
	if f.down.Load() {
		return 0, errFeedDown
	}
	return f.Book.Snapshot(ctx, at, visit)
}

func (f *flakyFeed) Changes(ctx context.Context, after uint64, limit int, apply func([]pki.StatusChange)) (uint64, error) {
	f.reads.Add(1)
	if f.down.Load() {
		return 0, errFeedDown
	}
	return f.Book.Changes(ctx, after, limit, apply)
}

// startFollowing starts a responder that follows a feed until the test ends.
func startFollowing(t *testing.T, feed responder.Feed) *responder.Responder {
	t.Helper()
	return startFollowingAt(t, feed, time.Now)
}

// startFollowingAt does the same as startFollowing, with a clock.
func startFollowingAt(t *testing.T, feed responder.Feed, clock func() time.Time) *responder.Responder {
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

// wait lets the time d pass in the synctest bubble.
func wait(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func TestFollowAppliesChangesAndRetries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := revtest.NewRoot(t, "CA", "p256")
		feed := &flakyFeed{Book: revtest.NewBook()}
		var refs []pki.CertRef
		issue := func() {
			ref := pki.CertRef{Issuer: ca.ID(), Serial: revtest.Serial(t)}
			feed.Issue(ref, time.Now().Add(24*time.Hour))
			refs = append(refs, ref)
		}
		for range 3000 { // more than one read returns
			issue()
		}
		feed.down.Store(true)
		r := startFollowing(t, feed)
		wait(5 * time.Second)
		if at := r.CurrentAt(); !at.IsZero() {
			t.Fatalf("the responder is current at %v without a feed", at)
		}
		feed.down.Store(false)
		wait(time.Second)
		if age := time.Since(r.CurrentAt()); age > 250*time.Millisecond {
			t.Errorf("a second after the feed is up, the statuses are %v old", age)
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
			t.Errorf("250 ms after its revocation a certificate is %v, want revoked", status.State)
		}
		for _, ref := range refs {
			if _, ok := r.Status(ref); !ok {
				t.Fatalf("the status of %v is unknown", ref.Serial)
			}
		}

		feed.down.Store(true)
		lost := time.Now()
		wait(time.Minute)
		if at := r.CurrentAt(); at.After(lost) {
			t.Errorf("the responder is current at %v, but the feed failed at %v", at, lost)
		}
		before := feed.reads.Load()
		wait(time.Minute)
		if n := feed.reads.Load() - before; n < 55 || n > 120 {
			t.Errorf("%d reads of a failing feed in a minute, want about one a second", n)
		}
		issue()
		feed.down.Store(false)
		wait(1200 * time.Millisecond)
		if _, ok := r.Status(refs[len(refs)-1]); !ok || time.Since(r.CurrentAt()) > 250*time.Millisecond {
			t.Error("the responder does not follow the feed after it recovered")
		}
	})
}

// A forgetfulFeed is a Book that has lost the changes after the ones that were read.
type forgetfulFeed struct {
	*revtest.Book
	forgets   atomic.Bool
	snapshots atomic.Int64
}

// errForgotten says that a snapshot is needed.
type errForgotten struct{}

func (errForgotten) Error() string       { return "the changes have left" }
func (errForgotten) NeedsSnapshot() bool { return true }

func (f *forgetfulFeed) Snapshot(ctx context.Context, at time.Time, visit func(pki.StatusChange) error) (uint64, error) {
	f.snapshots.Add(1)
	return f.Book.Snapshot(ctx, at, visit)
}

func (f *forgetfulFeed) Changes(ctx context.Context, after uint64, limit int, apply func([]pki.StatusChange)) (uint64, error) {
	if f.forgets.Swap(false) {
		return 0, fmt.Errorf("read: %w", errForgotten{})
	}
	return f.Book.Changes(ctx, after, limit, apply)
}

// TestFollowReadsASnapshotAfterAGap: a follower that is so far behind that its next changes have left the log reads all
// statuses again.
func TestFollowReadsASnapshotAfterAGap(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		feed := &forgetfulFeed{Book: revtest.NewBook()}
		ref := pki.CertRef{Issuer: revtest.NewRoot(t, "CA", "p256").ID(), Serial: revtest.Serial(t)}
		feed.Issue(ref, time.Now().Add(time.Hour))
		r := startFollowing(t, feed)
		wait(time.Second)
		feed.forgets.Store(true)
		if _, err := feed.Apply(t.Context(), revocation.Change{Action: revocation.Revoke, Certificate: ref, At: time.Now()}); err != nil {
			t.Fatal(err)
		}
		wait(time.Second)
		if status, _ := r.Status(ref); status.State != pki.Revoked || feed.snapshots.Load() != 2 {
			t.Errorf("after %d snapshots, the revoked certificate is %v", feed.snapshots.Load(), status.State)
		}
	})
}

// A staleFeed has one certificate. Its Snapshot waits until the test sends to release. Its Changes can return an
// outdated status once.
type staleFeed struct {
	status  atomic.Pointer[pki.StatusChange]
	stale   atomic.Pointer[pki.StatusChange]
	release chan struct{}
}

func (f *staleFeed) Snapshot(ctx context.Context, _ time.Time, visit func(pki.StatusChange) error) (uint64, error) {
	select {
	case <-f.release:
	case <-ctx.Done():
		return 0, ctx.Err()
	}
	return 1, visit(*f.status.Load())
}

func (f *staleFeed) Changes(_ context.Context, after uint64, _ int, apply func([]pki.StatusChange)) (uint64, error) {
	if c := f.stale.Swap(nil); c != nil {
		apply([]pki.StatusChange{*c})
		return after + 1, nil
	}
	return after, nil
}

func (*staleFeed) Written(context.Context) (uint64, error) { return 1, nil }

// TestRevokedStaysRevokedWhenClockIsSetBack revokes a certificate while the clock is ahead, so that its status is
// removed as expired. Then the clock is set back. An old change that reports the issuance must not make the certificate
// good, and it must not be good before the new snapshot is applied.
func TestRevokedStaysRevokedWhenClockIsSetBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var ahead atomic.Int64
		feed := &staleFeed{release: make(chan struct{})}
		ref := pki.CertRef{Issuer: revtest.NewRoot(t, "CA", "p256").ID(), Serial: revtest.Serial(t)}
		issued := pki.StatusChange{Ref: ref, NotAfter: time.Now().Add(time.Hour), Status: pki.Status{State: pki.Good, Version: 1}}
		feed.status.Store(&issued)
		r := startFollowingAt(t, feed, func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) })
		feed.release <- struct{}{}
		wait(time.Second)
		if status, _ := r.Status(ref); status.State != pki.Good {
			t.Fatalf("an issued certificate is %v, want good", status.State)
		}

		ahead.Store(int64(14 * time.Hour))
		wait(2 * time.Minute)
		revoked := issued
		revoked.Status = pki.Status{State: pki.Revoked, Reason: pki.Superseded, Version: 2, RevokedAt: time.Now()}
		feed.status.Store(&revoked)
		r.Apply(revoked)
		feed.stale.Store(&issued)

		ahead.Store(0)
		wait(time.Second)
		if status, known := r.Status(ref); known && status.State == pki.Good {
			t.Error("after the clock was set back, a revoked certificate is good")
		}
		if at := r.CurrentAt(); !at.IsZero() {
			t.Errorf("the responder is current at %v before the new snapshot", at)
		}
		feed.release <- struct{}{}
		wait(time.Second)
		if status, _ := r.Status(ref); status.State != pki.Revoked || r.CurrentAt().IsZero() {
			t.Errorf("after the new snapshot the certificate is %v, current at %v, want revoked", status.State, r.CurrentAt())
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
		r := startFollowing(t, book)
		wait(30 * time.Minute)
		for _, ref := range short {
			if _, ok := r.Status(ref); !ok {
				t.Fatal("the status of a certificate is removed within an hour of its expiry: clients with slow clocks still need it")
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
			t.Errorf("the statuses of %d expired certificates are not removed", known)
		}
		if _, ok := r.Status(long); !ok {
			t.Error("the status of a valid certificate is removed")
		}
		// Old changes must not restore a removed status: a newer status, also removed, may have been a revocation.
		r.Apply(changes...)
		if status, ok := r.Status(short[0]); ok {
			t.Errorf("an old change restores an expired certificate as %v", status.State)
		}
	})
}
