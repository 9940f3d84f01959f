package telemetry

import (
	"sync"
	"time"
)

// storeState records whether the store worked when it was last used.
type storeState struct {
	lastTry

	mu    sync.Mutex // held while the state changes
	stuck bool       // the store has failed by a cause that may not have passed when the lease is renewed
	count uint64     // number of failures
}

// succeed records a transaction that has become durable.
func (s *storeState) succeed(at time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stuck = false
	s.note(nil, at)
}

// fail records a failure. isStuck means that a renewed lease does not show that its cause has passed.
func (s *storeState) fail(err error, isStuck bool, at time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stuck = s.stuck || isStuck
	s.count++
	s.note(err, at)
}

// failures returns the number of failures until now.
func (s *storeState) failures() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.count
}

// renewed records a renewed lease. before is the number of failures when the renewal began.
func (s *storeState) renewed(before uint64, at time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.stuck && s.count == before {
		s.note(nil, at)
	}
}
