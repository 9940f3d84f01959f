package admission

import (
	"sync"
	"time"
)

// Shares bounds how many things of one kind are open at once, and how many of them belong to one source. A source may
// have as many open as there are slots left for the others, so no source takes all of them. It is safe for concurrent use.
type Shares struct {
	what string // the things, for a person
	max  int

	mu   sync.Mutex
	open int
	of   map[Source]int // sources with any
}

// NewShares returns Shares of max things that a person knows as what, in the plural.
func NewShares(what string, max int) *Shares {
	return &Shares{what: what, max: max, of: map[Source]int{}}
}

// Take counts one more thing of a source, or refuses it. Each successful Take needs one Return.
func (s *Shares) Take(from Source) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.of[from] >= s.max-s.open {
		return busy(s.what, s.open, time.Second)
	}
	s.open++
	s.of[from]++
	return nil
}

// Return ends what a Take has counted.
func (s *Shares) Return(from Source) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.open--
	if s.of[from]--; s.of[from] == 0 {
		delete(s.of, from)
	}
}
