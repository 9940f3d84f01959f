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

// testHost is the host of most callers. One host may have at most half of the waiting requests.
var testHost = netip.MustParseAddr("192.0.2.1")

const halfWaiting = maxWaiting / 2

// enqueue occupies the only slot of a queue, and makes n callers wait in it. begin frees the slot.
func enqueue(t *testing.T, b *signQueue, n int, sign func(n int)) (begin func(), all *sync.WaitGroup) {
	t.Helper()
	all = &sync.WaitGroup{}
	gate, taken := make(chan struct{}), make(chan struct{})
	all.Go(func() { b.do(t.Context(), testHost, func() { close(taken); <-gate }) })
	<-taken
	for i := range n {
		all.Go(func() {
			defer func() { _ = recover() }() // like net/http
			if !b.do(t.Context(), testHost, func() { sign(i) }) {
				t.Errorf("caller %d of %d is refused", i, n)
			}
		})
		for b.length() != i+1 { // wait, so that the callers are in this order in the queue
			runtime.Gosched()
		}
	}
	return func() { close(gate) }, all
}

// waitIdle waits until all slots are free. That is shortly after the last caller has returned.
func (b *signQueue) waitIdle() {
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

func TestSignQueueRunsInOrderOneAtATime(t *testing.T) {
	b := newSignQueue(1)
	var at atomic.Int64
	var order []int
	begin, all := enqueue(t, b, halfWaiting, func(n int) {
		if at.Add(1) != 1 {
			t.Error("two jobs run at a time in one slot")
		}
		order = append(order, n)
		at.Add(-1)
	})
	if b.do(t.Context(), testHost, func() { t.Error("a refused job runs") }) {
		t.Error("the queue accepts more waiting jobs of one host than its share")
	}
	begin()
	all.Wait()
	for i, n := range order {
		if i != n {
			t.Fatalf("the order is %v", order)
		}
	}
	if len(order) != halfWaiting {
		t.Errorf("%d of %d jobs ran", len(order), halfWaiting)
	}
	b.waitIdle()
}

// TestPanicReachesOnlyItsCaller lets every third signature panic.
func TestPanicReachesOnlyItsCaller(t *testing.T) {
	b := newSignQueue(1)
	var signed atomic.Int64
	begin, all := enqueue(t, b, 30, func(n int) {
		if n%3 == 0 {
			panic(errors.New("planted"))
		}
		signed.Add(1)
	})
	begin()
	all.Wait()
	if signed.Load() != 20 {
		t.Errorf("%d of 20 other jobs ran", signed.Load())
	}
	b.waitIdle()
	defer func() {
		if recover() == nil {
			t.Error("the panic of a job that did not wait is lost")
		}
		if !b.do(t.Context(), testHost, func() {}) || b.queue.Working() != 0 {
			t.Error("the panic did not release its slot")
		}
	}()
	b.do(t.Context(), testHost, func() { panic("planted") })
}

// TestJobIsRunOrWithdrawn cancels callers while their jobs start. do must return true exactly for the jobs that ran.
func TestJobIsRunOrWithdrawn(t *testing.T) {
	b := newSignQueue(2)
	var signed, told atomic.Int64
	var all sync.WaitGroup
	for range 200 {
		ctx, cancel := context.WithCancel(t.Context())
		all.Go(func() {
			if b.do(ctx, testHost, func() { signed.Add(1); runtime.Gosched() }) {
				told.Add(1)
			}
		})
		all.Go(cancel)
	}
	all.Wait()
	if signed.Load() != told.Load() {
		t.Errorf("%d jobs ran, and do reported %d", signed.Load(), told.Load())
	}
	b.waitIdle()
}

// TestBusyHostDelaysOnlyItself fills one host's share of the queue. Then another host enqueues a request.
func TestBusyHostDelaysOnlyItself(t *testing.T) {
	b := newSignQueue(1)
	var order []int
	begin, all := enqueue(t, b, halfWaiting, func(n int) { order = append(order, n) })
	if b.do(t.Context(), testHost, func() {}) {
		t.Error("a host has more than half of the waiting jobs")
	}
	const other = -1
	for range 2 {
		all.Go(func() {
			if !b.do(t.Context(), netip.MustParseAddr("192.0.2.2"), func() { order = append(order, other) }) {
				t.Error("another host is refused")
			}
		})
	}
	for b.length() != halfWaiting+2 {
		runtime.Gosched()
	}
	begin()
	all.Wait()
	if len(order) != halfWaiting+2 || order[0] != other || order[2] != other {
		t.Errorf("the jobs ran in the order %v, want those of the other host first and third", order)
	}
	b.waitIdle()
}

// TestBusyHostsLeavePlaces fills the queue with the requests of some hosts. A request of another host then displaces one.
func TestBusyHostsLeavePlaces(t *testing.T) {
	b := newSignQueue(1)
	begin, all := enqueue(t, b, 0, nil)
	var refused, signed atomic.Int64
	call := func(host netip.Addr) {
		all.Go(func() {
			if !b.do(t.Context(), host, func() { signed.Add(1) }) {
				refused.Add(1)
			}
		})
	}
	for host := testHost.Next(); b.length() < maxWaiting; host = host.Next() {
		for n := 0; n < maxWaiting-b.length(); n++ {
			before := b.length()
			call(host)
			for b.length() == before {
				runtime.Gosched()
			}
		}
	}
	all.Go(func() {
		if !b.do(t.Context(), netip.MustParseAddr("2001:db8::"), func() {}) {
			t.Error("a host without requests is refused")
		}
	})
	for refused.Load() == 0 && !t.Failed() {
		runtime.Gosched()
	}
	begin()
	all.Wait()
	if refused.Load() != 1 || signed.Load() != maxWaiting-1 {
		t.Errorf("%d requests are refused, %d are signed", refused.Load(), signed.Load())
	}
	b.waitIdle()
}
