package admission

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/brevet-pki/brevet/pki"
)

// TestRetryDelaysAreSpread checks that the retry delays of refused calls end after the waiting calls have run. They are
// spread over the time in which the queue can run the refused calls.
func TestRetryDelaysAreSpread(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := NewQueue("calls", Size{Slots: 1, Each: 1, Queue: 100})
		const took = 20 * time.Millisecond
		ended := make(chan time.Duration, 1000)
		call := func(n int) {
			leave, err := l.Acquire(t.Context(), named(t, fmt.Sprint(n)))
			if err == nil {
				time.Sleep(took)
				leave()
			}
			ended <- pki.RetryAfter(err)
		}
		for n := range 100 {
			go call(n)
		}
		time.Sleep(50 * took) // let the queue measure its rate
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
			t.Fatalf("%d calls were refused", len(hints))
		}
		slices.Sort(hints)
		first, last := hints[0], hints[len(hints)-1]
		if want := time.Duration(len(hints)+100) * took; first < 100*took*3/4 || last > want*11/10 || last < want*2/3 {
			t.Errorf("the retry delays are %s to %s; serving all calls takes %s", first, last, want)
		}
		for _, share := range []int{4, 2} {
			if at := hints[len(hints)/share]; at > last*time.Duration(5)/time.Duration(4*share)+100*took {
				t.Errorf("one in %d of the retry delays is up to %s of %s: they are not spread evenly", share, at, last)
			}
		}
	})
}

// TestRetryDelayGrowsWhileNoCallEnds checks that the retry delay grows while no call ends, up to its maximum.
func TestRetryDelayGrowsWhileNoCallEnds(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := NewQueue("calls", Size{Slots: 1, Each: 1, Queue: 2})
		leave, err := l.Acquire(t.Context(), named(t, "first"))
		if err != nil {
			t.Fatal(err)
		}
		leave()
		if leave, err = l.Acquire(t.Context(), named(t, "hangs")); err != nil {
			t.Fatal(err)
		}
		hint := func() time.Duration {
			go func() { _, _ = l.Acquire(t.Context(), named(t, "one")) }()
			go func() { _, _ = l.Acquire(t.Context(), named(t, "two")) }()
			synctest.Wait()
			_, err := l.Acquire(t.Context(), named(t, "late"))
			if r, ok := pki.AsRefusal(err); !ok || r.Rule != pki.RuleOverloaded {
				t.Fatalf("the call got %v", err)
			}
			time.Sleep(maxWait)
			return pki.RetryAfter(err)
		}
		soon := hint()
		time.Sleep(time.Minute)
		later := hint()
		time.Sleep(time.Hour)
		most := hint()
		if soon < minRetryAfter*3/4 || soon > minRetryAfter || later < 50*time.Second || most < maxRetryAfter*3/4 || most > maxRetryAfter {
			t.Errorf("the retry delays are %s, then %s, then %s", soon, later, most)
		}
		leave()
	})
}

// TestRetryDelaysFollowTimes refuses calls in random order, after as many others, and checks that those with earlier times retry
// sooner. Calls with the same time are spread like others, and a call without a time comes after all of them. What a burst
// brings is in the test of package enroll, TestFleetRenewingAtOnceIsServed.
func TestRetryDelaysFollowTimes(t *testing.T) {
	t.Parallel()
	now := time.Unix(1_800_000_000, 0)
	const calls, per = 2000, 20 * time.Millisecond
	all := calls * per
	share := func(rank float64) time.Duration { return time.Duration(math.Sqrt(rank) * float64(all)) }
	delays := func(untilOf func(n int) time.Time) (of []time.Duration) {
		p := pace{interval: per, last: now}
		of = make([]time.Duration, calls)
		for range calls { // the calls that were refused before
			p.reserve(now, untilOf(rand.IntN(calls)), 0, 1)
		}
		p.reservedUntil = now.Add(all)
		for _, n := range rand.Perm(calls) {
			p.reservedUntil = now.Add(all - per)
			of[n] = p.reserve(now, untilOf(n), 0, 1)
		}
		return of
	}
	for name, untilOf := range map[string]func(int) time.Time{
		"different": func(n int) time.Time { return now.Add(time.Duration(n) * time.Second) },
		"the same":  func(int) time.Time { return now.Add(time.Hour) },
	} {
		of := delays(untilOf)
		if name == "different" {
			for n, delay := range of {
				if want := share(float64(n) / calls); (delay - want).Abs() > all/5 { // 256 calls are a sample
					t.Errorf("call %d of %d retries after %s, want about %s", n, calls, delay, want)
				}
			}
		}
		slices.Sort(of)
		for _, tenth := range []int{1, 5, 9} {
			if at, want := of[calls*tenth/10], share(float64(tenth)/10); (at - want).Abs() > all/10 {
				t.Errorf("times that are %s: %d tenths of the calls retry within %s, want %s", name, tenth, at, want)
			}
		}
	}
	for _, delay := range delays(func(int) time.Time { return time.Time{} }) {
		if delay != all {
			t.Fatalf("a call without a time retries after %s, want %s", delay, all)
		}
	}
}
