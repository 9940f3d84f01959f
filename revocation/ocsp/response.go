package ocsp

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1" //nolint:gosec // KeyHash of RFC 6960 §4.2.1 is SHA-1: it finds a key, and proves nothing
	"crypto/x509"
	encoding_asn1 "encoding/asn1"
	"errors"
	"fmt"
	"time"

	"github.com/brevet-pki/brevet/pki"
	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"
)

// CertStatus is what a response says of one certificate (RFC 6960 §2.2).
type CertStatus uint8

// Unknown is said of certificates never issued, Good of those issued and neither revoked nor on hold.
const (
	Unknown CertStatus = iota
	Good
	Revoked
)

// Single is the answer about one certificate. Times are written to the second.
type Single struct {
	ID         CertID
	Status     CertStatus
	RevokedAt  time.Time  // where Status is Revoked
	Reason     pki.Reason // where Status is Revoked; unspecified is left out (RFC 5280 §5.3.1)
	ThisUpdate time.Time  // when the status was known to be current
	NextUpdate time.Time  // when to ask again at the latest
}

// Response is what a Signer signs.
type Response struct {
	ProducedAt time.Time
	Singles    []Single
	Nonce      []byte // of the request, or nil
	// ExtendedRevoke says that revoked may be said of certificates that were never issued, as NotIssued does.
	ExtendedRevoke bool
}

// NotIssued says of a certificate that was never issued that it is revoked (RFC 6960 §2.2). The response has to have
// ExtendedRevoke.
func NotIssued(id CertID) Single {
	return Single{ID: id, Status: Revoked, RevokedAt: time.Unix(0, 0), Reason: pki.CertificateHold}
}

// Signer signs the responses of one responder: with an authorized responder's certificate (RFC 6960 §4.2.2.2), or
// the CA's own. It is safe for concurrent use as far as its key is.
type Signer struct {
	certificate *x509.Certificate
	key         crypto.Signer
	keyHash     [sha1.Size]byte
	algorithm   []byte // AlgorithmIdentifier
	hash        crypto.Hash
}

// The AlgorithmIdentifiers of signatures, which differ in whether NULL parameters follow (RFC 5758 §3.2, RFC 4055 §5,
// RFC 8410 §3).
var (
	ecdsaSHA256 = algorithmIdentifier(encoding_asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 2}, false)
	ecdsaSHA384 = algorithmIdentifier(encoding_asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 3}, false)
	rsaSHA256   = algorithmIdentifier(encoding_asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 11}, true)
	pureEd25519 = algorithmIdentifier(encoding_asn1.ObjectIdentifier{1, 3, 101, 112}, false)

	// Object identifiers, as elements.
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
	der, _ := b.Bytes() // what is encoded is constant, and can be
	return der
}

// NewSigner pairs a responder's certificate with its key: ECDSA on P-256 or P-384, RSA, or Ed25519.
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
		return nil, fmt.Errorf("ocsp: responses cannot be signed with a %T: use P-256, P-384, RSA or Ed25519", key.Public())
	}
	if public, ok := certificate.PublicKey.(interface{ Equal(crypto.PublicKey) bool }); !ok || !public.Equal(key.Public()) {
		return nil, errors.New("ocsp: the responder's key does not belong to its certificate")
	}
	bits, err := publicKeyBits(certificate)
	if err != nil {
		return nil, err
	}
	s.keyHash = sha1.Sum(bits) //nolint:gosec // an index, see the import
	return s, nil
}

// Certificate returns the responder's certificate.
func (s *Signer) Certificate() *x509.Certificate { return s.certificate }

// usualSize is more than most responses have, without the certificate: that about one certificate, with a nonce and a
// signature with P-256, has 350 octets.
const usualSize = 512

