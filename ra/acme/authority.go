package acme

import (
	"context"
	"crypto/x509"
	"fmt"
	"time"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra"
)

// Registrar decides about orders: a *ra.Registrar. It is safe for concurrent use.
type Registrar interface {
	// CheckOrder returns the profile of the certificate that an order would get, and which of the alternatives would lead
	// to one. It changes nothing.
	CheckOrder(ctx context.Context, alternatives []ra.Claim) (profile string, allowed []bool, err error)
	// Order issues the certificate of an order. Repeated and concurrent calls for one order lead to one certificate.
	Order(ctx context.Context, o ra.OrderRequest) (ca.Certificate, error)
}

// Certificates reads certificates. It is safe for concurrent use.
type Certificates interface {
	// Certificate returns the record of a certificate, or a refusal of the class NotFound.
	Certificate(ctx context.Context, ref pki.CertRef) (ra.Certificate, error)
	// CertificateBySerial returns the certificate with the serial number, of any issuing CA.
	CertificateBySerial(ctx context.Context, serial pki.Serial) (ra.Certificate, error)
}

// Chains returns CA certificates: a *ca.Authority. It is safe for concurrent use.
type Chains interface {
	// Chain returns the CA certificates that go with a certificate of an issuing CA, and their root.
	Chain(issuer pki.IssuerID) (chain []*x509.Certificate, root *x509.Certificate, err error)
}

// Revoker revokes certificates. It is safe for concurrent use.
type Revoker interface {
	// Revoke revokes a certificate, or all certificates with a key. When it has returned, no OCSP responder of this
	// process reports one of them as good.
	Revoke(ctx context.Context, r Revocation) error
}

// Revocation is a revocation of a certificate, or of all certificates with a key. Exactly one of Certificate and Key is
// set.
type Revocation struct {
	Certificate pki.CertRef
	Key         pki.KeyHash // is compromised
	Reason      pki.Reason
	By          pki.Actor
	Comment     string
}

// Config configures an Authority. All fields are required unless they say otherwise.
type Config struct {
	Store        Store
	Registrar    Registrar
	Certificates Certificates
	Chains       Chains
	Revoker      Revoker
	Sealer       *Sealer
	// OwnNames are the names by which clients know this server. No order gets a certificate for them. It may be empty.
	OwnNames []Identifier
	// Revision returns the newest revision of the policy.
	Revision func() ra.Revision
	Clock    func() time.Time
}

// Authority implements what ACME clients request. Its methods return a [*pki.Refusal] for a request that is not allowed,
// and refuse everything if the policy does not enable ACME (rule acme.off). They are safe for concurrent use.
//
// A method with an account as parameter requires that the caller has verified a signature with the account's key. It
// finds only objects of this account.
type Authority struct{ Config }

// New returns an Authority.
func New(c Config) *Authority { return &Authority{c} }

// Profiles returns the profiles that orders can choose, with descriptions for people.
func (a *Authority) Profiles() map[string]string {
	rev := a.Revision()
	all := map[string]string{}
	if _, err := settingsOf(rev); err != nil {
		return all
	}
	for _, name := range rev.OrderProfiles {
		if p, err := rev.Profiles.Profile(name); err == nil {
			all[name] = fmt.Sprintf("certificates that are valid for %s", p.Lifetime())
		}
	}
	return all
}

// RequiresBinding reports whether accounts need an external account binding.
func (a *Authority) RequiresBinding() bool {
	s, err := settingsOf(a.Revision())
	return err != nil || !s.OptionalBinding
}

// settingsOf returns the section of a revision of the policy about ACME.
func settingsOf(rev ra.Revision) (Settings, error) {
	if own, ok := rev.Authenticators[pki.EvidenceACME].(*Authenticator); ok {
		return own.settings, nil
	}
	return Settings{}, pki.Refuse(pki.RuleACMEOff, "ask the operator to add the section acme to the policy", "ACME is not enabled here")
}

// settings returns the section of the newest revision.
func (a *Authority) settings() (Settings, error) { return settingsOf(a.Revision()) }

// valid returns an account that must be valid.
func (a *Authority) valid(ctx context.Context, id ID) (Account, error) {
	account, err := a.Account(ctx, id)
	if err == nil {
		err = account.CheckValid()
	}
	return account, err
}
