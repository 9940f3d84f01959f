package admission

import (
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/brevet-pki/brevet/pki"
)

// Those who find no room are asked to come back one after the other, at the pace of the lane and behind its queue.
func TestAppointmentsAreApart(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := NewQueue("calls", Size{Slots: 1, Each: 1, Queue: 100})
		const took = 20 * time.Millisecond
		ended := make(chan time.Duration, 1000)
		call := func(n int) {
			leave, err := l.Enter(t.Context(), named(t, fmt.Sprint(n)))
			if err == nil {
				time.Sleep(took)
				leave()
			}
			ended <- pki.RetryAfter(err)
		}
		for n := range 100 {
			go call(n)
		}
		time.Sleep(50 * took) // the lane learns its pace
		for n := range 900 {
			go call(100 + n)
		}
		var hints []time.Duration
		for range 1000 {
			if hint := <-ended; hint > 0 {
				hints = append(hints, hint)
			}
		}
		if len(hints) < 800 {
			t.Fatalf("%d were turned away", len(hints))
		}
		slices.Sort(hints)
		first, last := hints[0], hints[len(hints)-1]
		if want := time.Duration(len(hints)+100) * took; first < 100*took*3/4 || last > want*11/10 || last < want*2/3 {
			t.Errorf("they are asked to stay away for %s to %s, and serving all takes %s", first, last, want)
		}
		for _, share := range []int{4, 2} {
			if at := hints[len(hints)/share]; at > last*time.Duration(5)/time.Duration(4*share)+100*took {
				t.Errorf("one in %d is to come back by %s, of %s: they are not apart", share, at, last)
			}
		}
	})
}

// A lane that stands still does not know how long. It asks for longer the longer it does, and not for ever.
func TestALaneThatStandsStill(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := NewQueue("calls", Size{Slots: 1, Each: 1, Queue: 2})
		leave, err := l.Enter(t.Context(), named(t, "first"))
		if err != nil {
			t.Fatal(err)
		}
		leave()
		if leave, err = l.Enter(t.Context(), named(t, "hangs")); err != nil {
			t.Fatal(err)
		}
		hint := func() time.Duration {
			go func() { _, _ = l.Enter(t.Context(), named(t, "one")) }()
			go func() { _, _ = l.Enter(t.Context(), named(t, "two")) }()
			synctest.Wait()
			_, err := l.Enter(t.Context(), named(t, "late"))
			if r, ok := pki.AsRefusal(err); !ok || r.Rule != pki.RuleOverloaded {
				t.Fatalf("it is answered %v", err)
			}
			time.Sleep(waitMost)
			return pki.RetryAfter(err)
		}
		soon := hint()
		time.Sleep(time.Minute)
		later := hint()
		time.Sleep(time.Hour)
		most := hint()
		if soon < awayLeast*3/4 || soon > awayLeast || later < 50*time.Second || most < awayMost*3/4 || most > awayMost {
			t.Errorf("it asks for %s, then %s, then %s", soon, later, most)
		}
		leave()
	})
}
