package responder

import (
	"context"
	"runtime"
	"sync/atomic"
)

// maxWaiting is how many answers may wait to be signed in one budget. More are told to try later.
const maxWaiting = 256

// A budget bounds how many answers are signed at a time, and how many wait for that. There is one for answers that are
// kept and one for those that are not, so that a flood of one kind leaves the other its place, and both leave the
// processors to what needs no signature: a signature with P-256 takes the time of a few answers from memory.
type budget struct {
	working chan struct{}
	waiting atomic.Int64
}

// newBudget makes a budget of a quarter of the processors, and one at least.
func newBudget() *budget {
	return &budget{working: make(chan struct{}, max(1, runtime.GOMAXPROCS(0)/4))}
}

// enter waits for a place, and reports whether there is one: not where too many wait, or ctx ends first.
func (b *budget) enter(ctx context.Context) bool {
	select {
	case b.working <- struct{}{}:
		return true
	default:
	}
	defer b.waiting.Add(-1)
	if b.waiting.Add(1) > maxWaiting {
		return false
	}
	select {
	case b.working <- struct{}{}:
		return true
	case <-ctx.Done():
		return false
	}
}

// leave gives the place back.
func (b *budget) leave() { <-b.working }
