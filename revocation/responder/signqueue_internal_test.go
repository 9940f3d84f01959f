package responder

import (
	"context"
	"errors"
	"net/netip"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
)

// one is the host of callers that are not told apart. Of one host half of what may wait does.
var one = netip.MustParseAddr("192.0.2.1")

const halfWaiting = maxWaiting / 2

// crowd has n callers wait in a budget of one place, which is taken until the returned function is called.
func crowd(t *testing.T, b *budget, n int, sign func(n int)) (begin func(), all *sync.WaitGroup) {
	t.Helper()
	all = &sync.WaitGroup{}
	gate, taken := make(chan struct{}), make(chan struct{})
	all.Go(func() { b.do(t.Context(), one, func() { close(taken); <-gate }) })
	<-taken
	for i := range n {
		all.Go(func() {
			defer func() { _ = recover() }() // as net/http does
			if !b.do(t.Context(), one, func() { sign(i) }) {
				t.Errorf("caller %d of %d is turned away", i, n)
			}
		})
		for b.length() != i+1 { // in this order
			runtime.Gosched()
		}
	}
	return func() { close(gate) }, all
}

// rest waits until all places are free, which is a moment after the last caller was told; the test ends if they never are.
func (b *budget) rest() {
	for {
		b.mu.Lock()
		free := b.queue.Working() == 0 && b.queue.Waiting() == 0
		b.mu.Unlock()
		if free {
			return
		}
		runtime.Gosched()
	}
}

func TestTurnsAreTakenInOrderAndOneAtATime(t *testing.T) {
	b := newBudget(1)
	var at atomic.Int64
	var order []int
	begin, all := crowd(t, b, halfWaiting, func(n int) {
		if at.Add(1) != 1 {
			t.Error("two sign at a time in one place")
		}
		order = append(order, n)
		at.Add(-1)
	})
	if b.do(t.Context(), one, func() { t.Error("it is signed") }) {
		t.Error("one more than may wait has a place")
	}
	begin()
	all.Wait()
	for i, n := range order {
		if i != n {
			t.Fatalf("the order is %v", order)
		}
	}
	if len(order) != halfWaiting {
		t.Errorf("%d of %d took their turns", len(order), halfWaiting)
	}
	b.rest()
}

// TestAPanicIsItsCallersAlone has every third signature fail as no error does.
func TestAPanicIsItsCallersAlone(t *testing.T) {
	b := newBudget(1)
	var signed atomic.Int64
	begin, all := crowd(t, b, 30, func(n int) {
		if n%3 == 0 {
			panic(errors.New("planted"))
		}
		signed.Add(1)
	})
	begin()
	all.Wait()
	if signed.Load() != 20 {
		t.Errorf("%d of 20 signed", signed.Load())
	}
	b.rest()
	defer func() {
		if recover() == nil {
			t.Error("the panic of who signs at once is lost")
		}
		if !b.do(t.Context(), one, func() {}) || b.queue.Working() != 0 {
			t.Error("it has taken the place with it")
		}
	}()
	b.do(t.Context(), one, func() { panic("planted") })
}

// TestATurnIsTakenOrWithdrawn has callers go while their turns come.
func TestATurnIsTakenOrWithdrawn(t *testing.T) {
	b := newBudget(2)
	var signed, told atomic.Int64
	var all sync.WaitGroup
	for range 200 {
		ctx, cancel := context.WithCancel(t.Context())
		all.Go(func() {
			if b.do(ctx, one, func() { signed.Add(1); runtime.Gosched() }) {
				told.Add(1)
			}
		})
		all.Go(cancel)
	}
	all.Wait()
	if signed.Load() != told.Load() {
		t.Errorf("%d signed, and %d were told so", signed.Load(), told.Load())
	}
	b.rest()
}

// TestAHostThatAsksTooMuchWaitsBehindItself has a host fill what it may, and another one ask after it.
func TestAHostThatAsksTooMuchWaitsBehindItself(t *testing.T) {
	b := newBudget(1)
	var order []int
	begin, all := crowd(t, b, halfWaiting, func(n int) { order = append(order, n) })
	if b.do(t.Context(), one, func() {}) {
		t.Error("it has more waiting than half of what may wait")
	}
	const other = -1
	for range 2 {
		all.Go(func() {
			if !b.do(t.Context(), netip.MustParseAddr("192.0.2.2"), func() { order = append(order, other) }) {
				t.Error("another host is turned away")
			}
		})
	}
	for b.length() != halfWaiting+2 {
		runtime.Gosched()
	}
	begin()
	all.Wait()
	if len(order) != halfWaiting+2 || order[0] != other || order[2] != other {
		t.Errorf("the other host's turns came in the order %v", order)
	}
	b.rest()
}
