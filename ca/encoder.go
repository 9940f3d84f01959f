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

// tbsEncoder encodes the certificates of one profile under one issuing CA (RFC 5280 section 4.1). It copies the
// constant parts from a sample made by crypto/x509. It encodes only what differs: serial number, validity, subject,
// public key, subject key identifier and subject alternative name. In partitioned profiles the URLs of the CRLs differ,
// too.
type tbsEncoder struct {
	algorithm  x509.SignatureAlgorithm
	hash       crypto.Hash // applied before signing; 0 if the key signs the message itself
	identifier []byte      // AlgorithmIdentifier of the signature
	issuer     []byte      // Name of the issuing CA
	extensions []extension
}

// extension is an extension of the certificates, in their order. Its DER is nil if it differs between certificates.
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

// newTBSEncoder copies the constant parts from a sample, a certificate made from a template, and checks that it encodes
// that template as crypto/x509 does. In partitioned profiles the URLs of the CRLs are not constant.
func newTBSEncoder(template, sample *x509.Certificate, partitioned bool) (*tbsEncoder, error) {
	l := &tbsEncoder{algorithm: sample.SignatureAlgorithm, issuer: sample.RawIssuer}
	switch sample.SignatureAlgorithm {
	case x509.SHA256WithRSA, x509.ECDSAWithSHA256:
		l.hash = crypto.SHA256
	case x509.ECDSAWithSHA384:
		l.hash = crypto.SHA384
	case x509.PureEd25519:
	default:
		return nil, fmt.Errorf("certificates are not signed with %s", sample.SignatureAlgorithm)
	}
	tbs := cryptobyte.String(sample.RawTBSCertificate)
	var identifier cryptobyte.String
	if !tbs.ReadASN1(&tbs, cbasn1.SEQUENCE) || !tbs.SkipASN1(cbasn1.Tag(0).ContextSpecific().Constructed()) ||
		!tbs.SkipASN1(cbasn1.INTEGER) || !tbs.ReadASN1Element(&identifier, cbasn1.SEQUENCE) {
		return nil, errors.New("a sample certificate cannot be read")
	}
	l.identifier = identifier
	for _, e := range sample.Extensions {
		der, err := asn1.Marshal(e)
		if err != nil {
			return nil, fmt.Errorf("a sample certificate cannot be read: %w", err)
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
		return nil, errors.New("a sample certificate is not encoded as by crypto/x509: this is a defect of brevet")
	}
	return l, nil
}

// tbs encodes the TBSCertificate of a template.
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

// addExtensions writes the constant extensions as they are, and encodes the others.
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
				if len(t.Subject.ExtraNames) == 0 { // with an empty subject the extension is critical (RFC 5280 section 4.2.1.6)
					b.AddASN1Boolean(true)
				}
				b.AddASN1(cbasn1.OCTET_STRING, func(b *cryptobyte.Builder) { addNames(b, t) })
			case e.id.Equal(oidCRLDistributionPoints):
				b.AddASN1(cbasn1.OCTET_STRING, func(b *cryptobyte.Builder) { addDistributionPoints(b, t.CRLDistributionPoints[0]) })
			default: // freshest CRL, the only other variable extension of a partitioned profile
				b.AddASN1OctetString(t.ExtraExtensions[0].Value)
			}
		})
	}
}

// addTime writes a UTCTime up to the year 2049, and a GeneralizedTime after it (RFC 5280 section 4.1.2.5).
func addTime(b *cryptobyte.Builder, t time.Time) {
	if t.Year() < 2050 {
		b.AddASN1UTCTime(t)
		return
	}
	b.AddASN1GeneralizedTime(t)
}

// addSubject writes a Name with one text attribute, or an empty Name. The text is a DirectoryString (RFC 5280 appendix
// A.1).
func addSubject(b *cryptobyte.Builder, attributes []pkix.AttributeTypeAndValue) {
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		for _, a := range attributes {
			text, ok := a.Value.(string)
			if !ok {
				b.SetError(errors.New("an attribute of the subject is not a string"))
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

// unprintable reports whether a PrintableString cannot contain a character (X.680 section 41.4).
func unprintable(r rune) bool {
	return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !strings.ContainsRune(" '()+,-./:=?", r)
}

// addNames writes the GeneralNames of a template (RFC 5280 section 4.2.1.6).
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

// message returns what the issuing key signs: the digest of a TBSCertificate or, for Ed25519, the TBSCertificate
// itself.
func (l *tbsEncoder) message(tbs []byte) []byte {
	if l.hash == 0 {
		return tbs
	}
	h := l.hash.New()
	h.Write(tbs)
	return h.Sum(nil)
}

// sign signs the message of a TBSCertificate and verifies the signature with the CA's certificate, because an HSM may
// return a wrong one.
func (l *tbsEncoder) sign(ca *x509.Certificate, key crypto.Signer, tbs, message []byte) ([]byte, error) {
	signature, err := key.Sign(rand.Reader, message, l.hash)
	if err != nil {
		return nil, err
	}
	if err := ca.CheckSignature(l.algorithm, tbs, signature); err != nil {
		return nil, fmt.Errorf("the HSM returned a signature that does not verify: %w", err)
	}
	return signature, nil
}

// certificate combines a TBSCertificate and its signature into a certificate.
func (l *tbsEncoder) certificate(tbs, signature []byte) ([]byte, error) {
	b := cryptobyte.NewBuilder(make([]byte, 0, len(tbs)+len(signature)+len(l.identifier)+16))
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddBytes(tbs)
		b.AddBytes(l.identifier)
		b.AddASN1BitString(signature)
	})
	return b.Bytes()
}
