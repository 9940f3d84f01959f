package admission

import (
	"sync"
	"time"
)

// FairLimit limits how many things of one kind are open at a time, in total and for each source. A source may open one
// more only while it has fewer open than there are free slots. A single source therefore gets half of the slots at
// most. FairLimit is safe for concurrent use.
type FairLimit struct {
	what string // name of the things in messages, in the plural
	max  int

	mu   sync.Mutex
	open int
	of   map[Source]int // number of open things of each source that has any
}

// NewFairLimit returns a FairLimit for at most max things. what names them in messages, in the plural.
func NewFairLimit(what string, max int) *FairLimit {
	return &FairLimit{what: what, max: max, of: map[Source]int{}}
}

// Acquire counts one more open thing of a source, or refuses it. Each successful Acquire needs one Release.
func (s *FairLimit) Acquire(from Source) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.of[from] >= s.max-s.open {
		return overloaded(s.what, s.open, time.Second)
	}
	s.open++
	s.of[from]++
	return nil
}

// Release undoes one Acquire.
func (s *FairLimit) Release(from Source) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.open--
	if s.of[from]--; s.of[from] == 0 {
		delete(s.of, from)
	}
}
