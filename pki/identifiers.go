package pki

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"fmt"
)

// IssuerID identifies an issuing CA. It is the SHA-256 of the DER of the CA's subject and public key, because RFC 5280
// and RFC 6960 identify an issuer by these. If a CA certificate is renewed with the same subject and key, the IssuerID
// stays the same.
type IssuerID struct{ b [32]byte }

// IssuerOf returns the IssuerID of the CA with the certificate c.
func IssuerOf(c *x509.Certificate) IssuerID {
	h := sha256.New()
	h.Write(c.RawSubject)
	h.Write(c.RawSubjectPublicKeyInfo)
	var id IssuerID
	h.Sum(id.b[:0])
	return id
}

// IssuerIDFromBytes returns the IssuerID whose Bytes are b.
func IssuerIDFromBytes(b []byte) (IssuerID, error) {
	var id IssuerID
	if len(b) != len(id.b) {
		return id, fmt.Errorf("an issuer ID has %d bytes, not %d", len(id.b), len(b))
	}
	copy(id.b[:], b)
	return id, nil
}

// ParseIssuerID parses 64 hexadecimal digits.
func ParseIssuerID(text string) (IssuerID, error) {
	b, err := hex.DecodeString(text)
	if err != nil {
		return IssuerID{}, fmt.Errorf("%q is not an issuer ID: give 64 hexadecimal digits", text)
	}
	return IssuerIDFromBytes(b)
}

// String formats the ID as 64 lower-case hexadecimal digits.
func (id IssuerID) String() string { return hex.EncodeToString(id.b[:]) }

// Short returns the first 16 hexadecimal digits. They are the name of the CA's published files.
func (id IssuerID) Short() string { return hex.EncodeToString(id.b[:8]) }

// Bytes returns the 32 bytes.
func (id IssuerID) Bytes() []byte { return append([]byte(nil), id.b[:]...) }

// IsZero reports whether id is the zero value, which identifies no CA.
func (id IssuerID) IsZero() bool { return id == IssuerID{} }

// CertRef identifies a certificate by its issuer and serial number (RFC 5280 §4.1.2.2).
type CertRef struct {
	Issuer IssuerID
	Serial Serial
}

// IsZero reports whether r is the zero value, which identifies no certificate.
func (r CertRef) IsZero() bool { return r == CertRef{} }

// KeyHash identifies a public key. It is the SHA-256 of the key's SubjectPublicKeyInfo in DER.
type KeyHash struct{ b [32]byte }

// MarshalKey returns the SubjectPublicKeyInfo of a public key in DER (RFC 5280 §4.1.2.7). It encodes each key that
// crypto/x509 can marshal, and as crypto/x509 does. P-256 keys need a tenth of the time.
func MarshalKey(pub crypto.PublicKey) ([]byte, error) {
	k, ok := pub.(*ecdsa.PublicKey)
	if !ok || k.Curve != elliptic.P256() {
		return x509.MarshalPKIXPublicKey(pub)
	}
	point, err := k.Bytes()
	if err != nil {
		return nil, err
	}
	return append([]byte(p256Prefix), point...), nil
}

// p256Prefix is the SubjectPublicKeyInfo of a P-256 key up to its point (RFC 5480 §2): the beginning of the sequence, the
// algorithm id-ecPublicKey with the curve secp256r1, and the beginning of the bit string.
const p256Prefix = "\x30\x59\x30\x13\x06\x07\x2a\x86\x48\xce\x3d\x02\x01\x06\x08\x2a\x86\x48\xce\x3d\x03\x01\x07\x03\x42\x00"

// HashKey returns the KeyHash of a public key that MarshalKey can encode.
func HashKey(pub crypto.PublicKey) (KeyHash, error) {
	spki, err := MarshalKey(pub)
	if err != nil {
		return KeyHash{}, fmt.Errorf("hash public key: %w", err)
	}
	return HashSPKI(spki), nil
}

// HashSPKI returns the KeyHash of a SubjectPublicKeyInfo in DER, such as x509.Certificate.RawSubjectPublicKeyInfo.
func HashSPKI(spki []byte) KeyHash { return KeyHash{sha256.Sum256(spki)} }

// KeyHashFromBytes returns the KeyHash whose Bytes are b.
func KeyHashFromBytes(b []byte) (KeyHash, error) {
	var h KeyHash
	if len(b) != len(h.b) {
		return h, fmt.Errorf("a key hash has %d bytes, not %d", len(h.b), len(b))
	}
	copy(h.b[:], b)
	return h, nil
}

// ParseKeyHash parses 64 hexadecimal digits.
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

// IsZero reports whether h is the zero value, which identifies no key.
func (h KeyHash) IsZero() bool { return h == KeyHash{} }

// RequestID is a random 128-bit number that a client generates for a request, and uses again when it repeats the
// request. If an identity repeats a request with the same RequestID, it gets the same certificate.
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

// TokenID identifies an enrollment token without revealing its secret. It is the SHA-256 of the secret.
type TokenID struct{ b [32]byte }

// TokenSecret is the 256-bit secret of an enrollment token. It formats as "[secret]", so that logs do not contain it.
// Reveal returns its text.
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

// ID returns the token's ID. Code compares IDs and not secrets, so that the duration reveals nothing about a secret.
func (s TokenSecret) ID() TokenID { return TokenID{sha256.Sum256(s.b[:])} }

// Bytes returns the 32 bytes, for the request that contains the token.
func (s TokenSecret) Bytes() []byte { return append([]byte(nil), s.b[:]...) }

// Reveal returns the secret in base64url without padding.
func (s TokenSecret) Reveal() string { return base64.RawURLEncoding.EncodeToString(s.b[:]) }

// Format hides the secret from every verb of fmt.
func (s TokenSecret) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte("[secret]")) }

// TokenIDFromBytes returns the TokenID whose Bytes are b.
func TokenIDFromBytes(b []byte) (TokenID, error) {
	var id TokenID
	if len(b) != len(id.b) {
		return id, fmt.Errorf("a token ID has %d bytes, not %d", len(id.b), len(b))
	}
	copy(id.b[:], b)
	return id, nil
}

// String returns the first 16 hexadecimal digits, which are sufficient to distinguish tokens in logs and lists.
func (id TokenID) String() string { return hex.EncodeToString(id.b[:8]) }

// Bytes returns the 32 bytes.
func (id TokenID) Bytes() []byte { return append([]byte(nil), id.b[:]...) }

// IsZero reports whether id is the zero value, which identifies no token.
func (id TokenID) IsZero() bool { return id == TokenID{} }
