package tables_test

import (
	"context"
	"sync"
	"testing"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/revocation"
	"github.com/brevet-pki/brevet/store/tables"
)

// TestPackerThatStoodStill stops one server's packer before a write, until another server has packed newer changes. The older
// statuses must not come back.
func TestPackerThatStoodStill(t *testing.T) {
	const claim, write, note = "claim what is packed", "write packed entries", "note what is packed"
	for _, pauses := range [][]string{{claim}, {write, note}, {note}} {
		t.Run(pauses[0], func(t *testing.T) {
			onPostgres(t, func(t *testing.T, open opener) { packerStandsStill(t, open, pauses) })
		})
	}
}

func packerStandsStill(t *testing.T, open opener, pauses []string) {
	w := newPackWorld(t, open, 1)
	other := open(t)
	w.issueMore(40)
	holdAll := func() {
		for _, r := range w.all {
			w.order(t, r, revocation.Hold, pki.CertificateHold)
		}
	}
	holdAll()
	paused, release := other.PauseBefore(pauses...)
	w.db.PackSmall(8)
	other.PackSmall(8)
	done := make(chan error, 1)
	go func() { done <- other.Revocation().Compact(context.Background(), issuer) }()
	for steps := 0; ; steps++ {
		select {
		case <-paused:
			w.check(t, w.at)
			for _, r := range w.all {
				w.order(t, r, revocation.Unhold, pki.Unspecified)
			}
			w.pack(t)
			w.check(t, w.at)
			release()
			continue
		case err := <-done:
			if err != nil || steps == 0 {
				t.Fatalf("after %d pauses: %v", steps, err)
			}
		}
		break
	}
	w.check(t, w.at)
	holdAll()
	w.pack(t)
	w.check(t, w.at)
}

// TestPackersTogether packs with two servers at the same time, while statuses change.
func TestPackersTogether(t *testing.T) {
	onPostgres(t, func(t *testing.T, open opener) {
		w := newPackWorld(t, open, 2)
		other := open(t)
		w.issueMore(200)
		w.db.PackSmall(4)
		other.PackSmall(4)
		stop := make(chan struct{})
		var packing sync.WaitGroup
		for _, db := range []*tables.DB{w.db, other} {
			packing.Go(func() {
				for {
					if err := db.Revocation().Compact(context.Background(), issuer); err != nil {
						t.Error(err)
						return
					}
					select {
					case <-stop:
						return
					default:
					}
				}
			})
		}
		for n := range 3 * len(w.all) {
			action, reason := revocation.Hold, pki.CertificateHold
			if n/len(w.all)%2 == 1 {
				action, reason = revocation.Unhold, pki.Unspecified
			}
			w.order(t, w.all[(n*7)%len(w.all)], action, reason)
			if n%20 == 0 {
				w.check(t, w.at)
			}
		}
		close(stop)
		packing.Wait()
		w.check(t, w.at)
	})
}
