package ocsp

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1" //nolint:gosec // KeyHash of RFC 6960 §4.2.1 is SHA-1: it identifies a key, and no security rests on it
	"crypto/x509"
	encoding_asn1 "encoding/asn1"
	"errors"
	"fmt"
	"time"

	"github.com/brevet-pki/brevet/pki"
	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"
)

// CertStatus is the status of one certificate in a response (RFC 6960 §2.2).
type CertStatus uint8

// The statuses. An unknown certificate was never issued. A good certificate was issued and is neither revoked nor on
// hold.
const (
	Unknown CertStatus = iota
	Good
	Revoked
)

// Single is the part of a response about one certificate. Its times are truncated to seconds.
type Single struct {
	ID         CertID
	Status     CertStatus
	RevokedAt  time.Time  // only if Status is Revoked
	Reason     pki.Reason // only if Status is Revoked; unspecified is not encoded (RFC 5280 §5.3.1)
	ThisUpdate time.Time  // when the status was known to be current
	NextUpdate time.Time  // when the client must request the status again
}

// Response is the content of a response that [Signer.Sign] signs.
type Response struct {
	ProducedAt time.Time
	Singles    []Single
	Nonce      []byte // nonce of the request, or nil
	// ExtendedRevoke adds the extension of RFC 6960 §4.4.8. With it, Revoked may also mean that a certificate was never
	// issued; see NotIssued.
	ExtendedRevoke bool
}

// NotIssued returns the status Revoked for a certificate that was never issued (RFC 6960 §2.2). The response must set
// ExtendedRevoke.
func NotIssued(id CertID) Single {
	return Single{ID: id, Status: Revoked, RevokedAt: time.Unix(0, 0), Reason: pki.CertificateHold}
}

// Signer signs responses with the certificate of an authorized responder (RFC 6960 §4.2.2.2), or of the CA itself. It
// is safe for concurrent use if its key is.
type Signer struct {
	certificate *x509.Certificate
	key         crypto.Signer
	keyHash     [sha1.Size]byte
	algorithm   []byte // AlgorithmIdentifier in DER
	hash        crypto.Hash
}

// The AlgorithmIdentifiers of signatures. Only the one for RSA has parameters, which are NULL (RFC 5758 §3.2,
// RFC 4055 §5, RFC 8410 §3).
var (
	ecdsaSHA256 = algorithmIdentifier(encoding_asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 2}, false)
	ecdsaSHA384 = algorithmIdentifier(encoding_asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 3}, false)
	rsaSHA256   = algorithmIdentifier(encoding_asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 11}, true)
	pureEd25519 = algorithmIdentifier(encoding_asn1.ObjectIdentifier{1, 3, 101, 112}, false)

	// Object identifiers in DER.
	basicResponse  = objectIdentifier(encoding_asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 48, 1, 1})
	extendedRevoke = objectIdentifier(encoding_asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 48, 1, 9}) // RFC 6960 §4.4.8
)

func algorithmIdentifier(oid encoding_asn1.ObjectIdentifier, null bool) []byte {
	var b cryptobyte.Builder
	b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1ObjectIdentifier(oid)
		if null {
			b.AddASN1NULL()
		}
	})
	der, _ := b.Bytes() // encoding a constant cannot fail
	return der
}

// NewSigner returns a Signer for a responder's certificate and its key, which is of type ECDSA P-256 or P-384, RSA, or
// Ed25519.
func NewSigner(certificate *x509.Certificate, key crypto.Signer) (*Signer, error) {
	s := &Signer{certificate: certificate, key: key}
	switch public := key.Public().(type) {
	case *ecdsa.PublicKey:
		switch public.Curve {
		case elliptic.P256():
			s.algorithm, s.hash = ecdsaSHA256, crypto.SHA256
		case elliptic.P384():
			s.algorithm, s.hash = ecdsaSHA384, crypto.SHA384
		}
	case *rsa.PublicKey:
		s.algorithm, s.hash = rsaSHA256, crypto.SHA256
	case ed25519.PublicKey:
		s.algorithm = pureEd25519
	}
	if s.algorithm == nil {
		return nil, fmt.Errorf("responses cannot be signed with a %T: use a P-256, P-384, RSA or Ed25519 key", key.Public())
	}
	if public, ok := certificate.PublicKey.(interface{ Equal(crypto.PublicKey) bool }); !ok || !public.Equal(key.Public()) {
		return nil, errors.New("the responder's key does not match its certificate: use the key that the certificate was issued for")
	}
	bits, err := publicKeyBits(certificate)
	if err != nil {
		return nil, err
	}
	s.keyHash = sha1.Sum(bits) //nolint:gosec // an identifier, see the import
	return s, nil
}

// Certificate returns the responder's certificate.
func (s *Signer) Certificate() *x509.Certificate { return s.certificate }

// typicalSize is more than the signed part of most responses, in bytes. A response with one certificate, a nonce and a
// P-256 signature has 350 bytes, without the responder's certificate.
const typicalSize = 512

