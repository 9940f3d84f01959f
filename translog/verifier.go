package translog

import "fmt"

// Verifier checks that records, added one by one, continue a log without a gap and with the right chain values. The
// zero value begins at the log's start. It is for one goroutine at a time.
type Verifier struct{ head Head }

// NewVerifier returns a Verifier that goes on from a head that is trusted already.
func NewVerifier(from Head) *Verifier { return &Verifier{head: from} }

// Add checks the next record. After a *ChainError the head is what it was before.
func (v *Verifier) Add(s Sequenced) error {
	due := v.head.Size + 1
	if s.Index != due {
		return &ChainError{Index: due, Detail: fmt.Sprintf("the record has index %d", s.Index)}
	}
	chain := Chain(v.head.Chain, s.Entry)
	if s.Chain != chain {
		return &ChainError{Index: due, Detail: fmt.Sprintf("its chain value is %s, and its entry gives %s", s.Chain, chain)}
	}
	v.head = Head{Size: due, Chain: chain}
	return nil
}

// Head returns the end of what has been verified.
func (v *Verifier) Head() Head { return v.head }