// Sign returns a successful OCSPResponse in DER.
func (s *Signer) Sign(r Response) ([]byte, error) {
	tbs := newBackwards(make([]byte, usualSize))
	if err := s.addResponseData(tbs, r); err != nil {
		return nil, fmt.Errorf("ocsp: encode response: %w", err)
	}
	signature, err := crypto.SignMessage(s.key, rand.Reader, tbs.der(), s.hash)
	if err != nil {
		return nil, fmt.Errorf("ocsp: sign response: %w", err)
	}
	return s.envelope(tbs.der(), signature), nil
}

// envelope wraps what was signed: OCSPResponse, ResponseBytes, BasicOCSPResponse (RFC 6960 §4.2.1).
func (s *Signer) envelope(tbs, signature []byte) []byte {
	const lengths = 64 // tags and lengths come to no more
	b := newBackwards(make([]byte, len(tbs)+len(s.algorithm)+len(signature)+len(s.certificate.Raw)+len(basicResponse)+lengths))
	b.octets(s.certificate.Raw)
	b.wrap(asn1.SEQUENCE, 0)
	b.wrap(contextTag(0), 0)
	since := b.size()
	b.octets(signature)
	b.octet(0) // unused bits
	b.wrap(asn1.BIT_STRING, since)
	b.octets(s.algorithm)
	b.octets(tbs)
	b.wrap(asn1.SEQUENCE, 0)
	b.wrap(asn1.OCTET_STRING, 0)
	b.octets(basicResponse)
	b.wrap(asn1.SEQUENCE, 0)
	b.wrap(contextTag(0), 0)
	b.value(asn1.ENUM, []byte{0}) // successful
	b.wrap(asn1.SEQUENCE, 0)
	return b.der()
}

func (s *Signer) addResponseData(b *backwards, r Response) error {
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
	if err := b.generalizedTime(r.ProducedAt); err != nil {
		return err
	}
	responder := b.size()
	b.value(asn1.OCTET_STRING, s.keyHash[:])
	b.wrap(contextTag(2), responder)
	b.wrap(asn1.SEQUENCE, 0)
	return nil
}

// addExtensions adds the responseExtensions, none of them critical.
func (r Response) addExtensions(b *backwards) {
	if r.ExtendedRevoke {
		since := b.size()
		b.value(asn1.NULL, nil)
		addExtension(b, extendedRevoke, since)
	}
	if r.Nonce != nil {
		since := b.size()
		b.value(asn1.OCTET_STRING, r.Nonce)
		addExtension(b, elementNonce, since)
	}
}

// addExtension makes an extension of the value that was written since the size was this.
func addExtension(b *backwards, oid []byte, since int) {
	b.wrap(asn1.OCTET_STRING, since)
	b.octets(oid)
	b.wrap(asn1.SEQUENCE, since)
}

func addSingle(b *backwards, single *Single) error {
	since := b.size()
	if err := b.generalizedTime(single.NextUpdate); err != nil {
		return err
	}
	b.wrap(contextTag(0), since)
	if err := b.generalizedTime(single.ThisUpdate); err != nil {
		return err
	}
	switch single.Status {
	case Good:
		b.value(asn1.Tag(0).ContextSpecific(), nil)
	case Revoked:
		revoked := b.size()
		if single.Reason != pki.Unspecified {
			b.value(asn1.ENUM, []byte{byte(single.Reason)})
			b.wrap(contextTag(0), revoked)
		}
		if err := b.generalizedTime(single.RevokedAt); err != nil {
			return err
		}
		b.wrap(contextTag(1), revoked)
	default:
		b.value(asn1.Tag(2).ContextSpecific(), nil)
	}
	b.octets(single.ID.Raw)
	b.wrap(asn1.SEQUENCE, since)
	return nil
}

// Refusal is an OCSPResponseStatus other than successful (RFC 6960 §2.3). Refusals are not signed.
type Refusal uint8

// The refusals that Brevet gives. Zero is none.
const (
	MalformedRequest Refusal = 1
	InternalError    Refusal = 2
	TryLater         Refusal = 3
	Unauthorized     Refusal = 6
)

// DER returns the OCSPResponse that carries the refusal.
func (r Refusal) DER() []byte { return []byte{0x30, 0x03, 0x0a, 0x01, byte(r)} }
