// Package admission decides which of the calls that a server could work on it works on now: few at once, the others in a
// queue of bounded length that is fair between sources, and no source above its rate.
//
// It refuses what does not fit, at once, with a pki.Refusal and the time to come back at (google.rpc.RetryInfo). It
// knows nothing of what a call does.
package admission

import (
	"container/list"
	"context"
	"sync"
	"time"
)

// waitMost is how long a call waits for its turn, at most. Whoever waited longer would be answered when it has given up.
const waitMost = 5 * time.Second

// Size is how much a Lane takes.
type Size struct {
	Slots int // calls at work at once
	Each  int // of one source, at most
	Queue int // calls that wait
}

// Lane has a bounded number of calls at work, and others wait for their turn. Sources that wait are served one call each,
// round and round, so how many calls a source sends does not change how often it is served. It is safe for concurrent
// use.
//
// A source may have as many calls wait as there is room left for others. One that floods the lane gets half of the queue
// so, two get a third each, and there is room for somebody new as long as there are fewer sources than places.
type Lane struct {
	size Size
	what string // the calls, for a person

	mu      sync.Mutex
	working int
	waiting int
	refused uint64
	sources map[Source]*queue // those with calls at work or waiting, and no others
	turns   list.List         // of *queue: those with a call that waits and may go to work
	pace    pace
}

// queue is the calls of one source.
type queue struct {
	source  Source
	working int
	waiting list.List     // of *waiter
	turn    *list.Element // its place in Lane.turns; nil where it has none
}

// waiter is a call that waits.
type waiter struct {
	place *list.Element // in queue.waiting; nil once it was let in
	in    chan struct{} // closed then
}

// NewLane returns a Lane for calls that a person knows as what, in the plural.
func NewLane(what string, s Size) *Lane {
	return &Lane{what: what, size: s, sources: map[Source]*queue{}, pace: pace{interval: paceGuess}}
}

// Enter returns when the call may go to work, and what has to be called when its work is over; or why it may not. It
// waits no longer than ctx.
func (l *Lane) Enter(ctx context.Context, from Source) (leave func(), err error) {
	l.mu.Lock()
	q := l.sources[from]
	if q == nil {
		q = &queue{source: from}
		l.sources[from] = q
	}
	leave = func() { l.leave(q) }
	if l.working < l.size.Slots && l.mayWork(q) && q.waiting.Len() == 0 {
		l.begin(q)
		l.mu.Unlock()
		return leave, nil
	}
	if q.waiting.Len() >= l.size.Queue-l.waiting {
		defer l.mu.Unlock()
		defer l.forget(q)
		return nil, l.refuse(q)
	}
	w := &waiter{in: make(chan struct{})}
	w.place = q.waiting.PushBack(w)
	l.waiting++
	l.line(q)
	l.mu.Unlock()
	if err := l.wait(ctx, q, w); err != nil {
		return nil, err
	}
	return leave, nil
}

// wait returns nil when the waiter was let in.
func (l *Lane) wait(ctx context.Context, q *queue, w *waiter) error {
	enough := time.NewTimer(waitMost)
	defer enough.Stop()
	select {
	case <-w.in:
		return nil
	case <-ctx.Done():
	case <-enough.C:
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if w.place == nil { // at the same moment
		return nil
	}
	q.waiting.Remove(w.place)
	l.waiting--
	if q.waiting.Len() == 0 && q.turn != nil {
		l.turns.Remove(q.turn)
		q.turn = nil
	}
	defer l.forget(q)
	if err := ctx.Err(); err != nil {
		return err
	}
	return l.refuse(q)
}

// leave ends a call's work, and lets in who is next.
func (l *Lane) leave(q *queue) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.working--
	q.working--
	l.pace.left(time.Now(), l.waiting > 0)
	l.line(q)
	for l.working < l.size.Slots && l.turns.Len() > 0 {
		l.next()
	}
	l.forget(q)
}

// next lets in the first call of the source whose turn it is, which then goes behind the others.
func (l *Lane) next() {
	q := l.turns.Remove(l.turns.Front()).(*queue)
	q.turn = nil
	w := q.waiting.Remove(q.waiting.Front()).(*waiter)
	w.place = nil
	l.waiting--
	l.begin(q)
	close(w.in)
	l.line(q)
}

func (l *Lane) begin(q *queue) {
	l.working++
	q.working++
}

func (l *Lane) mayWork(q *queue) bool { return q.working < l.size.Each }

// line puts a source in line where it has a call that may go to work.
func (l *Lane) line(q *queue) {
	if q.turn == nil && q.waiting.Len() > 0 && l.mayWork(q) {
		q.turn = l.turns.PushBack(q)
	}
}

// forget keeps what is remembered as small as what is going on.
func (l *Lane) forget(q *queue) {
	if q.working == 0 && q.waiting.Len() == 0 {
		delete(l.sources, q.source)
	}
}

// refuse turns a call of a source away. One whose own calls fill the room that it may have is told how long the queue
// takes; one that found no room at all gets an appointment behind all who got one before.
func (l *Lane) refuse(q *queue) error {
	l.refused++
	now := time.Now()
	if q.waiting.Len() > 0 {
		return busy(l.what, l.waiting, l.pace.queue(now, l.waiting, l.size.Slots))
	}
	return busy(l.what, l.waiting, l.pace.appointment(now, l.waiting, l.size.Slots))
}

// Load is what goes on in a Lane.
type Load struct {
	Working, Waiting int
	Refused          uint64 // since it was made
}

// Load returns it.
func (l *Lane) Load() Load {
	l.mu.Lock()
	defer l.mu.Unlock()
	return Load{l.working, l.waiting, l.refused}
}

// Slots is how many calls can be at work at once.
func (l *Lane) Slots() int { return l.size.Slots }
