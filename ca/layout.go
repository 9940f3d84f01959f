package ca

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"strings"
	"time"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// tbsEncoder writes the certificates of one profile under one issuing CA (RFC 5280 §4.1). What is the same in all of them is
// taken from a sample that crypto/x509 made; only what differs is encoded for each: serial number, validity, subject,
// public key, subject key identifier and subject alternative name, and in partitioned profiles where the CRLs are.
type tbsEncoder struct {
	algorithm  x509.SignatureAlgorithm
	hash       crypto.Hash // of what the key signs; 0 where it signs the message itself
	identifier []byte      // AlgorithmIdentifier
	issuer     []byte      // Name
	extensions []extension
}

// extension is one that certificates have, in their order. Its DER is nil where it differs from one to the next.
type extension struct {
	id  asn1.ObjectIdentifier
	der []byte
}

var (
	oidSubjectKeyID          = asn1.ObjectIdentifier{2, 5, 29, 14}
	oidNameConstraints       = asn1.ObjectIdentifier{2, 5, 29, 30}
	oidSubjectAltName        = asn1.ObjectIdentifier{2, 5, 29, 17}
	oidCRLDistributionPoints = asn1.ObjectIdentifier{2, 5, 29, 31}
	oidFreshestCRL           = asn1.ObjectIdentifier{2, 5, 29, 46}
)

// newTBSEncoder takes the constant parts from a certificate that was made of a template, and checks that it writes the rest
// of that certificate as crypto/x509 does. In a partitioned profile they do not include where the CRLs are.
func newTBSEncoder(template, sample *x509.Certificate, partitioned bool) (*tbsEncoder, error) {
	l := &tbsEncoder{algorithm: sample.SignatureAlgorithm, issuer: sample.RawIssuer}
	switch sample.SignatureAlgorithm {
	case x509.SHA256WithRSA, x509.ECDSAWithSHA256:
		l.hash = crypto.SHA256
	case x509.ECDSAWithSHA384:
		l.hash = crypto.SHA384
	case x509.PureEd25519:
	default:
		return nil, fmt.Errorf("ca: certificates are not signed with %s", sample.SignatureAlgorithm)
	}
	tbs := cryptobyte.String(sample.RawTBSCertificate)
	var identifier cryptobyte.String
	if !tbs.ReadASN1(&tbs, cbasn1.SEQUENCE) || !tbs.SkipASN1(cbasn1.Tag(0).ContextSpecific().Constructed()) ||
		!tbs.SkipASN1(cbasn1.INTEGER) || !tbs.ReadASN1Element(&identifier, cbasn1.SEQUENCE) {
		return nil, errors.New("ca: a sample certificate cannot be read")
	}
	l.identifier = identifier
	for _, e := range sample.Extensions {
		der, err := asn1.Marshal(e)
		if err != nil {
			return nil, fmt.Errorf("ca: a sample certificate cannot be read: %w", err)
		}
		if e.Id.Equal(oidSubjectKeyID) || e.Id.Equal(oidSubjectAltName) ||
			partitioned && (e.Id.Equal(oidCRLDistributionPoints) || e.Id.Equal(oidFreshestCRL)) {
			der = nil
		}
		l.extensions = append(l.extensions, extension{e.Id, der})
	}
	written, err := l.tbs(template)
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(written, sample.RawTBSCertificate) {
		return nil, errors.New("ca: a sample certificate is not laid out as crypto/x509 does: this is a defect of brevet")
	}
	return l, nil
}

// tbs writes the TBSCertificate of a template.
func (l *tbsEncoder) tbs(t *x509.Certificate) ([]byte, error) {
	b := cryptobyte.NewBuilder(make([]byte, 0, 1024))
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1(cbasn1.Tag(0).ContextSpecific().Constructed(), func(b *cryptobyte.Builder) { b.AddASN1Int64(2) }) // v3
		b.AddASN1BigInt(t.SerialNumber)
		b.AddBytes(l.identifier)
		b.AddBytes(l.issuer)
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
			addTime(b, t.NotBefore)
			addTime(b, t.NotAfter)
		})
		addSubject(b, t.Subject.ExtraNames)
		b.AddBytes(t.RawSubjectPublicKeyInfo)
		b.AddASN1(cbasn1.Tag(3).ContextSpecific().Constructed(), func(b *cryptobyte.Builder) {
			b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) { l.addExtensions(b, t) })
		})
	})
	return b.Bytes()
}

