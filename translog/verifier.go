package translog

import "fmt"

// Verifier verifies that records, added one at a time, continue a log without a gap and with correct chain values. The
// zero value expects the first record of a log. It must be used by one goroutine at a time.
type Verifier struct{ head Head }

// NewVerifier returns a Verifier that continues after a trusted head.
func NewVerifier(from Head) *Verifier { return &Verifier{head: from} }

// Add verifies the next record. After a [*ChainError] the head is unchanged.
func (v *Verifier) Add(s Sequenced) error {
	due := v.head.Size + 1
	if s.Index != due {
		return &ChainError{Index: due, Detail: fmt.Sprintf("the record has index %d", s.Index)}
	}
	chain := Chain(v.head.Chain, s.Entry)
	if s.Chain != chain {
		return &ChainError{Index: due, Detail: fmt.Sprintf("its chain value is %s instead of %s", s.Chain, chain)}
	}
	v.head = Head{Size: due, Chain: chain}
	return nil
}

// Head returns the head after the last verified record.
func (v *Verifier) Head() Head { return v.head }
