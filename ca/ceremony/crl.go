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

// Revocation is the revocation of a CA certificate.
type Revocation struct {
	Serial pki.Serial
	Reason pki.Reason // any but certificateHold
	At     time.Time  // in whole seconds, at most the CRL's Now
}

// CRLSpec describes the CRL of a root.
type CRLSpec struct {
	// Number is positive, at most 20 bytes long, and greater than the number of Previous (RFC 5280 section 5.2.3).
	Number *big.Int
	// Previous is the root's previous CRL. Its entries are copied into the new one. It is nil for the first CRL.
	Previous *x509.RevocationList
	Revoke   []Revocation
	// NextUpdate is the time until which the CRL is valid. For an offline root it is usually some months ahead.
	NextUpdate time.Time
	Now        time.Time
}

// RootCRL returns the DER of a complete CRL of a root (RFC 5280 section 5).
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
		return nil, fmt.Errorf("sign CRL: %w", err)
	}
	return der, nil
}

// refuseCRL returns a refusal of a CRL.
func refuseCRL(fix, detail string, args ...any) *pki.Refusal {
	return pki.Refuse(pki.RuleCRL, fix, detail, args...)
}

// check refuses a specification that contradicts itself, the root or the previous CRL.
func (spec CRLSpec) check(root *x509.Certificate) error {
	now := spec.Now.UTC().Truncate(time.Second)
	if spec.Number == nil || spec.Number.Sign() <= 0 || spec.Number.BitLen() > 159 {
		return refuseCRL("count CRLs from 1", "the CRL has no positive number of at most 20 bytes")
	}
	if !spec.NextUpdate.Truncate(time.Second).After(now) {
		return refuseCRL("give a date some months ahead", "the next update, %s, is not after this update", spec.NextUpdate.UTC().Format(time.RFC3339))
	}
	before := spec.Previous
	if before == nil {
		return nil
	}
	if !bytes.Equal(before.RawIssuer, root.RawSubject) || before.CheckSignatureFrom(root) != nil {
		return refuseCRL("give the newest CRL of this root", "the previous CRL is not signed by the root %q", nameText(root.RawSubject))
	}
	if before.Number == nil || spec.Number.Cmp(before.Number) <= 0 {
		return refuseCRL(fmt.Sprintf("the next number is %s", next(before.Number)), "the number %s is not greater than that of the previous CRL, %s",
			spec.Number, before.Number)
	}
	if now.Before(before.ThisUpdate) {
		return refuseCRL("set the clock right", "the previous CRL was issued later, at %s", before.ThisUpdate.UTC().Format(time.RFC3339))
	}
	return nil
}

func next(number *big.Int) *big.Int {
	if number == nil {
		return big.NewInt(1)
	}
	return new(big.Int).Add(number, big.NewInt(1))
}

// entries returns the entries of the previous CRL in their order, followed by the new ones.
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
			return nil, refuseCRL("give the serial number of a certificate that the root signed", "serial number %s does not belong to a CA under the root", r.Serial)
		case listed[serial.String()]:
			return nil, pki.Refuse(pki.RuleAlreadyRevoked, "omit it: it stays on the CRL",
				"serial number %s is already revoked", r.Serial)
		case r.Reason == pki.CertificateHold:
			return nil, pki.Refuse(pki.RuleReason, "use a permanent reason", "a CA certificate cannot be put on hold")
		case r.At.Truncate(time.Second).After(spec.Now):
			return nil, refuseCRL("give a time in the past", "serial number %s would be revoked in the future, at %s", r.Serial, r.At.UTC().Format(time.RFC3339))
		}
		if _, err := pki.ReasonFromCode(int(r.Reason)); err != nil {
			return nil, pki.Refuse(pki.RuleReason, "use a reason of RFC 5280 section 5.3.1",
				"%d is not a revocation reason", r.Reason)
		}
		listed[serial.String()] = true
		entries = append(entries, x509.RevocationListEntry{
			SerialNumber: serial, RevocationTime: r.At.UTC().Truncate(time.Second), ReasonCode: int(r.Reason),
		})
	}
	return entries, nil
}

// otherExtensions returns an entry's extensions except the reason code, which crypto/x509 adds itself.
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
