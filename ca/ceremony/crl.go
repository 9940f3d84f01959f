package ceremony

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"fmt"
	"math/big"
	"time"

	"github.com/brevet-pki/brevet/pki"
)

// Revocation takes back a CA certificate.
type Revocation struct {
	Serial pki.Serial
	Reason pki.Reason // not certificateHold: a CA is not lent out
	At     time.Time  // to the second, not after the CRL's Now
}

// CRLSpec says what a root's CRL holds.
type CRLSpec struct {
	// Number is positive, of 20 octets at most, and above that of Previous (RFC 5280 §5.2.3).
	Number *big.Int
	// Previous is the root's CRL before this one, whose entries are carried over; nil for the first.
	Previous *x509.RevocationList
	Revoke   []Revocation
	// NextUpdate is until when the CRL is good. A root that is kept offline has it some months ahead.
	NextUpdate time.Time
	Now        time.Time
}

// RootCRL makes the complete CRL of a root (RFC 5280 §5) and returns its DER.
func RootCRL(root *x509.Certificate, signer crypto.Signer, spec CRLSpec) ([]byte, error) {
	if err := checkParent(root, signer, x509.KeyUsageCRLSign, spec.Now); err != nil {
		return nil, err
	}
	if err := spec.check(root); err != nil {
		return nil, err
	}
	entries, err := spec.entries(root)
	if err != nil {
		return nil, err
	}
	algorithm, err := signatureAlgorithm(signer.Public())
	if err != nil {
		return nil, err
	}
	der, err := x509.CreateRevocationList(rand.Reader, &x509.RevocationList{
		SignatureAlgorithm: algorithm, Number: spec.Number, RevokedCertificateEntries: entries,
		ThisUpdate: spec.Now.UTC().Truncate(time.Second), NextUpdate: spec.NextUpdate.UTC().Truncate(time.Second),
	}, root, signer)
	if err != nil {
		return nil, fmt.Errorf("ceremony: sign CRL: %w", err)
	}
	return der, nil
}

func refuseCRL(fix, detail string, args ...any) *pki.Refusal {
	return pki.Refuse(pki.RuleCRL, fix, detail, args...)
}

func (spec CRLSpec) check(root *x509.Certificate) error {
	now := spec.Now.UTC().Truncate(time.Second)
	if spec.Number == nil || spec.Number.Sign() <= 0 || spec.Number.BitLen() > 159 {
		return refuseCRL("count CRLs from 1", "the CRL has no positive number of 20 octets at most")
	}
	if !spec.NextUpdate.Truncate(time.Second).After(now) {
		return refuseCRL("give a date some months ahead", "the next update at %s is not after this one", spec.NextUpdate.UTC().Format(time.RFC3339))
	}
	before := spec.Previous
	if before == nil {
		return nil
	}
	if !bytes.Equal(before.RawIssuer, root.RawSubject) || before.CheckSignatureFrom(root) != nil {
		return refuseCRL("give the newest CRL of this root", "the CRL before this one is not signed by the root %q", nameText(root.RawSubject))
	}
	if before.Number == nil || spec.Number.Cmp(before.Number) <= 0 {
		return refuseCRL(fmt.Sprintf("the next number is %s", next(before.Number)), "the number %s is not above that of the CRL before, %s",
			spec.Number, before.Number)
	}
	if now.Before(before.ThisUpdate) {
		return refuseCRL("set the clock right", "the CRL before this one is of a later time, %s", before.ThisUpdate.UTC().Format(time.RFC3339))
	}
	return nil
}

func next(number *big.Int) *big.Int {
	if number == nil {
		return big.NewInt(1)
	}
	return new(big.Int).Add(number, big.NewInt(1))
}

// entries are those of the CRL before, in their order, and then the new ones.
func (spec CRLSpec) entries(root *x509.Certificate) ([]x509.RevocationListEntry, error) {
	var entries []x509.RevocationListEntry
	listed := make(map[string]bool)
	if spec.Previous != nil {
		for _, e := range spec.Previous.RevokedCertificateEntries {
			entries = append(entries, x509.RevocationListEntry{
				SerialNumber: e.SerialNumber, RevocationTime: e.RevocationTime, ReasonCode: e.ReasonCode,
				ExtraExtensions: otherExtensions(e.Extensions),
			})
			listed[e.SerialNumber.String()] = true
		}
	}
	for _, r := range spec.Revoke {
		serial := r.Serial.Int()
		switch {
		case r.Serial.IsZero() || serial.Cmp(root.SerialNumber) == 0:
			return nil, refuseCRL("give the serial number of a certificate that the root signed", "serial number %s is not that of a CA under the root", r.Serial)
		case listed[serial.String()]:
			return nil, pki.Refuse(pki.RuleAlreadyRevoked, "leave it out: it stays on the CRL", "serial number %s is revoked already", r.Serial)
		case r.Reason == pki.CertificateHold:
			return nil, pki.Refuse(pki.RuleReason, "revoke it for a reason that lasts", "a CA certificate is not put on hold")
		case r.At.Truncate(time.Second).After(spec.Now):
			return nil, refuseCRL("give a time that has passed", "serial number %s would be revoked only at %s", r.Serial, r.At.UTC().Format(time.RFC3339))
		}
		if _, err := pki.ReasonFromCode(int(r.Reason)); err != nil {
			return nil, pki.Refuse(pki.RuleReason, "use a reason of RFC 5280 section 5.3.1", "%d is not a revocation reason", r.Reason)
		}
		listed[serial.String()] = true
		entries = append(entries, x509.RevocationListEntry{
			SerialNumber: serial, RevocationTime: r.At.UTC().Truncate(time.Second), ReasonCode: int(r.Reason),
		})
	}
	return entries, nil
}

// otherExtensions are an entry's extensions without the reason code, which crypto/x509 writes itself.
func otherExtensions(all []pkix.Extension) []pkix.Extension {
	reasonCode := asn1.ObjectIdentifier{2, 5, 29, 21}
	var rest []pkix.Extension
	for _, e := range all {
		if !e.Id.Equal(reasonCode) {
			rest = append(rest, e)
		}
	}
	return rest
}
