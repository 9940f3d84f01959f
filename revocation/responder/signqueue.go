package responder

import (
	"context"
	"net/netip"
	"runtime"
	"sync"

	"github.com/brevet-pki/brevet/fair"
)

// maxWaiting is how many answers may wait to be signed in one budget. More are told to try later.
const maxWaiting = 256

// A budget bounds how many answers are signed at a time, and how many wait for that. There is one for answers that are
// kept and one for those that are not, so that a flood of one kind leaves the other its place, and both leave the
// processors to what needs no signature: a signature with P-256 takes the time of a few answers from memory.
//
// Who finds a free place signs in it. Who leaves it while others wait passes it to a goroutine that signs for all of them,
// one after the other: a place that is handed from caller to caller stands empty for half of the time, while the next one
// wakes up.
//
// Turns go round between hosts: one that asks for more than there is time for waits behind its own requests, and the others
// do not.
type budget struct {
	mu    sync.Mutex
	queue *fair.Queue[netip.Addr, *turn]
}

// A turn is what waits for its place.
type turn struct {
	sign     func()
	done     chan struct{} // closed when it has been signed
	panicked any           // before done; its caller goes on with it
}

func (t *turn) take() {
	defer close(t.done)
	defer func() { t.panicked = recover() }()
	t.sign()
}

// places is a quarter of the processors, and one at least.
func places() int { return max(1, runtime.GOMAXPROCS(0)/4) }

func newBudget(places int) *budget {
	size := fair.Size{Slots: places, Each: places, Queue: maxWaiting}
	return &budget{queue: fair.NewQueue[netip.Addr, *turn](size)}
}

// do signs in a place for a host, and reports whether there was one: not where too many wait, or ctx ends first.
func (b *budget) do(ctx context.Context, host netip.Addr, sign func()) bool {
	b.mu.Lock()
	if b.queue.Begin(host) {
		b.mu.Unlock()
		defer b.leave(host)
		sign()
		return true
	}
	t := &turn{sign: sign, done: make(chan struct{})}
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
		<-t.done // it is being signed
	}
	if t.panicked != nil {
		panic(t.panicked) //nolint:forbidigo // it is the caller's own, who meets it where it would without waiting
	}
	return true
}

// withdraw reports whether a turn had not come yet. It never does then.
func (b *budget) withdraw(waits *fair.Item[netip.Addr, *turn]) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.queue.Withdraw(waits)
}

// leave gives a host's place back, or passes it to those who wait.
func (b *budget) leave(host netip.Addr) {
	if host, t, waits := b.next(host); waits {
		go b.work(host, t)
	}
}

// work signs for those who wait until there are none.
func (b *budget) work(host netip.Addr, t *turn) {
	for waits := true; waits; host, t, waits = b.next(host) {
		t.take()
	}
}

// next ends a turn of a host in its place, and returns whose turn it is there now, if anybody waits.
func (b *budget) next(host netip.Addr) (netip.Addr, *turn, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.queue.End(host)
	return b.queue.Next()
}

// hostOf returns the host of an address as net/http has it; the zero one of what is no address.
func hostOf(remote string) netip.Addr {
	at, _ := netip.ParseAddrPort(remote) // the zero address is a host of its own
	return fair.Host(at.Addr())
}