// Sign signs r and returns a successful OCSPResponse in DER.
func (s *Signer) Sign(r Response) ([]byte, error) {
	tbs := newReverseWriter(make([]byte, typicalSize))
	if err := s.addResponseData(tbs, r); err != nil {
		return nil, fmt.Errorf("encode response: %w", err)
	}
	signature, err := crypto.SignMessage(s.key, rand.Reader, tbs.der(), s.hash)
	if err != nil {
		return nil, fmt.Errorf("sign response: %w", err)
	}
	return s.envelope(tbs.der(), signature), nil
}

// envelope encodes an OCSPResponse with signed data: a BasicOCSPResponse in ResponseBytes (RFC 6960 §4.2.1).
func (s *Signer) envelope(tbs, signature []byte) []byte {
	const lengths = 64 // upper limit for the total size of all tags and lengths
	b := newReverseWriter(make([]byte, len(tbs)+len(s.algorithm)+len(signature)+len(s.certificate.Raw)+len(basicResponse)+lengths))
	b.addBytes(s.certificate.Raw)
	b.wrap(asn1.SEQUENCE, 0)
	b.wrap(contextTag(0), 0)
	since := b.size()
	b.addBytes(signature)
	b.addByte(0) // number of unused bits
	b.wrap(asn1.BIT_STRING, since)
	b.addBytes(s.algorithm)
	b.addBytes(tbs)
	b.wrap(asn1.SEQUENCE, 0)
	b.wrap(asn1.OCTET_STRING, 0)
	b.addBytes(basicResponse)
	b.wrap(asn1.SEQUENCE, 0)
	b.wrap(contextTag(0), 0)
	b.addElement(asn1.ENUM, []byte{0}) // responseStatus successful
	b.wrap(asn1.SEQUENCE, 0)
	return b.der()
}

func (s *Signer) addResponseData(b *reverseWriter, r Response) error {
	if r.Nonce != nil || r.ExtendedRevoke {
		r.addExtensions(b)
		b.wrap(asn1.SEQUENCE, 0)
		b.wrap(contextTag(1), 0)
	}
	singles := b.size()
	for n := len(r.Singles) - 1; n >= 0; n-- {
		if err := addSingle(b, &r.Singles[n]); err != nil {
			return err
		}
	}
	b.wrap(asn1.SEQUENCE, singles)
	if err := b.addTime(r.ProducedAt); err != nil {
		return err
	}
	responder := b.size()
	b.addElement(asn1.OCTET_STRING, s.keyHash[:])
	b.wrap(contextTag(2), responder)
	b.wrap(asn1.SEQUENCE, 0)
	return nil
}

// addExtensions writes the responseExtensions. None of them is critical.
func (r Response) addExtensions(b *reverseWriter) {
	if r.ExtendedRevoke {
		since := b.size()
		b.addElement(asn1.NULL, nil)
		addExtension(b, extendedRevoke, since)
	}
	if r.Nonce != nil {
		since := b.size()
		b.addElement(asn1.OCTET_STRING, r.Nonce)
		addExtension(b, elementNonce, since)
	}
}

// addExtension writes an Extension. Its value is everything that was written after size returned since.
func addExtension(b *reverseWriter, oid []byte, since int) {
	b.wrap(asn1.OCTET_STRING, since)
	b.addBytes(oid)
	b.wrap(asn1.SEQUENCE, since)
}

func addSingle(b *reverseWriter, single *Single) error {
	since := b.size()
	if err := b.addTime(single.NextUpdate); err != nil {
		return err
	}
	b.wrap(contextTag(0), since)
	if err := b.addTime(single.ThisUpdate); err != nil {
		return err
	}
	switch single.Status {
	case Good:
		b.addElement(asn1.Tag(0).ContextSpecific(), nil)
	case Revoked:
		revoked := b.size()
		if single.Reason != pki.Unspecified {
			b.addElement(asn1.ENUM, []byte{byte(single.Reason)})
			b.wrap(contextTag(0), revoked)
		}
		if err := b.addTime(single.RevokedAt); err != nil {
			return err
		}
		b.wrap(contextTag(1), revoked)
	default:
		b.addElement(asn1.Tag(2).ContextSpecific(), nil)
	}
	b.addBytes(single.ID.Raw)
	b.wrap(asn1.SEQUENCE, since)
	return nil
}

// Refusal is an OCSPResponseStatus other than successful (RFC 6960 §2.3). It is sent unsigned.
type Refusal uint8

// The refusals that Brevet sends. Zero means no refusal.
const (
	MalformedRequest Refusal = 1
	InternalError    Refusal = 2
	TryLater         Refusal = 3
	Unauthorized     Refusal = 6
)

// DER returns the OCSPResponse with the refusal as its status.
func (r Refusal) DER() []byte { return []byte{0x30, 0x03, 0x0a, 0x01, byte(r)} }
