package admission

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/brevet-pki/brevet/pki"
)

// named returns the source of an identity.
func named(t testing.TB, name string) Source {
	t.Helper()
	id, err := pki.SPIFFEIDIn("fleet.example", name)
	if err != nil {
		t.Fatal(err)
	}
	return Identity(id, pki.KeyHash{})
}

// bench is a Queue whose calls run until the test ends them.
type bench struct {
	queue *Queue
	order chan Source // source of each call, in the order in which the calls started
	end   chan struct{}
	sent  []chan error // result of each call that was sent
}

func newBench(s Size) *bench {
	return &bench{queue: NewQueue("calls", s), order: make(chan Source, 10_000), end: make(chan struct{})}
}

// sendUntil is send for one call that is useless after a time.
func (b *bench) sendUntil(ctx context.Context, from Source, until time.Time) {
	b.calls(ctx, from, until, 1)
}

// send makes n calls of a source. Each one runs, waits or is refused before the next one begins.
func (b *bench) send(ctx context.Context, from Source, n int) { b.calls(ctx, from, time.Time{}, n) }

func (b *bench) calls(ctx context.Context, from Source, until time.Time, n int) {
	for range n {
		ended := make(chan error, 1)
		b.sent = append(b.sent, ended)
		go func() {
			leave, err := b.queue.AcquireUntil(ctx, from, until)
			if err == nil {
				b.order <- from
				<-b.end
				leave()
			}
			ended <- err
		}()
		synctest.Wait()
	}
}

// finish ends n calls, one after the other, and returns the sources of the calls that then started.
func (b *bench) finish(n int) (in []Source) {
	for range n {
		b.end <- struct{}{}
		synctest.Wait()
		for len(b.order) > 0 {
			in = append(in, <-b.order)
		}
	}
	return in
}

// endAll ends all calls, checks that the queue is empty, and returns how many calls were refused.
func (b *bench) endAll(t *testing.T) (refused int) {
	t.Helper()
	close(b.end)
	for _, ended := range b.sent {
		if err := <-ended; err != nil {
			refused++
		}
	}
	b.queue.mu.Lock()
	defer b.queue.mu.Unlock()
	if q := b.queue.queue; q.Sources()+q.Working()+q.Waiting() != 0 {
		t.Errorf("after all calls have ended, the queue has %d sources, %d running calls, %d waiting", q.Sources(), q.Working(), q.Waiting())
	}
	return refused
}

func TestLoudSourceIsServedLikeOthers(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newBench(Size{Slots: 2, Each: 2, Queue: 1000})
		loud := named(t, "loud")
		b.send(t.Context(), loud, 100) // before all others
		const others, calls = 4, 10
		for n := range others {
			b.send(t.Context(), named(t, fmt.Sprintf("quiet/%d", n)), calls)
		}
		for len(b.order) > 0 {
			<-b.order
		}
		in := b.finish((others + 1) * calls)
		served := map[Source]int{}
		for _, s := range in {
			served[s]++
		}
		if len(in) != (others+1)*calls || len(served) != others+1 || served[loud] != calls {
			t.Errorf("%d calls ran; the loud source got %[3]d of them, want %[2]d: %[4]v", len(in), calls, served[loud], served)
		}
		if rest := b.finish(5); !slices.Equal(rest, []Source{loud, loud, loud, loud, loud}) {
			t.Errorf("alone, the loud source is not served: %v", rest)
		}
		b.endAll(t)
	})
}

func TestSourceRunsAtMostItsShare(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newBench(Size{Slots: 10, Each: 1, Queue: 1000})
		one, other := named(t, "one"), named(t, "other")
		b.send(t.Context(), one, 20)
		b.send(t.Context(), other, 1)
		if load := b.queue.Load(); load.Working != 2 || load.Waiting != 19 || len(b.order) != 2 {
			t.Errorf("%+v, want one call of each source running, though there are ten slots", load)
		}
		b.finish(2)
		if load := b.queue.Load(); load.Working != 1 || load.Waiting != 18 {
			t.Errorf("%+v, want one more call of the first source", load)
		}
		b.endAll(t)
	})
}

