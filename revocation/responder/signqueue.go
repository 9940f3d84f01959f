package responder

import (
	"context"
	"net/netip"
	"runtime"
	"sync"

	"github.com/brevet-pki/brevet/fair"
)

// maxWaiting is the maximum number of requests that wait in one signQueue. Further ones get tryLater.
const maxWaiting = 256

// A signQueue limits how many responses are signed at a time, and how many requests wait for that. There is one queue
// for responses that are cached and one for the others, so that a flood of one kind does not stop the other. Together
// they leave processors for responses from the cache: one P-256 signature takes as long as several of those.
//
// A caller that finds a free slot signs in it. A caller that releases a slot while others wait starts a goroutine that
// signs for all of them, one after the other. If the slot went from caller to caller, it would be idle for half of the
// time, until the next caller wakes up.
//
// The queue serves hosts in turn: a host with more requests than there is time for delays only its own.
type signQueue struct {
	mu    sync.Mutex
	queue *fair.Queue[netip.Addr, *signJob]
}

// A signJob is a request that waits in a signQueue.
type signJob struct {
	sign     func()
	done     chan struct{} // closed after sign has returned
	panicked any           // set before done is closed; the caller of do panics with it
}

// run calls sign and captures its panic.
func (t *signJob) run() {
	defer close(t.done)
	defer func() { t.panicked = recover() }()
	t.sign()
}

// maxSigning returns the number of slots of a signQueue: a quarter of the processors, and at least one.
func maxSigning() int { return max(1, runtime.GOMAXPROCS(0)/4) }

func newSignQueue(places int) *signQueue {
	size := fair.Size{Slots: places, Each: places, Queue: maxWaiting}
	return &signQueue{queue: fair.NewQueue[netip.Addr, *signJob](size)}
}

// do calls sign in a slot for a host, and reports whether it did. It returns false if too many requests wait, or if ctx
// ends first.
func (b *signQueue) do(ctx context.Context, host netip.Addr, sign func()) bool {
	b.mu.Lock()
	if b.queue.Begin(host) {
		b.mu.Unlock()
		defer b.release(host)
		sign()
		return true
	}
	t := &signJob{sign: sign, done: make(chan struct{})}
	waits := b.queue.Wait(host, t)
	b.mu.Unlock()
	if waits == nil {
		return false
	}
	select {
	case <-t.done:
	case <-ctx.Done():
		if b.withdraw(waits) {
			return false
		}
		<-t.done // sign is already running
	}
	if t.panicked != nil {
		panic(t.panicked) //nolint:forbidigo // the caller's own panic, as if sign had run in its goroutine
	}
	return true
}

// withdraw removes a job from the queue, and reports whether it was still waiting.
func (b *signQueue) withdraw(waits *fair.Item[netip.Addr, *signJob]) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.queue.Withdraw(waits)
}

// release frees a host's slot, or starts a goroutine that serves the waiting jobs.
func (b *signQueue) release(host netip.Addr) {
	if host, t, waits := b.next(host); waits {
		go b.runJobs(host, t)
	}
}

// runJobs runs the waiting jobs until there are none.
func (b *signQueue) runJobs(host netip.Addr, t *signJob) {
	for waits := true; waits; host, t, waits = b.next(host) {
		t.run()
	}
}

// next ends a job of a host and returns the next job for its slot, or false if no job waits.
func (b *signQueue) next(host netip.Addr) (netip.Addr, *signJob, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.queue.End(host)
	return b.queue.Next()
}

// hostOf returns the host of a remote address of net/http, or the zero Addr if it does not parse.
func hostOf(remote string) netip.Addr {
	at, _ := netip.ParseAddrPort(remote) // on an error all such clients share the zero address
	return fair.Host(at.Addr())
}