func (l *tbsEncoder) addExtensions(b *cryptobyte.Builder, t *x509.Certificate) {
	for _, e := range l.extensions {
		if e.der != nil {
			b.AddBytes(e.der)
			continue
		}
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddASN1ObjectIdentifier(e.id)
			switch {
			case e.id.Equal(oidSubjectKeyID):
				b.AddASN1(cbasn1.OCTET_STRING, func(b *cryptobyte.Builder) { b.AddASN1OctetString(t.SubjectKeyId) })
			case e.id.Equal(oidSubjectAltName):
				if len(t.Subject.ExtraNames) == 0 { // where the subject is empty, the names are critical (RFC 5280 §4.2.1.6)
					b.AddASN1Boolean(true)
				}
				b.AddASN1(cbasn1.OCTET_STRING, func(b *cryptobyte.Builder) { addNames(b, t) })
			case e.id.Equal(oidCRLDistributionPoints):
				b.AddASN1(cbasn1.OCTET_STRING, func(b *cryptobyte.Builder) { addDistributionPoints(b, t.CRLDistributionPoints[0]) })
			default: // freshest CRL, the only one that a partitioned profile adds
				b.AddASN1OctetString(t.ExtraExtensions[0].Value)
			}
		})
	}
}

// addTime writes UTCTime until 2049, and GeneralizedTime from then on (RFC 5280 §4.1.2.5).
func addTime(b *cryptobyte.Builder, t time.Time) {
	if t.Year() < 2050 {
		b.AddASN1UTCTime(t)
		return
	}
	b.AddASN1GeneralizedTime(t)
}

// addSubject writes a Name of one text attribute, or an empty one. The text is a DirectoryString (RFC 5280 appendix A.1).
func addSubject(b *cryptobyte.Builder, attributes []pkix.AttributeTypeAndValue) {
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		for _, a := range attributes {
			text, ok := a.Value.(string)
			if !ok {
				b.SetError(errors.New("ca: an attribute of a subject is no text"))
			}
			b.AddASN1(cbasn1.SET, func(b *cryptobyte.Builder) {
				b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
					b.AddASN1ObjectIdentifier(a.Type)
					kind := cbasn1.PrintableString
					if strings.ContainsFunc(text, unprintable) {
						kind = cbasn1.UTF8String
					}
					b.AddASN1(kind, func(b *cryptobyte.Builder) { b.AddBytes([]byte(text)) })
				})
			})
		}
	})
}

// unprintable is true of what a PrintableString cannot hold (X.680 §41.4).
func unprintable(r rune) bool {
	return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !strings.ContainsRune(" '()+,-./:=?", r)
}

// addNames writes GeneralNames (RFC 5280 §4.2.1.6).
func addNames(b *cryptobyte.Builder, t *x509.Certificate) {
	add := func(b *cryptobyte.Builder, tag uint8, value []byte) {
		b.AddASN1(cbasn1.Tag(tag).ContextSpecific(), func(b *cryptobyte.Builder) { b.AddBytes(value) })
	}
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		for _, name := range t.DNSNames {
			add(b, 2, []byte(name))
		}
		for _, ip := range t.IPAddresses {
			if four := ip.To4(); four != nil {
				ip = four
			}
			add(b, 7, ip)
		}
		for _, u := range t.URIs {
			add(b, 6, []byte(u.String()))
		}
	})
}

// message is what the issuing key signs of a TBSCertificate.
func (l *tbsEncoder) message(tbs []byte) []byte {
	if l.hash == 0 {
		return tbs
	}
	h := l.hash.New()
	h.Write(tbs)
	return h.Sum(nil)
}

// sign has a key sign a TBSCertificate, whose message was computed before, and checks the signature with the CA's
// certificate: what a token gives may be wrong.
func (l *tbsEncoder) sign(ca *x509.Certificate, key crypto.Signer, tbs, message []byte) ([]byte, error) {
	signature, err := key.Sign(rand.Reader, message, l.hash)
	if err != nil {
		return nil, err
	}
	if err := ca.CheckSignature(l.algorithm, tbs, signature); err != nil {
		return nil, fmt.Errorf("ca: the token gave a signature that does not verify: %w", err)
	}
	return signature, nil
}

// certificate puts a signature to its TBSCertificate.
func (l *tbsEncoder) certificate(tbs, signature []byte) ([]byte, error) {
	b := cryptobyte.NewBuilder(make([]byte, 0, len(tbs)+len(signature)+len(l.identifier)+16))
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddBytes(tbs)
		b.AddBytes(l.identifier)
		b.AddASN1BitString(signature)
	})
	return b.Bytes()
}
