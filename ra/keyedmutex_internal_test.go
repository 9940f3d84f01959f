package ra

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"

	"github.com/brevet-pki/brevet/pki"
)

// Callers get the lock in the order in which they waited for it. A caller that locks again goes to the end of the queue, and a
// canceled caller leaves the queue.
func TestKeyedMutexIsFair(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		id, err := pki.ParseSPIFFEID("spiffe://fleet.example/device/1")
		if err != nil {
			t.Fatal(err)
		}
		all := newKeyedMutex()
		first, err := all.take(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		var order []int
		gone, giveUp := context.WithCancel(t.Context())
		for n := range 10 {
			ctx := t.Context()
			if n%3 == 1 {
				ctx = gone
			}
			go func() {
				done, err := all.take(ctx, id)
				if err != nil {
					if !errors.Is(err, context.Canceled) || n%3 != 1 {
						t.Errorf("caller %d failed: %v", n, err)
					}
					return
				}
				order = append(order, n)
				done()
				if n == 0 { // locks again, behind all others
					if done, err = all.take(ctx, id); err == nil {
						order = append(order, 100)
						done()
					}
				}
			}()
			synctest.Wait()
		}
		giveUp()
		synctest.Wait()
		first()
		synctest.Wait()
		if want := []int{0, 2, 3, 5, 6, 8, 9, 100}; !slices.Equal(order, want) {
			t.Errorf("the callers got the lock in the order %v, want %v", order, want)
		}
		if len(all.waiting) != 0 {
			t.Errorf("%d identities are locked at the end, want 0", len(all.waiting))
		}
	})
}
