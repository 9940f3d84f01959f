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

// named is the source of an identity.
func named(t testing.TB, name string) Source {
	t.Helper()
	id, err := pki.SPIFFEIDIn("fleet.example", name)
	if err != nil {
		t.Fatal(err)
	}
	return Identity(id, pki.KeyHash{})
}

// bench is a Lane whose calls work until they are told to end.
type bench struct {
	lane  *Queue
	order chan Source // who was let in, in order
	end   chan struct{}
	sent  []chan error // how each call that was sent ended
}

func newBench(s Size) *bench {
	return &bench{lane: NewQueue("calls", s), order: make(chan Source, 10_000), end: make(chan struct{})}
}

// send makes n calls of a source, one after the other, so that each is at work, waits or is refused before the next one.
func (b *bench) send(ctx context.Context, from Source, n int) {
	for range n {
		ended := make(chan error, 1)
		b.sent = append(b.sent, ended)
		go func() {
			leave, err := b.lane.Enter(ctx, from)
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

// finish ends n calls, one after the other, and returns who was let in for them.
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

// over ends all calls, and checks that nothing of them is left.
func (b *bench) over(t *testing.T) (refused int) {
	t.Helper()
	close(b.end)
	for _, ended := range b.sent {
		if err := <-ended; err != nil {
			refused++
		}
	}
	b.lane.mu.Lock()
	defer b.lane.mu.Unlock()
	if q := b.lane.queue; q.Sources()+q.Working()+q.Waiting() != 0 {
		t.Errorf("when all is over, %d sources, %d at work, %d waiting are remembered", q.Sources(), q.Working(), q.Waiting())
	}
	return refused
}

func TestWhoSendsTenTimesAsMuchIsServedAsTheOthers(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newBench(Size{Slots: 2, Each: 2, Queue: 1000})
		loud := named(t, "loud")
		b.send(t.Context(), loud, 100) // before anybody else
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
			t.Errorf("of %d grants, with %d of each source to be had, the loud one got %d: %v", len(in), calls, served[loud], served)
		}
		if rest := b.finish(5); !slices.Equal(rest, []Source{loud, loud, loud, loud, loud}) {
			t.Errorf("alone, it is not served: %v", rest)
		}
		b.over(t)
	})
}

func TestASourceWorksOnNoMoreThanItsShare(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newBench(Size{Slots: 10, Each: 1, Queue: 1000})
		one, other := named(t, "one"), named(t, "other")
		b.send(t.Context(), one, 20)
		b.send(t.Context(), other, 1)
		if load := b.lane.Load(); load.Working != 2 || load.Waiting != 19 || len(b.order) != 2 {
			t.Errorf("%+v with one call of each source at work, and room for ten", load)
		}
		b.finish(2)
		if load := b.lane.Load(); load.Working != 1 || load.Waiting != 18 {
			t.Errorf("%+v, want the next of the source that has more", load)
		}
		b.over(t)
	})
}

func TestAFloodLeavesRoom(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newBench(Size{Slots: 1, Each: 1, Queue: 100})
		for n, want := range []int{50, 75, 87, 93} { // half of what is left, each
			b.send(t.Context(), named(t, fmt.Sprintf("flood/%d", n)), 200)
			if load := b.lane.Load(); load.Working != 1 || load.Waiting < want-1 || load.Waiting > want+1 {
				t.Errorf("%+v with %d floods, want about %d waiting", load, n+1, want)
			}
		}
		before := b.lane.Load()
		b.send(t.Context(), named(t, "new"), 1)
		if after := b.lane.Load(); after.Waiting != before.Waiting+1 || after.Refused != before.Refused {
			t.Errorf("there is no room for somebody new beside four floods: %+v, %+v", before, after)
		}
		for n := range 200 {
			b.send(t.Context(), named(t, fmt.Sprintf("one/%d", n)), 1)
		}
		if load := b.lane.Load(); load.Waiting != 100 {
			t.Errorf("%+v, want no more than 100 to wait", load)
		}
		if refused := b.over(t); uint64(refused) != b.lane.Load().Refused || refused < 800 {
			t.Errorf("%d calls were refused, and %d counted", refused, b.lane.Load().Refused)
		}
	})
}

func TestWhoWaitsTooLongIsSentAway(t *testing.T) {
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
				t.Errorf("who gave up got %v", err)
			}
		}
		time.Sleep(waitMost - time.Millisecond)
		if load := b.lane.Load(); load.Waiting != 2 {
			t.Errorf("%+v, want two waiting still", load)
		}
		time.Sleep(2 * time.Millisecond)
		for _, ended := range b.sent[4:] {
			err := <-ended
			if r, ok := pki.AsRefusal(err); !ok || r.Rule != pki.RuleOverloaded || pki.RetryAfter(err) <= 0 || !pki.IsTemporary(err) {
				t.Errorf("who waited too long got %v", err)
			}
		}
		b.sent = b.sent[:1]
		b.send(t.Context(), waits, 1)
		if in := b.finish(1); !slices.Equal(in, []Source{busy, waits}) {
			t.Errorf("%v were let in, want the one that waited, after those that left", in)
		}
		b.over(t)
	})
}

// Many at once, for the race detector, and for what has to hold at each moment.
func TestBoundsHoldAmongMany(t *testing.T) {
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
				leave, err := l.Enter(ctx, from)
				if err == nil {
					if a, e := all.Add(1), each[n%len(each)].Add(1); a > int64(size.Slots) || e > int64(size.Each) {
						t.Errorf("%d at work, %d of one source", a, e)
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
		t.Errorf("%d sources, %+v are left of %d calls", l.queue.Sources(), l.Load(), worked.Load())
	}
}
