package responder

import (
	"context"
	"net/netip"
	"runtime"
	"sync"
	"time"

	"github.com/brevet-pki/brevet/fair"
)

// maxWaiting is the maximum number of requests that wait in one signQueue. Further requests get tryLater.
const maxWaiting = 256

// A signQueue limits how many responses are signed at the same time, and how many requests wait for that. There is one
// queue for responses that will be cached, and one for others. A flood of one kind therefore does not stop the other
// kind. The limits also leave processors for responses from the cache, because one P-256 signature takes as long as
// several of these.
//
// If a slot is free, the caller signs in it. If callers are waiting when a slot becomes free, a new goroutine signs for
// all of them, one after the other. Passing the slot from caller to caller would be slower: the slot would be idle half
// of the time, until the next caller wakes up.
//
// The queue serves hosts in turn. A host that sends too many requests delays only itself.
type signQueue struct {
	mu    sync.Mutex
	queue *fair.Queue[netip.Addr, *signJob]
}

// A signJob is a request that waits in a signQueue.
type signJob struct {
	sign      func()
	done      chan struct{} // closed when sign has returned, or when the job was displaced
	displaced bool          // by a job of a host without waiting jobs; set before done is closed
	panicked  any           // value of sign's panic, set before done is closed; do then panics with it
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

// do calls sign in a slot, for a host, and returns true. If too many requests are waiting, if a request of another host
// displaces this one (fair.Queue.Displace), or if ctx ends first, it returns false without calling sign.
func (b *signQueue) do(ctx context.Context, host netip.Addr, sign func()) bool {
	b.mu.Lock()
	if b.queue.Begin(host) {
		b.mu.Unlock()
		defer b.release(host)
		sign()
		return true
	}
	t := &signJob{sign: sign, done: make(chan struct{})}
	if last, ok := b.queue.Displace(host, time.Time{}); ok {
		last.displaced = true
		close(last.done)
	}
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
		<-t.done // too late: sign is already running
	}
	if t.displaced {
		return false
	}
	if t.panicked != nil {
		panic(t.panicked) //nolint:forbidigo // panics as if sign had run in the caller's goroutine
	}
	return true
}

// withdraw removes a waiting job from the queue. It returns false if the job has already started.
func (b *signQueue) withdraw(waits *fair.Item[netip.Addr, *signJob]) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.queue.Withdraw(waits)
}

// release frees the slot of a host. If jobs are waiting, it starts a goroutine that runs them in the slot.
func (b *signQueue) release(host netip.Addr) {
	if host, t, waits := b.next(host); waits {
		go b.runJobs(host, t)
	}
}

// runJobs runs a job and then the waiting jobs, until there are none.
func (b *signQueue) runJobs(host netip.Addr, t *signJob) {
	for waits := true; waits; host, t, waits = b.next(host) {
		t.run()
	}
}

// next ends a job of a host, and returns the next job for its slot. It returns false if no job is waiting.
func (b *signQueue) next(host netip.Addr) (netip.Addr, *signJob, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.queue.End(host)
	return b.queue.Next()
}

// hostOf returns the host of a request's RemoteAddr. It returns the zero Addr if the address does not parse.
func hostOf(remote string) netip.Addr {
	at, _ := netip.ParseAddrPort(remote) // clients with malformed addresses share the zero Addr
	return fair.Host(at.Addr())
}
