// Package admission decides which of the calls that a server could work on it works on now: few at once, the others in a
// queue of bounded length that is fair between sources, and no source above its rate.
//
// It refuses what does not fit, at once, with a pki.Refusal and the time to come back at (google.rpc.RetryInfo). It
// knows nothing of what a call does.
package admission

import (
	"context"
	"sync"
	"time"

	"github.com/brevet-pki/brevet/fair"
)

// waitMost is how long a call waits for its turn, at most. Whoever waited longer would be answered when it has given up.
const waitMost = 5 * time.Second

// Size is how much a Lane takes.
type Size = fair.Size

// Queue has a bounded number of calls at work, and others wait for their turn, in a fair.Queue. It is safe for concurrent use.
type Queue struct {
	size Size
	what string // the calls, for a person

	mu      sync.Mutex
	queue   *fair.Queue[Source, chan struct{}] // of calls that wait; each is closed when it is let in
	refused uint64
	pace    pace
}

// NewQueue returns a Lane for calls that a person knows as what, in the plural.
func NewQueue(what string, s Size) *Queue {
	return &Queue{what: what, size: s, queue: fair.NewQueue[Source, chan struct{}](s), pace: pace{interval: paceGuess}}
}

// Enter returns when the call may go to work, and what has to be called when its work is over; or why it may not. It
// waits no longer than ctx.
func (l *Queue) Enter(ctx context.Context, from Source) (leave func(), err error) {
	leave = func() { l.leave(from) }
	l.mu.Lock()
	if l.queue.Begin(from) {
		l.mu.Unlock()
		return leave, nil
	}
	in := make(chan struct{})
	w := l.queue.Wait(from, in)
	if w == nil {
		defer l.mu.Unlock()
		return nil, l.refuse(from)
	}
	l.mu.Unlock()
	enough := time.NewTimer(waitMost)
	defer enough.Stop()
	select {
	case <-in:
		return leave, nil
	case <-ctx.Done():
	case <-enough.C:
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.queue.Withdraw(w) { // it was let in at the same moment
		return leave, nil
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	return nil, l.refuse(from)
}

// leave ends a call's work, and lets in who is next.
func (l *Queue) leave(from Source) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.queue.End(from)
	l.pace.left(time.Now(), l.queue.Waiting() > 0)
	for {
		_, in, ok := l.queue.Next()
		if !ok {
			return
		}
		close(in)
	}
}

// refuse turns a call of a source away. One whose own calls fill the room that it may have is told how long the queue
// takes; one that found no room at all gets an appointment behind all who got one before.
func (l *Queue) refuse(from Source) error {
	l.refused++
	now, waiting := time.Now(), l.queue.Waiting()
	if l.queue.WaitingOf(from) > 0 {
		return busy(l.what, waiting, l.pace.queue(now, waiting, l.size.Slots))
	}
	return busy(l.what, waiting, l.pace.appointment(now, waiting, l.size.Slots))
}

// Load is what goes on in a Lane.
type Load struct {
	Working, Waiting int
	Refused          uint64 // since it was made
}

// Load returns it.
func (l *Queue) Load() Load {
	l.mu.Lock()
	defer l.mu.Unlock()
	return Load{l.queue.Working(), l.queue.Waiting(), l.refused}
}

// Slots is how many calls can be at work at once.
func (l *Queue) Slots() int { return l.size.Slots }
