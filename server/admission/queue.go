// Package admission limits the load of a server. A [Queue] limits how many calls run at a time and how many wait,
// fairly between sources. A [FairLimit] limits how many things a source has open, and [Rates] how often it calls.
//
// A call over a limit is refused at once with a [pki.Refusal] and a time for the retry (google.rpc.RetryInfo). The
// package does not depend on what a call does.
package admission

import (
	"context"
	"sync"
	"time"

	"github.com/brevet-pki/brevet/fair"
)

// maxWait is the longest time that a call waits in a Queue. After that its client has probably timed out.
const maxWait = 5 * time.Second

// Size is the capacity of a Queue.
type Size = fair.Size

// Queue runs a bounded number of calls at a time; others wait in a fair.Queue. It is safe for concurrent use.
type Queue struct {
	size Size
	what string // name of the calls in messages, in the plural

	mu      sync.Mutex
	queue   *fair.Queue[Source, *waiter]
	refused uint64
	pace    pace
}

// waiter is a call that waits.
type waiter struct {
	ended     chan struct{} // closed when the call may run, or was displaced
	displaced bool          // by a call of another source; set before ended is closed
}

// NewQueue returns a Queue. what names its calls in messages, in the plural.
func NewQueue(what string, s Size) *Queue {
	return &Queue{what: what, size: s, queue: fair.NewQueue[Source, *waiter](s), pace: pace{interval: initialInterval}}
}

// Acquire waits until the call may run, and returns the function to call when it has ended. It returns an error if the
// queue is full, the wait is too long or ctx ends.
func (l *Queue) Acquire(ctx context.Context, from Source) (leave func(), err error) {
	return l.AcquireUntil(ctx, from, time.Time{})
}

// AcquireUntil is Acquire for a call that is useless after a time. Calls with an earlier time run first, but a source whose
// call ran runs the next one after those of the others. If the queue is full, a source without waiting calls displaces one of
// the source with the most, or one with a later time. The zero time is none.
func (l *Queue) AcquireUntil(ctx context.Context, from Source, until time.Time) (leave func(), err error) {
	leave = func() { l.release(from) }
	l.mu.Lock()
	if l.queue.Begin(from) {
		l.mu.Unlock()
		return leave, nil
	}
	w := &waiter{ended: make(chan struct{})}
	place := l.place(from, until, w)
	if place == nil {
		defer l.mu.Unlock()
		return nil, l.refuse(from, until)
	}
	l.mu.Unlock()
	enough := time.NewTimer(maxWait)
	defer enough.Stop()
	select {
	case <-w.ended:
	case <-ctx.Done():
	case <-enough.C:
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if !w.displaced && !l.queue.Withdraw(place) { // release has let the call run
		return leave, nil
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	return nil, l.refuse(from, until)
}

// place adds a call to the queue. It returns nil if the source, or the queue, is full. A source without waiting calls
// displaces another call from a full queue (fair.Queue.Displace). The queue is full when it has as many calls as can start
// within maxWait: a call behind them would hold memory in vain.
func (l *Queue) place(from Source, until time.Time, w *waiter) *fair.Item[Source, *waiter] {
	l.queue.Limit(min(l.size.Queue, max(l.size.Slots, l.pace.callsIn(maxWait))))
	if last, ok := l.queue.Displace(from, until); ok {
		last.displaced = true
		close(last.ended)
	}
	return l.queue.WaitUntil(from, until, w)
}

// release ends a call and lets the next ones run.
func (l *Queue) release(from Source) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.queue.End(from)
	l.pace.ended(time.Now(), l.queue.Waiting() > 0)
	for {
		_, w, ok := l.queue.Next()
		if !ok {
			return
		}
		close(w.ended)
	}
}

// refuse returns the refusal of a call. If the source has waiting calls, the retry delay is the estimated time until
// all waiting calls have started. Otherwise the call gets a time slot of its own, after those of earlier refused calls.
func (l *Queue) refuse(from Source, until time.Time) error {
	l.refused++
	now, waiting := time.Now(), l.queue.Waiting()
	if l.queue.WaitingOf(from) > 0 {
		return overloaded(l.what, waiting, l.pace.queueTime(now, waiting, l.size.Slots))
	}
	return overloaded(l.what, waiting, l.pace.reserve(now, until, waiting, l.size.Slots))
}

// Load is the current load of a Queue.
type Load struct {
	Working, Waiting int
	Refused          uint64 // since NewQueue
}

// Load returns the current load.
func (l *Queue) Load() Load {
	l.mu.Lock()
	defer l.mu.Unlock()
	return Load{l.queue.Working(), l.queue.Waiting(), l.refused}
}

// Slots returns how many calls can run at a time.
func (l *Queue) Slots() int { return l.size.Slots }
