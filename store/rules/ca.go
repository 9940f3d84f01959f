package rules

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"math/big"
	"strings"
	"time"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/revocation/crl"
	"github.com/brevet-pki/brevet/translog"
)

// Installation is an installed CA with its parsed certificate.
type Installation struct {
	ca.InstalledCA
	Parsed *x509.Certificate
}

// ParseInstallation parses the certificate of a CA that is to be installed.
func ParseInstallation(in ca.InstalledCA) (Installation, error) {
	cert, err := x509.ParseCertificate(in.Certificate)
	if err != nil || !bytes.Equal(cert.Raw, in.Certificate) {
		return Installation{}, pki.Refuse(pki.RuleCertificate, "install one CA certificate in DER",
			"the input is not a certificate in DER")
	}
	return Installation{in, cert}, nil
}

// Fingerprint returns the SHA-256 of the certificate.
func (i Installation) Fingerprint() []byte {
	sum := sha256.Sum256(i.Certificate)
	return sum[:]
}

// CheckReplace refuses to replace the installation before of the same subject and key if it was removed, or if it has
// another key label. It reports whether the certificates differ.
func (i Installation) CheckReplace(before Installation) (differs bool, err error) {
	switch {
	case before.State == ca.Removed:
		return false, pki.Refuse(pki.RuleCAInUse, "create a new CA generation, with its own subject and key",
			"%s was removed", i.Parsed.Subject)
	case before.Key != i.Key:
		return false, pki.Refuse(pki.RuleRequest, "install it with the key label on record",
			"the certificate of %s is installed with the key label %q", i.Parsed.Subject, before.Key)
	default:
		return !bytes.Equal(before.Certificate, i.Certificate), nil
	}
}

// NoInstallation returns the refusal of a CA that is not installed.
func NoInstallation(id pki.IssuerID) *pki.Refusal {
	return pki.Refuse(pki.RuleNotFound, "name an installed CA",
		"no CA with the identifier %s is installed", id.Short())
}

// CheckRetire refuses to retire a CA that does not issue certificates, or without which no CA could issue. The argument
// others holds the other active CAs that have a key.
func (i Installation) CheckRetire(others []Installation, at time.Time) error {
	subject := i.Parsed.Subject
	if i.State == ca.Removed {
		return pki.Refuse(pki.RuleCAInUse, "a removed CA needs no action", "%s was removed", subject)
	}
	if i.Key == "" {
		return pki.Refuse(pki.RuleRequest, "name an issuing CA", "%s has no key here, and issues nothing", subject)
	}
	for _, other := range others {
		if at.Before(other.Parsed.NotAfter) {
			return nil
		}
	}
	return pki.Refuse(pki.RuleCAInUse, "install the next generation first",
		"no other CA is active: without %s nothing would be issued", subject)
}

// Removable reports whether a CA has expired at the time now. An expired CA can be removed without further checks.
func (i Installation) Removable(now time.Time) bool { return i.Parsed.NotAfter.Before(now) }

// CheckRemove refuses to remove a CA that is active, or that signed another installed CA. The argument others holds the
// other CAs that were not removed.
func (i Installation) CheckRemove(others []Installation) error {
	subject := i.Parsed.Subject
	if i.Key != "" && i.State == ca.Active {
		return pki.Refuse(pki.RuleCAInUse, "retire it first", "%s is active", subject)
	}
	for _, other := range others {
		named := bytes.Equal(other.Parsed.RawIssuer, i.Parsed.RawSubject)
		if named && other.Parsed.CheckSignatureFrom(i.Parsed) == nil {
			return pki.Refuse(pki.RuleCAInUse, "remove that one first",
				"%s signed %s, which is installed", subject, other.Parsed.Subject)
		}
	}
	return nil
}

// StillIssued returns the refusal to remove a CA whose last certificate expires at notAfter, in the future.
func (i Installation) StillIssued(notAfter time.Time) *pki.Refusal {
	return pki.Refuse(pki.RuleCAInUse, "remove it after "+notAfter.Format(time.RFC3339),
		"the last certificate that %s issued has not expired", i.Parsed.Subject)
}

// Entry returns the log entry of an action on the CA.
func (i Installation) Entry(action translog.Action, by pki.Actor, at time.Time) translog.Entry {
	return translog.Entry{Time: at, Actor: by, Action: action, Outcome: translog.Done, Event: &translog.CACertificate{
		Issuer: pki.IssuerOf(i.Parsed), Subject: i.Parsed.Subject.String(), Fingerprint: i.Fingerprint(),
		KeyHash: pki.HashSPKI(i.Parsed.RawSubjectPublicKeyInfo), KeyLabel: i.Key,
	}}
}

// CRLNumberSize is the maximum size of a CRL number in bytes (RFC 5280 §5.2.3).
const CRLNumberSize = 20

// NextCRLNumber returns the CRL number after last, or a refusal if it would exceed CRLNumberSize.
func NextCRLNumber(issuer pki.IssuerID, last *big.Int) (*big.Int, error) {
	next := new(big.Int).Add(last, big.NewInt(1))
	if !fitsCRLNumber(next) {
		return nil, pki.Refuse(pki.RuleCRL, "install a new generation of the CA",
			"the CRL numbers of %s are used up", issuer.Short())
	}
	return next, nil
}

func fitsCRLNumber(n *big.Int) bool { return n != nil && n.Sign() >= 0 && n.BitLen() < 8*CRLNumberSize }

// CheckCRLNumber refuses a CRL whose number is longer than RFC 5280 allows.
func CheckCRLNumber(c crl.CRL) error {
	if fitsCRLNumber(c.Number) {
		return nil
	}
	return pki.Refuse(pki.RuleCRL, "use a number of at most 20 octets (RFC 5280 section 5.2.3)",
		"the CRL number %v is not valid", c.Number)
}

// OldCRL returns the refusal of a CRL whose number is not greater than that of the CRL on record.
func OldCRL(c crl.CRL) *pki.Refusal {
	return pki.Refuse(pki.RuleCRL, "publish a newer one", "the number %v of the CRL %s is not greater than the one on record",
		c.Number, strings.TrimSuffix(c.Scope().Path(), ".crl"))
}
