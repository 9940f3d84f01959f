package admission

import (
	"testing"

	"github.com/brevet-pki/brevet/pki"
)

func TestSharesLeaveSlotsForOthers(t *testing.T) {
	t.Parallel()
	s := NewShares("calls", 8)
	take := func(from Source, attempts int) (taken int) {
		for range attempts {
			err := s.Take(from)
			if err == nil {
				taken++
				continue
			}
			if r, ok := pki.AsRefusal(err); !ok || r.Rule != pki.RuleOverloaded || pki.RetryAfter(err) <= 0 {
				t.Errorf("the refusal is %v, want %s with a delay", err, pki.RuleOverloaded)
			}
		}
		return taken
	}
	first, second := named(t, "first"), named(t, "second")
	if a, b := take(first, 8), take(second, 8); a != 4 || b != 2 {
		t.Errorf("the first source takes %d of 8 slots, the second %d; want 4 and 2", a, b)
	}
	for range 4 {
		s.Return(first)
	}
	if n := take(second, 8); n != 2 {
		t.Errorf("the second source takes %d more slots, want 2", n)
	}
	for range 4 {
		s.Return(second)
	}
	if s.open != 0 || len(s.of) != 0 {
		t.Errorf("when nothing is open, %d slots of %d sources are counted", s.open, len(s.of))
	}
}
