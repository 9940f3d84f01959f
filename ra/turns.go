package ra

import (
	"context"
	"sync"

	"github.com/brevet-pki/brevet/pki"
)

// turns has those who work on one identity do it one after the other. It is safe for concurrent use.
type turns struct {
	mu    sync.Mutex
	taken map[pki.SPIFFEID]chan struct{} // closed when the turn is over
}

func newTurns() *turns { return &turns{taken: map[pki.SPIFFEID]chan struct{}{}} }

// take waits until it is the caller's turn, or until ctx ends, and returns what ends the turn.
func (t *turns) take(ctx context.Context, id pki.SPIFFEID) (done func(), err error) {
	for {
		t.mu.Lock()
		before, busy := t.taken[id]
		if !busy {
			over := make(chan struct{})
			t.taken[id] = over
			t.mu.Unlock()
			return func() { t.end(id, over) }, nil
		}
		t.mu.Unlock()
		select {
		case <-before:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func (t *turns) end(id pki.SPIFFEID, over chan struct{}) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.taken, id)
	close(over)
}
