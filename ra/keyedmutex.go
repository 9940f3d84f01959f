package ra

import (
	"context"
	"slices"
	"sync"

	"github.com/brevet-pki/brevet/pki"
)

// keyedMutex is a mutex for each identity. Callers get it in the order in which they called take, so that a client that
// repeats its requests quickly cannot starve another one. It is safe for concurrent use.
type keyedMutex struct {
	mu sync.Mutex
	// waiting has a key for each locked identity. The value is the queue of waiting callers. Closing the channel of a caller
	// passes the lock to it.
	waiting map[pki.SPIFFEID][]chan struct{}
}

func newKeyedMutex() *keyedMutex { return &keyedMutex{waiting: map[pki.SPIFFEID][]chan struct{}{}} }

// take locks id and returns a function that unlocks it. It fails if ctx ends first.
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
	if !t.withdraw(id, mine) { // the lock was passed to this caller at the same time
		done()
	}
	return nil, ctx.Err()
}

// withdraw removes a caller from the queue. It returns false if the caller is not in the queue any more.
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

// end passes the lock to the first caller in the queue, or unlocks id if the queue is empty.
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
