package responder

import (
	"context"
	"runtime"
	"slices"
	"sync"
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
type budget struct {
	places int

	mu      sync.Mutex // guards what follows
	taken   int        // of the places
	waiting []*turn
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

// newBudget makes a budget of a quarter of the processors, and one at least.
func newBudget() *budget { return &budget{places: max(1, runtime.GOMAXPROCS(0)/4)} }

// do signs in a place, and reports whether there was one: not where too many wait, or ctx ends first.
func (b *budget) do(ctx context.Context, sign func()) bool {
	b.mu.Lock()
	if b.taken < b.places {
		b.taken++
		b.mu.Unlock()
		defer b.leave()
		sign()
		return true
	}
	if len(b.waiting) == maxWaiting {
		b.mu.Unlock()
		return false
	}
	t := &turn{sign: sign, done: make(chan struct{})}
	b.waiting = append(b.waiting, t)
	b.mu.Unlock()
	select {
	case <-t.done:
	case <-ctx.Done():
		if b.withdraw(t) {
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
func (b *budget) withdraw(t *turn) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	at := slices.Index(b.waiting, t)
	if at < 0 {
		return false
	}
	b.waiting = slices.Delete(b.waiting, at, at+1)
	return true
}

// leave gives a place back, or passes it to those who wait.
func (b *budget) leave() {
	if t := b.next(); t != nil {
		go b.work(t)
	}
}

// work signs for those who wait until there are none.
func (b *budget) work(t *turn) {
	for t != nil {
		t.take()
		t = b.next()
	}
}

// next is whose turn it is in a place; with nil the place is free again.
func (b *budget) next() *turn {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.waiting) == 0 {
		b.taken--
		return nil
	}
	t := b.waiting[0]
	b.waiting[0] = nil
	b.waiting = b.waiting[1:]
	return t
}
