package rules

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"fmt"
	"math/big"
	"slices"
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

// Cross is a cross-certificate between two installed roots.
type Cross struct {
	Installation              // without a key; the identifier of the certificate is that of the root whose key it has
	Signer       pki.IssuerID // the root that signed it
}

// ParseCross parses a cross-certificate. It refuses a certificate that is not one between two of the installed roots.
func ParseCross(in ca.CrossCertificate, installed []Installation) (Cross, error) {
	i, err := ParseInstallation(ca.InstalledCA{Certificate: in.Certificate, At: in.At})
	if err != nil {
		return Cross{}, err
	}
	var roots []*x509.Certificate
	for _, other := range installed {
		if ca.IsRoot(other.Parsed) {
			roots = append(roots, other.Parsed)
		}
	}
	signer, subject := ca.CrossRoots(i.Parsed, roots)
	if signer == nil || subject == nil {
		return Cross{}, pki.Refuse(pki.RuleNotFound, "install both roots first",
			"%s, signed by %s, is not a cross-certificate between two installed roots", i.Parsed.Subject, i.Parsed.Issuer)
	}
	return Cross{i, pki.IssuerOf(signer)}, nil
}

// Entry returns the log entry of an action on the cross-certificate.
func (c Cross) Entry(action translog.Action, by pki.Actor, at time.Time) translog.Entry {
	event := c.event()
	event.Signer = c.Signer
	return translog.Entry{Time: at, Actor: by, Action: action, Outcome: translog.Done, Event: event}
}

// NoInstallation returns the refusal of a CA that is not installed.
func NoInstallation(id pki.IssuerID) *pki.Refusal {
	return pki.Refuse(pki.RuleNotFound, "name an installed CA",
		"no CA with the identifier %s is installed", id.Short())
}

// CheckRetire refuses to retire a CA that neither issues certificates nor is a root, or without which no CA could
// issue. A root cannot be retired before the issuing CAs under it. The argument others holds the other CAs that were
// not removed.
func (i Installation) CheckRetire(others []Installation, at time.Time) error {
	subject, root := i.Parsed.Subject, ca.IsRoot(i.Parsed)
	if i.State == ca.Removed {
		return pki.Refuse(pki.RuleCAInUse, "a removed CA needs no action", "%s was removed", subject)
	}
	if i.Key == "" && !root {
		return pki.Refuse(pki.RuleRequest, "name an issuing CA or a root", "%s has no key here, and issues nothing", subject)
	}
	issues := false
	for _, other := range others {
		if other.Key == "" || other.State != ca.Active {
			continue
		}
		if root && other.isUnder(i, others) {
			below := other.Parsed.Subject
			return pki.Refuse(pki.RuleCAInUse, "install an issuing CA under another root, and retire "+below.String()+" first",
				"%s is active, and its chain ends in %s", below, subject)
		}
		issues = issues || at.Before(other.Parsed.NotAfter)
	}
	if !issues {
		return pki.Refuse(pki.RuleCAInUse, "install the next generation first",
			"no other CA is active: without %s nothing would be issued", subject)
	}
	return nil
}

// Below returns the identifiers of the other CAs whose chain leads to this one. A CA that is no root has none.
func (i Installation) Below(others []Installation) []pki.IssuerID {
	var below []pki.IssuerID
	for _, other := range others {
		if ca.IsRoot(i.Parsed) && other.isUnder(i, others) {
			below = append(below, pki.IssuerOf(other.Parsed))
		}
	}
	return below
}

// Unexpired describes certificates that are neither expired nor revoked.
type Unexpired struct {
	Number int
	Last   time.Time // when the last one expires
}

// Add returns the description of both.
func (u Unexpired) Add(other Unexpired) Unexpired {
	if other.Last.After(u.Last) {
		u.Last = other.Last
	}
	u.Number += other.Number
	return u
}

// CheckConfirmed refuses to retire a root with certificates below it, unless confirm is their number. It may differ by one
// percent, because certificates expire in the meantime.
func (i Installation) CheckConfirmed(below Unexpired, confirm int) error {
	if near := below.Number / 100; below.Number == 0 || confirm >= below.Number-near && confirm <= below.Number+near {
		return nil
	}
	return pki.Refuse(pki.RuleCAInUse, fmt.Sprintf("retire it after %s; in an emergency, confirm %d certificates",
		below.Last.UTC().Format(time.RFC3339), below.Number),
		"%d certificates under %s are neither expired nor revoked, and relying parties will refuse them", below.Number, i.Parsed.Subject)
}

// isUnder reports whether the chain of a CA leads to another one, through CAs that are among others.
func (i Installation) isUnder(ancestor Installation, others []Installation) bool {
	for range len(others) + 1 { // a chain is not longer
		if i.signedBy(ancestor) {
			return true
		}
		parent := slices.IndexFunc(others, i.signedBy)
		if parent < 0 {
			return false
		}
		i = others[parent]
	}
	return false
}

// signedBy reports whether a CA has signed the certificate of this one.
func (i Installation) signedBy(other Installation) bool {
	return bytes.Equal(i.Parsed.RawIssuer, other.Parsed.RawSubject) && i.Parsed.CheckSignatureFrom(other.Parsed) == nil
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
		if other.signedBy(i) {
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
	return translog.Entry{Time: at, Actor: by, Action: action, Outcome: translog.Done, Event: i.event()}
}

// event returns the event of log entries about the CA.
func (i Installation) event() *translog.CACertificate {
	return &translog.CACertificate{
		Issuer: pki.IssuerOf(i.Parsed), Subject: i.Parsed.Subject.String(), Fingerprint: i.Fingerprint(),
		KeyHash: pki.HashSPKI(i.Parsed.RawSubjectPublicKeyInfo), KeyLabel: i.Key,
	}
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

// ForeignCRL returns the refusal of a CRL whose issuer another server leads.
func ForeignCRL(c crl.CRL) *pki.Refusal {
	return pki.Refuse(pki.RuleCRL, "leave the CRLs of this CA to the server that signs them", "another server signs the CRL %s now",
		strings.TrimSuffix(c.Scope().Path(), ".crl"))
}

// CRLWithoutBytes returns the refusal of a CRL that other servers could not publish.
func CRLWithoutBytes(c crl.CRL) *pki.Refusal {
	return pki.Refuse(pki.RuleCRL, "sign a newer one", "another server has signed the CRL %s meanwhile, and removed the bytes of number %v",
		strings.TrimSuffix(c.Scope().Path(), ".crl"), c.Number)
}

// OldCRL returns the refusal of a CRL whose number is not greater than that of the CRL on record, or which includes fewer
// log entries.
func OldCRL(c crl.CRL) *pki.Refusal {
	return pki.Refuse(pki.RuleCRL, "publish a newer one", "the number %v of the CRL %s is not greater than the one on record, or its log position %d is lower",
		c.Number, strings.TrimSuffix(c.Scope().Path(), ".crl"), c.Position)
}
