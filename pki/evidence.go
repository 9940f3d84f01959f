package pki

import "fmt"

// EvidenceKind is a kind of evidence: of what proves which identity a caller can enroll.
type EvidenceKind uint8

// The kinds of evidence. Each has an authenticator of its own, and evidence of one kind is never accepted as another.
const (
	EvidenceToken EvidenceKind = iota + 1 // the 32 bytes of an enrollment token's secret
)

// String returns the kind's name.
func (k EvidenceKind) String() string {
	if k == EvidenceToken {
		return "token"
	}
	return fmt.Sprintf("evidence(%d)", uint8(k))
}

// Evidence is one piece of evidence. It formats as its kind alone, so that no secret reaches a log by accident.
type Evidence struct {
	Kind  EvidenceKind
	Value []byte // as the kind's authenticator reads it
}

// Format hides the value from every verb of fmt.
func (e Evidence) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte("[" + e.Kind.String() + "]")) }

// MarshalText returns the kind, so that JSON and structured logs do not show the value either.
func (e Evidence) MarshalText() ([]byte, error) { return []byte(e.Kind.String()), nil }

// Evidence returns the secret as the evidence that it is.
func (s TokenSecret) Evidence() Evidence { return Evidence{EvidenceToken, s.Bytes()} }
