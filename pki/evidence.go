package pki

import "fmt"

// EvidenceKind is a kind of evidence. Evidence proves which identity a caller may enroll.
type EvidenceKind uint8

// The kinds of evidence. Each kind has its own authenticator, which never accepts evidence of another kind.
const (
	EvidenceToken EvidenceKind = iota + 1 // the 32 bytes of the secret in an enrollment token
)

// evidenceNames are the names of the kinds, starting with kind 1. They are the prefixes of actors.
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

// Evidence is one piece of evidence. It formats as the name of its kind only, so that logs contain no secrets.
type Evidence struct {
	Kind  EvidenceKind
	Value []byte // encoded as the kind's authenticator expects it
}

// Format hides the value from every verb of fmt.
func (e Evidence) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte("[" + e.Kind.String() + "]")) }

// MarshalText returns the name of the kind, so that JSON and structured logs do not contain the value either.
func (e Evidence) MarshalText() ([]byte, error) { return []byte(e.Kind.String()), nil }

// Evidence returns the secret as evidence of kind [EvidenceToken].
func (s TokenSecret) Evidence() Evidence { return Evidence{EvidenceToken, s.Bytes()} }
