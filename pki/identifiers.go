package pki

import (
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"fmt"
)

// IssuerID identifies an issuing CA: the SHA-256 of the DER of its subject and its public key, by which RFC 5280 and
// RFC 6960 identify an issuer. A CA certificate renewed with the same subject and key keeps its IssuerID.
type IssuerID struct{ b [32]byte }

// IssuerOf returns the IssuerID of the CA with certificate c.
func IssuerOf(c *x509.Certificate) IssuerID {
	h := sha256.New()
	h.Write(c.RawSubject)
	h.Write(c.RawSubjectPublicKeyInfo)
	var id IssuerID
	h.Sum(id.b[:0])
	return id
}

// IssuerIDFromBytes reads the 32 bytes that Bytes returns.
func IssuerIDFromBytes(b []byte) (IssuerID, error) {
	var id IssuerID
	if len(b) != len(id.b) {
		return id, fmt.Errorf("an issuer ID has %d bytes, not %d", len(id.b), len(b))
	}
	copy(id.b[:], b)
	return id, nil
}

// ParseIssuerID reads the 64 hexadecimal digits that String writes.
func ParseIssuerID(text string) (IssuerID, error) {
	b, err := hex.DecodeString(text)
	if err != nil {
		return IssuerID{}, fmt.Errorf("%q is not an issuer ID: give 64 hexadecimal digits", text)
	}
	return IssuerIDFromBytes(b)
}

// String formats the ID as 64 lower-case hexadecimal digits.
func (id IssuerID) String() string { return hex.EncodeToString(id.b[:]) }

// Short returns the first 16 hexadecimal digits. A CA's files are published under this name.
func (id IssuerID) Short() string { return hex.EncodeToString(id.b[:8]) }

// Bytes returns the 32 bytes.
func (id IssuerID) Bytes() []byte { return append([]byte(nil), id.b[:]...) }

// IsZero reports whether id is the zero value, which identifies no CA.
func (id IssuerID) IsZero() bool { return id == IssuerID{} }

// CertRef identifies one certificate by issuer and serial number (RFC 5280 §4.1.2.2).
type CertRef struct {
	Issuer IssuerID
	Serial Serial
}

// IsZero reports whether r is the zero value, which identifies no certificate.
func (r CertRef) IsZero() bool { return r == CertRef{} }

// KeyHash identifies a public key: the SHA-256 of its SubjectPublicKeyInfo in DER.
type KeyHash struct{ b [32]byte }

// HashKey returns the KeyHash of a public key that crypto/x509 can marshal.
func HashKey(pub crypto.PublicKey) (KeyHash, error) {
	spki, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return KeyHash{}, fmt.Errorf("hash public key: %w", err)
	}
	return HashSPKI(spki), nil
}

// HashSPKI returns the KeyHash of a SubjectPublicKeyInfo in DER, such as x509.Certificate.RawSubjectPublicKeyInfo.
func HashSPKI(spki []byte) KeyHash { return KeyHash{sha256.Sum256(spki)} }

// KeyHashFromBytes reads the 32 bytes that Bytes returns.
func KeyHashFromBytes(b []byte) (KeyHash, error) {
	var h KeyHash
	if len(b) != len(h.b) {
		return h, fmt.Errorf("a key hash has %d bytes, not %d", len(h.b), len(b))
	}
	copy(h.b[:], b)
	return h, nil
}

// ParseKeyHash reads the 64 hexadecimal digits that String writes.
func ParseKeyHash(text string) (KeyHash, error) {
	b, err := hex.DecodeString(text)
	if err != nil {
		return KeyHash{}, fmt.Errorf("%q is not the hash of a key: give 64 hexadecimal digits", text)
	}
	return KeyHashFromBytes(b)
}

// String formats the hash as 64 lower-case hexadecimal digits.
func (h KeyHash) String() string { return hex.EncodeToString(h.b[:]) }

// Bytes returns the 32 bytes.
func (h KeyHash) Bytes() []byte { return append([]byte(nil), h.b[:]...) }

// IsZero reports whether h is the zero value, which is the hash of no key.
func (h KeyHash) IsZero() bool { return h == KeyHash{} }

// RequestID is a random 128-bit number that a client chooses for a request and reuses for its retries. A retry by the
// same identity with the same RequestID gets the same certificate.
type RequestID struct{ b [16]byte }

// RequestIDFromBytes returns the RequestID with the given 16 bytes, which must not all be zero.
func RequestIDFromBytes(b []byte) (RequestID, error) {
	var id RequestID
	if len(b) != len(id.b) {
		return id, fmt.Errorf("a request ID has %d bytes, not %d", len(id.b), len(b))
	}
	copy(id.b[:], b)
	if id.IsZero() {
		return id, fmt.Errorf("a request ID must be random, and this one is all zeros")
	}
	return id, nil
}

// String formats the ID as 32 lower-case hexadecimal digits.
func (id RequestID) String() string { return hex.EncodeToString(id.b[:]) }

// Bytes returns the 16 bytes.
func (id RequestID) Bytes() []byte { return append([]byte(nil), id.b[:]...) }

// IsZero reports whether id is the zero value, which is no request ID.
func (id RequestID) IsZero() bool { return id == RequestID{} }

// TokenID identifies an enrollment token without revealing it: the SHA-256 of its secret.
type TokenID struct{ b [32]byte }

// TokenSecret is the 256-bit secret of an enrollment token. It formats as "[secret]", to keep it out of logs. Reveal
// returns its text.
type TokenSecret struct{ b [32]byte }

// TokenSecretFromBytes returns the TokenSecret with the given 32 bytes, which must not all be zero.
func TokenSecretFromBytes(b []byte) (TokenSecret, error) {
	var s TokenSecret
	if len(b) != len(s.b) {
		return s, fmt.Errorf("a token's secret has %d bytes, not %d", len(s.b), len(b))
	}
	copy(s.b[:], b)
	if s == (TokenSecret{}) {
		return s, fmt.Errorf("a token's secret must be random, and this one is all zeros")
	}
	return s, nil
}

// ID returns the token's ID. Code compares IDs instead of secrets, so that timing reveals nothing about a secret.
func (s TokenSecret) ID() TokenID { return TokenID{sha256.Sum256(s.b[:])} }

// Bytes returns the 32 bytes, for the request that uses the token.
func (s TokenSecret) Bytes() []byte { return append([]byte(nil), s.b[:]...) }

// Reveal returns the secret in base64url without padding.
func (s TokenSecret) Reveal() string { return base64.RawURLEncoding.EncodeToString(s.b[:]) }

// Format hides the secret from every verb of fmt.
func (s TokenSecret) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte("[secret]")) }

// TokenIDFromBytes reads the 32 bytes that Bytes returns.
func TokenIDFromBytes(b []byte) (TokenID, error) {
	var id TokenID
	if len(b) != len(id.b) {
		return id, fmt.Errorf("a token ID has %d bytes, not %d", len(id.b), len(b))
	}
	copy(id.b[:], b)
	return id, nil
}

// String returns the first 16 hexadecimal digits, which suffice to tell tokens apart in logs and lists.
func (id TokenID) String() string { return hex.EncodeToString(id.b[:8]) }

// Bytes returns the 32 bytes.
func (id TokenID) Bytes() []byte { return append([]byte(nil), id.b[:]...) }

// IsZero reports whether id is the zero value, which identifies no token.
func (id TokenID) IsZero() bool { return id == TokenID{} }
