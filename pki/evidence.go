package pki

import "fmt"

// EvidenceKind is a kind of evidence. Evidence proves which identity a caller may enroll.
type EvidenceKind uint8

// The kinds of evidence. Each kind has its own authenticator. Evidence of one kind is never accepted as another.
const (
	EvidenceToken EvidenceKind = iota + 1 // the 32 bytes of an enrollment token's secret
)

// evidenceNames are the names of the kinds, in their order from 1 on. Actors have them as prefixes.
var evidenceNames = []string{"token"}

// EvidenceKinds returns all kinds.
func EvidenceKinds() []EvidenceKind {
	kinds := make([]EvidenceKind, len(evidenceNames))
	for i := range kinds {
		kinds[i] = EvidenceKind(i + 1)
	}
	return kinds
}

// String returns the kind's name.
func (k EvidenceKind) String() string {
	if k == 0 || int(k) > len(evidenceNames) {
		return fmt.Sprintf("evidence(%d)", uint8(k))
	}
	return evidenceNames[k-1]
}

// Evidence is one piece of evidence. It formats as its kind alone, to keep secrets out of logs.
type Evidence struct {
	Kind  EvidenceKind
	Value []byte // in the encoding of the kind's authenticator
}

// Format hides the value from every verb of fmt.
func (e Evidence) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte("[" + e.Kind.String() + "]")) }

// MarshalText returns the kind, so that JSON and structured logs do not show the value either.
func (e Evidence) MarshalText() ([]byte, error) { return []byte(e.Kind.String()), nil }

// Evidence returns the secret as evidence of kind [EvidenceToken].
func (s TokenSecret) Evidence() Evidence { return Evidence{EvidenceToken, s.Bytes()} }
