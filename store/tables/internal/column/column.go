// Package column encodes serial numbers, hashes, references, subjects of evidence, terms of enrollments, tokens and the
// items of intents as columns of the store's tables, and decodes them. It also decodes statuses and labels. Package engine
// encodes times.
package column

import (
	"database/sql"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/store/engine"
)

// DecodeStatus decodes the columns of a certificate's status.
func DecodeStatus(state, reason, version int64, revokedAt sql.NullInt64) pki.Status {
	return pki.Status{
		State: pki.State(state), Reason: pki.Reason(reason), //nolint:gosec // checked by the table
		Version: uint64(version), RevokedAt: engine.RestoreMillis(revokedAt), //nolint:gosec // checked by the table
	}
}

// DecodeLabels decodes the labels of an identity, which are JSON. It returns nil if text is nil.
func DecodeLabels(text []byte) (map[string]string, error) {
	if text == nil {
		return nil, nil //nolint:nilnil // there is no identity
	}
	var labels map[string]string
	err := json.Unmarshal(text, &labels)
	return labels, err
}

// EncodeRef encodes a reference as issuer and serial number. A zero reference is encoded as NULL.
func EncodeRef(ref pki.CertRef) any {
	if ref.IsZero() {
		return nil
	}
	return slices.Concat(ref.Issuer.Bytes(), ref.Serial.Bytes())
}

// DecodeRef decodes the result of [EncodeRef].
func DecodeRef(b []byte) (pki.CertRef, error) {
	if b == nil {
		return pki.CertRef{}, nil
	}
	return ParseRef(b[:32], b[32:])
}

// ParseRef returns the reference with an issuer and a serial number.
func ParseRef(issuer, serial []byte) (pki.CertRef, error) {
	i, err := pki.IssuerIDFromBytes(issuer)
	if err != nil {
		return pki.CertRef{}, err
	}
	s, err := pki.SerialFromBytes(serial)
	return pki.CertRef{Issuer: i, Serial: s}, err
}

// EncodeSubject encodes a subject of evidence as the number of its kind and its hash. The zero value is encoded as
// NULL.
func EncodeSubject(s pki.EvidenceSubject) any {
	if s.IsZero() {
		return nil
	}
	return append([]byte{byte(s.Kind)}, s.Hash[:]...)
}

// DecodeSubject decodes the result of [EncodeSubject].
func DecodeSubject(b []byte) (pki.EvidenceSubject, error) {
	var s pki.EvidenceSubject
	if b == nil {
		return s, nil
	}
	if len(b) != 1+len(s.Hash) {
		return s, fmt.Errorf("the column has %d bytes, want %d", len(b), 1+len(s.Hash))
	}
	return pki.EvidenceSubject{Kind: pki.EvidenceKind(b[0]), Hash: [32]byte(b[1:])}, nil
}

// terms are the terms of an enrollment in JSON.
type terms struct {
	HardwareKey bool          `json:"hardware_key,omitempty"`
	Keys        []pki.KeyType `json:"key_types,omitempty"`
	MaxLifetime time.Duration `json:"max_lifetime,omitempty"` // in nanoseconds
}

// EncodeTerms encodes the terms of an enrollment in JSON. The zero value is encoded as NULL.
func EncodeTerms(t pki.Terms) (any, error) {
	if t.IsZero() {
		return nil, nil
	}
	text, err := json.Marshal(terms(t))
	return string(text), err
}

// DecodeTerms decodes the result of [EncodeTerms].
func DecodeTerms(b []byte) (pki.Terms, error) {
	var t terms
	if b == nil {
		return pki.Terms{}, nil
	}
	err := json.Unmarshal(b, &t)
	return pki.Terms(t), err
}

// KeyID returns the row ID of a key, which is the first 8 bytes of its hash.
func KeyID(h pki.KeyHash) int64 {
	return int64(binary.BigEndian.Uint64(h.Bytes())) //nolint:gosec // the same bytes, read as SQLite's integer
}

// KeyRest returns the bytes of a key's hash that are not in its [KeyID].
func KeyRest(h pki.KeyHash) []byte { return h.Bytes()[8:] }

// KeyHash returns the hash that a row ID and the rest were made from.
func KeyHash(id int64, rest []byte) (pki.KeyHash, error) {
	return pki.KeyHashFromBytes(append(binary.BigEndian.AppendUint64(nil, uint64(id)), rest...)) //nolint:gosec // as in KeyID
}

// Optional returns NULL for the zero value, and otherwise the bytes of the value.
func Optional[T interface {
	IsZero() bool
	Bytes() []byte
}](v T) any {
	if v.IsZero() {
		return nil
	}
	return v.Bytes()
}

// Restore decodes the result of [Optional].
func Restore[T any](b []byte, parse func([]byte) (T, error)) (T, error) {
	if b == nil {
		var zero T
		return zero, nil
	}
	return parse(b)
}

// OptionalText returns NULL for an empty text.
func OptionalText(text string) any {
	if text == "" {
		return nil
	}
	return text
}

// IDs encodes row IDs as the argument of json_each.
func IDs(ids []int64) (string, error) {
	if len(ids) == 0 {
		return "[]", nil // and not null
	}
	list, err := json.Marshal(ids)
	return string(list), err
}
