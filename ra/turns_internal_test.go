package ra

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"

	"github.com/brevet-pki/brevet/pki"
)

// Many who ask for one identity's turn again and again serve one who asks once in its order, and who gives up loses nothing
// for the others.
func TestTurnsComeInTheOrderOfAsking(t *testing.T) {
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
						t.Errorf("caller %d is refused: %v", n, err)
					}
					return
				}
				order = append(order, n)
				done()
				if n == 0 { // asks again, ahead of nobody
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
			t.Errorf("the turns came in the order %v, want %v", order, want)
		}
		if len(all.waiting) != 0 {
			t.Errorf("%d identities are remembered when all is over", len(all.waiting))
		}
	})
}
