package acme

import (
	"bytes"
	"context"
	"crypto/x509"
	"slices"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra"
)

// maxCertificate is the maximum size of a certificate in a request for revocation, in bytes.
const maxCertificate = 16 << 10

// reasons are the reasons that a client can give (RFC 5280 section 5.3.1).
var reasons = []pki.Reason{pki.Unspecified, pki.KeyCompromise, pki.AffiliationChanged, pki.Superseded, pki.CessationOfOperation}

// Revoke revokes a certificate (RFC 8555 section 7.6). The request must be signed by the account that ordered it, by an
// account with valid authorizations for all of its names, or with its own key. Authorizations do not suffice for a
// certificate with a SPIFFE ID or an email address, which no challenge proves. An account that did not order the certificate
// cannot declare its key compromised. When Revoke has returned, the certificate is revoked everywhere in this
// process.
func (a *Authority) Revoke(ctx context.Context, r RevokeRequest) error {
	if _, err := a.settings(); err != nil {
		return err
	}
	reason := pki.Reason(r.Reason) //nolint:gosec // compared with the accepted reasons
	if r.Reason < 0 || r.Reason > int(pki.AACompromise) || !slices.Contains(reasons, reason) {
		return pki.Refuse(pki.RuleReason, "use 0, 1, 3, 4 or 5 (RFC 5280 section 5.3.1)", "%d is not a reason that a client can give", r.Reason)
	}
	c, record, err := a.find(ctx, r.Certificate)
	if err != nil {
		return err
	}
	v := Revocation{Certificate: record.Ref, Reason: reason, Comment: "by ACME"}
	if len(r.Key) > 0 {
		key := pki.HashSPKI(r.Key)
		if key != record.KeyHash {
			return refuseRevocation("the key is not that of certificate %s", record.Ref.Serial)
		}
		v.By = pki.ActorKey(key)
		if reason == pki.KeyCompromise {
			v.Certificate, v.Key = pki.CertRef{}, key
		}
		return a.Revoker.Revoke(ctx, v)
	}
	account, err := a.valid(ctx, r.Account)
	if err != nil {
		return err
	}
	if err := a.mayRevoke(ctx, account, c, record.Ref, reason); err != nil {
		return err
	}
	v.By = account.Actor()
	return a.Revoker.Revoke(ctx, v)
}

// find returns a certificate and its record. It refuses a certificate that this CA did not issue.
func (a *Authority) find(ctx context.Context, der []byte) (*x509.Certificate, ra.Certificate, error) {
	refuse := func(detail string) (*x509.Certificate, ra.Certificate, error) {
		return nil, ra.Certificate{}, pki.Refuse(pki.RuleNotFound, "send a certificate of this CA in DER", "%s", detail)
	}
	if len(der) > maxCertificate {
		return refuse("the certificate is too large")
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		return refuse("the certificate does not parse")
	}
	serial, err := pki.SerialFromInt(c.SerialNumber)
	if err != nil {
		return refuse("no certificate with this serial number is on record")
	}
	record, err := a.Certificates.CertificateBySerial(ctx, serial)
	if err != nil {
		return nil, record, err
	}
	if len(record.DER) > 0 {
		if !bytes.Equal(record.DER, der) {
			return refuse("the certificate on record differs")
		}
		return c, record, nil
	}
	// A store that was recreated from the log has no DER.
	chain, _, err := a.Chains.Chain(record.Ref.Issuer)
	if err != nil {
		return nil, record, err
	}
	if len(chain) == 0 || !record.Delivered || c.CheckSignatureFrom(chain[0]) != nil {
		return refuse("the signature of the certificate does not verify")
	}
	return c, record, nil
}

// mayRevoke refuses an account that may not revoke a certificate.
func (a *Authority) mayRevoke(ctx context.Context, account Account, c *x509.Certificate, ref pki.CertRef, reason pki.Reason) error {
	st, err := a.Store.OrderOf(ctx, ref)
	if err == nil && st.Account.ID == account.ID {
		return nil
	}
	if refusal, ok := pki.AsRefusal(err); err != nil && (!ok || refusal.Rule.Class() != pki.NotFound) {
		return err
	}
	if reason == pki.KeyCompromise {
		return refuseRevocation("only the account that ordered certificate %s, or its key, can declare the key compromised", ref.Serial)
	}
	if len(c.URIs) > 0 || len(c.EmailAddresses) > 0 {
		return refuseRevocation("certificate %s has names that no challenge proves, such as a SPIFFE ID, and the account did not order it", ref.Serial)
	}
	names := identifiersOf(c)
	if len(names) > 0 {
		authorized, err := a.Store.Authorized(ctx, account.ID, names, a.Clock())
		if err != nil || authorized {
			return err
		}
	}
	return refuseRevocation("the account did not order certificate %s, and has no valid authorizations for all of its names", ref.Serial)
}

// identifiersOf returns the DNS names and addresses in a certificate.
func identifiersOf(c *x509.Certificate) []Identifier {
	var all []Identifier
	for _, n := range c.DNSNames {
		all = append(all, Identifier{DNS, n})
	}
	for _, ip := range c.IPAddresses {
		all = append(all, Identifier{IP, ip.String()})
	}
	return all
}

func refuseRevocation(detail string, args ...any) error {
	return pki.Refuse(pki.RuleACMERevocation,
		"sign the request with the key of the certificate, or as an account that ordered it or has validated all of its names", detail, args...)
}
