package ra

import (
	"context"
	"slices"
	"sync"

	"github.com/brevet-pki/brevet/pki"
)

// keyedMutex has those who work on one identity do it one after the other, in the order in which they asked. So nobody who asks
// again and again, such as the holder of a spent token, keeps another from its turn. It is safe for concurrent use.
type keyedMutex struct {
	mu      sync.Mutex
	waiting map[pki.SPIFFEID][]chan struct{} // of each identity whose turn is taken; closed when the turn passes on
}

func newKeyedMutex() *keyedMutex { return &keyedMutex{waiting: map[pki.SPIFFEID][]chan struct{}{}} }

// take waits until it is the caller's turn, or until ctx ends, and returns what ends the turn.
func (t *keyedMutex) take(ctx context.Context, id pki.SPIFFEID) (done func(), err error) {
	done = func() { t.end(id) }
	t.mu.Lock()
	queue, taken := t.waiting[id]
	if !taken {
		t.waiting[id] = nil
		t.mu.Unlock()
		return done, nil
	}
	mine := make(chan struct{})
	t.waiting[id] = append(queue, mine)
	t.mu.Unlock()
	select {
	case <-mine:
		return done, nil
	case <-ctx.Done():
	}
	if !t.withdraw(id, mine) { // the turn came at the same moment
		done()
	}
	return nil, ctx.Err()
}

// withdraw takes a caller out of the queue, and reports whether it was still there.
func (t *keyedMutex) withdraw(id pki.SPIFFEID, mine chan struct{}) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	queue := t.waiting[id]
	at := slices.Index(queue, mine)
	if at < 0 {
		return false
	}
	t.waiting[id] = slices.Delete(queue, at, at+1)
	return true
}

// end passes the turn to who has waited longest.
func (t *keyedMutex) end(id pki.SPIFFEID) {
	t.mu.Lock()
	defer t.mu.Unlock()
	queue := t.waiting[id]
	if len(queue) == 0 {
		delete(t.waiting, id)
		return
	}
	close(queue[0])
	t.waiting[id] = queue[1:]
}