func TestFloodLeavesRoomForOthers(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newBench(Size{Slots: 1, Each: 1, Queue: 100})
		for n, want := range []int{50, 75, 87, 93} { // each flooding source takes half of the places that are still free
			b.send(t.Context(), named(t, fmt.Sprintf("flood/%d", n)), 200)
			if load := b.queue.Load(); load.Working != 1 || load.Waiting < want-1 || load.Waiting > want+1 {
				t.Errorf("%+v with %d floods, want about %d waiting", load, n+1, want)
			}
		}
		before := b.queue.Load()
		b.send(t.Context(), named(t, "new"), 1)
		if after := b.queue.Load(); after.Waiting != before.Waiting+1 || after.Refused != before.Refused {
			t.Errorf("a new source is refused during four floods: %+v, %+v", before, after)
		}
		for n := range 200 {
			b.send(t.Context(), named(t, fmt.Sprintf("one/%d", n)), 1)
		}
		if load := b.queue.Load(); load.Waiting != 100 {
			t.Errorf("%+v, want no more than 100 to wait", load)
		}
		if refused := b.endAll(t); uint64(refused) != b.queue.Load().Refused || refused < 800 {
			t.Errorf("%d calls were refused, and %d counted", refused, b.queue.Load().Refused)
		}
	})
}

func TestCallWaitingTooLongIsRefused(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newBench(Size{Slots: 1, Each: 1, Queue: 100})
		busy, gone, waits := named(t, "busy"), named(t, "gone"), named(t, "waits")
		b.send(t.Context(), busy, 1)
		ctx, giveUp := context.WithCancel(t.Context())
		b.send(ctx, gone, 3)
		b.send(t.Context(), waits, 2)
		giveUp()
		synctest.Wait()
		for _, ended := range b.sent[1:4] {
			if err := <-ended; !errors.Is(err, context.Canceled) {
				t.Errorf("a canceled call got %v", err)
			}
		}
		time.Sleep(maxWait - time.Millisecond)
		if load := b.queue.Load(); load.Waiting != 2 {
			t.Errorf("%+v, want two waiting still", load)
		}
		time.Sleep(2 * time.Millisecond)
		for _, ended := range b.sent[4:] {
			err := <-ended
			if r, ok := pki.AsRefusal(err); !ok || r.Rule != pki.RuleOverloaded || pki.RetryAfter(err) <= 0 || !pki.IsTemporary(err) {
				t.Errorf("a call that waited too long got %v", err)
			}
		}
		b.sent = b.sent[:1]
		b.send(t.Context(), waits, 1)
		if in := b.finish(1); !slices.Equal(in, []Source{busy, waits}) {
			t.Errorf("%v ran, want the waiting call after those that gave up", in)
		}
		b.endAll(t)
	})
}

// TestQueueHoldsWhatCanStart checks that a queue holds as many calls as can start within maxWait, at the rate that it
// measures, and that a call with an earlier time still gets a place. A queue that does not know its rate holds all.
func TestQueueHoldsWhatCanStart(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const places, took, slots = 100, 250 * time.Millisecond, 2
		b := newBench(Size{Slots: slots, Each: 1, Queue: places})
		fill := func() int {
			for n := range places + slots + 10 {
				b.sendUntil(t.Context(), named(t, fmt.Sprintf("%d/%d", len(b.sent), n)), time.Now().Add(time.Hour))
			}
			return b.queue.Load().Waiting
		}
		if waiting := fill(); waiting != places {
			t.Errorf("at first %d calls wait, want %d", waiting, places)
		}
		for range 2 * averagedCalls {
			time.Sleep(took)
			b.finish(1)
			if b.queue.Load().Waiting < slots {
				fill()
			}
		}
		if waiting, can := fill(), int(maxWait/took); waiting != can {
			t.Errorf("%d calls wait, but %d can start in time", waiting, can)
		}
		before := len(b.sent)
		b.sendUntil(t.Context(), named(t, "urgent"), time.Now().Add(time.Minute))
		if len(b.sent[before]) > 0 {
			t.Errorf("a call with an earlier time is refused: %v", <-b.sent[before])
		}
		if in := b.finish(1); !slices.Contains(in, named(t, "urgent")) {
			t.Errorf("%v ran before the call with the earliest time", in)
		}
		b.endAll(t)
	})
}

// TestQueueOfSlowCallsHoldsItsSlots checks that a queue whose calls take longer than maxWait holds as many as it has slots.
func TestQueueOfSlowCallsHoldsItsSlots(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const slots = 3
		b := newBench(Size{Slots: slots, Each: 1, Queue: 100})
		fill := func() {
			for n := range 20 {
				b.send(t.Context(), named(t, fmt.Sprintf("%d/%d", len(b.sent), n)), 1)
			}
		}
		for range averagedCalls {
			fill()
			time.Sleep(maxWait - time.Second)
			b.finish(1)
		}
		time.Sleep(maxWait)
		fill()
		if load := b.queue.Load(); load.Waiting != slots {
			t.Errorf("%+v, want %d calls waiting", load, slots)
		}
		b.endAll(t)
	})
}

