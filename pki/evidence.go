package pki

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// EvidenceKind is a kind of evidence. Evidence proves which identity a caller may enroll.
type EvidenceKind uint8

// The kinds of evidence. Each kind has its own authenticator, which never accepts evidence of another kind.
const (
	EvidenceToken EvidenceKind = 1 // the 32 bytes of the secret in an enrollment token
	EvidenceX5C   EvidenceKind = 2 // a certificate of the manufacturer and a signature with its key, see X5CEvidence
	EvidenceTPM   EvidenceKind = 3 // the attestation of a key in a TPM 2.0, see attest.Response
	EvidenceJWT   EvidenceKind = 4 // a JSON Web Token in compact serialization, in ASCII
	// EvidenceRecovery is an expired certificate of the identity and a signature with its key, see RecoveryEvidence.
	EvidenceRecovery EvidenceKind = 5
	// EvidenceX5CTLS is a certificate of the manufacturer with which the device authenticated to a TLS server, see
	// X5CTLSEvidence.
	EvidenceX5CTLS EvidenceKind = 6
	// EvidenceACME is the ID of an ACME order, in 16 bytes. The server itself makes this evidence; no request has it.
	EvidenceACME EvidenceKind = 7
)

// evidenceNames are the names of the kinds. They are the prefixes of actors.
var evidenceNames = map[EvidenceKind]string{
	EvidenceToken: "token", EvidenceX5C: "x5c", EvidenceTPM: "tpm", EvidenceJWT: "jwt", EvidenceRecovery: "recovery",
	EvidenceX5CTLS: "x5c-tls", EvidenceACME: "acme",
}

// EvidenceKinds returns all kinds.
func EvidenceKinds() []EvidenceKind { return slices.Sorted(maps.Keys(evidenceNames)) }

// String returns the kind's name.
func (k EvidenceKind) String() string {
	if name, ok := evidenceNames[k]; ok {
		return name
	}
	return fmt.Sprintf("evidence(%d)", uint8(k))
}

// ParseEvidenceKind returns the kind with the name text.
func ParseEvidenceKind(text string) (EvidenceKind, error) {
	var names []string
	for _, k := range EvidenceKinds() {
		if k.String() == text {
			return k, nil
		}
		names = append(names, k.String())
	}
	return 0, fmt.Errorf("%.64q is not a kind of evidence: use %s", text, strings.Join(names, ", "))
}

// EvidenceSubject identifies who or what a piece of evidence is about, among all evidence of its kind. Each kind defines
// how its hash is computed: for instance, it is the SHA-256 of a TPM's endorsement key. An identity that was enrolled
// with evidence keeps its EvidenceSubject, so that no other device can enroll as the same identity. Subjects of x5c-tls
// have the kind x5c.
//
// EvidenceSubjects can be compared with ==. The zero value is no subject.
type EvidenceSubject struct {
	Kind EvidenceKind
	Hash [32]byte
}

// IsZero reports whether s is the zero value, which is no subject.
func (s EvidenceSubject) IsZero() bool { return s == EvidenceSubject{} }

// String formats the subject as the name of its kind, a colon, and the hash in hexadecimal. The zero value is empty.
func (s EvidenceSubject) String() string {
	if s.IsZero() {
		return ""
	}
	return s.Kind.String() + ":" + hex.EncodeToString(s.Hash[:])
}

// ParseEvidenceSubject parses the format of String. An empty text is the zero value.
func ParseEvidenceSubject(text string) (EvidenceSubject, error) {
	var s EvidenceSubject
	if text == "" {
		return s, nil
	}
	name, digits, _ := strings.Cut(text, ":")
	kind, err := ParseEvidenceKind(name)
	if err != nil {
		return s, err
	}
	if kind == EvidenceX5CTLS {
		return s, fmt.Errorf("subjects of the kind %s are those of the kind %s: write %s:…", kind, EvidenceX5C, EvidenceX5C)
	}
	hash, err := hex.DecodeString(digits)
	if err != nil || len(hash) != len(s.Hash) {
		return s, fmt.Errorf("%.100q does not identify a subject of evidence: give a kind, a colon, and 64 hexadecimal digits", text)
	}
	return EvidenceSubject{kind, [32]byte(hash)}, nil
}

// EvidenceRecord is what the log records about the evidence of a request, and the decision about it.
type EvidenceRecord struct {
	Pieces []EvidenceDigest
	Rule   string // of the policy; empty if no rule was necessary, or none matched
	Policy uint64 // revision of the policy; zero for none
	// Subject is the subject of the evidence in a refused request, to which an operator can tie the identity. It is zero
	// if the evidence has none or was not verified, and for certificates, whose guard has the subject.
	Subject EvidenceSubject
}

// EvidenceDigest is the kind and the SHA-256 of one piece of evidence. The digest is zero if the evidence is so short
// that it could be guessed from a digest.
type EvidenceDigest struct {
	Kind   EvidenceKind
	Digest [32]byte
}

// minDigested is the minimum size in bytes of evidence that is digested.
const minDigested = 32

// DigestEvidence returns the kind and the digest of a piece of evidence.
func DigestEvidence(e Evidence) EvidenceDigest {
	d := EvidenceDigest{Kind: e.Kind}
	if len(e.Value) >= minDigested {
		d.Digest = sha256.Sum256(e.Value)
	}
	return d
}

// Nonce is a random value that a server put into a challenge. The response to the challenge is accepted until ExpiresAt,
// and only once: the transaction that records the certificate consumes the nonce.
type Nonce struct {
	ID        [16]byte
	ExpiresAt time.Time // in whole milliseconds
}

// IsZero reports whether n is the zero value, which is no nonce.
func (n Nonce) IsZero() bool { return n == Nonce{} }

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