// TestLimitsHoldUnderConcurrency runs many calls at the same time, for the race detector, and checks the limits at each
// moment.
func TestLimitsHoldUnderConcurrency(t *testing.T) {
	t.Parallel()
	size := Size{Slots: 5, Each: 2, Queue: 40}
	l := NewQueue("calls", size)
	var all, worked atomic.Int64
	each := make([]atomic.Int64, 8)
	var group sync.WaitGroup
	for n := range 64 {
		from := named(t, fmt.Sprint(n%len(each)))
		group.Go(func() {
			for range 100 {
				ctx, cancel := context.WithTimeout(t.Context(), time.Duration(rand.IntN(2000))*time.Microsecond)
				leave, err := l.Acquire(ctx, from)
				if err == nil {
					if a, e := all.Add(1), each[n%len(each)].Add(1); a > int64(size.Slots) || e > int64(size.Each) {
						t.Errorf("%d calls run, %d of one source", a, e)
					}
					worked.Add(1)
					time.Sleep(10 * time.Microsecond)
					each[n%len(each)].Add(-1)
					all.Add(-1)
					leave()
				}
				cancel()
			}
		})
	}
	group.Wait()
	if l.queue.Sources() != 0 || l.Load().Working+l.Load().Waiting != 0 || worked.Load() == 0 {
		t.Errorf("after all calls have ended, the queue has %d sources and load %+v; %d calls ran", l.queue.Sources(), l.Load(), worked.Load())
	}
}

// TestEarlierTimesComeFirst checks that calls run in the order of their times, and that a call which a full queue cannot take
// displaces the last one, which is refused with a time for its retry.
func TestEarlierTimesComeFirst(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newBench(Size{Slots: 1, Each: 1, Queue: 3})
		now := time.Now()
		b.send(t.Context(), named(t, "running"), 1)
		for _, c := range []struct {
			name string
			left time.Duration
		}{{"b", 2 * time.Hour}, {"d", 4 * time.Hour}, {"c", 3 * time.Hour}, {"a", time.Hour}, {"e", 5 * time.Hour}} {
			b.sendUntil(t.Context(), named(t, c.name), now.Add(c.left))
		}
		for n, name := range map[int]string{2: "d", 5: "e"} { // displaced, and too late
			select {
			case err := <-b.sent[n]:
				if r, ok := pki.AsRefusal(err); !ok || r.Rule != pki.RuleOverloaded || pki.RetryAfter(err) == 0 {
					t.Errorf("%s ended with %v", name, err)
				}
				b.sent[n] <- err
			default:
				t.Errorf("%s was not refused", name)
			}
		}
		got := b.finish(4)
		if want := []Source{named(t, "running"), named(t, "a"), named(t, "b"), named(t, "c")}; !slices.Equal(got, want) {
			t.Errorf("the calls ran in the order %v, want %v", got, want)
		}
		if refused := b.endAll(t); refused != 2 {
			t.Errorf("%d calls were refused", refused)
		}
	})
}

// TestUrgentFloodLeavesShares checks that callers whose certificates expire soonest cannot keep others from the queue, nor from
// running, however many calls they make.
func TestUrgentFloodLeavesShares(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const floods, others = 12, 50
		b := newBench(Size{Slots: 4, Each: 1, Queue: 100})
		now := time.Now()
		flood := func(calls int) {
			for n := range floods {
				b.calls(t.Context(), named(t, fmt.Sprintf("flood/%d", n)), now.Add(time.Minute), calls)
			}
		}
		flood(60)
		var want []Source
		before := b.queue.Load()
		for n := range others {
			from := named(t, fmt.Sprintf("other/%d", n))
			b.sendUntil(t.Context(), from, now.Add(time.Hour-time.Duration(n)*time.Minute/2))
			want = append(want, from)
		}
		slices.Reverse(want) // in the order of their times
		for n, ended := range b.sent[floods*60:] {
			if len(ended) > 0 {
				t.Errorf("call %d of the others is refused", n)
			}
		}
		if after := b.queue.Load(); before.Waiting != 100 || after.Waiting != 100 || after.Refused != before.Refused+others {
			t.Errorf("before the others came: %+v, afterwards %+v", before, after)
		}
		var ran []Source
		for range 2*floods + others {
			for _, from := range b.finish(1) {
				if slices.Contains(want, from) {
					ran = append(ran, from)
				}
			}
			flood(1)
		}
		if !slices.Equal(ran, want) {
			t.Errorf("%d of %d others ran: %v", len(ran), others, ran)
		}
		b.endAll(t)
	})
}
