package acme_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"sync"
	"testing"
	"time"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra/acme"
)

// authority is an authority in memory. Package server tests the door with the real one; this one shows what the door
// itself does.
type authority struct {
	ca    *x509.Certificate
	key   *ecdsa.PrivateKey
	clock func() time.Time

	mu             sync.Mutex
	secrets        map[string][]byte // of external keys, by ID
	accounts       map[acme.ID]acme.Account
	orders         map[acme.ID]acme.Order
	authorizations map[acme.ID]acme.Authorization
	certificates   map[pki.CertRef][]byte
	revoked        map[pki.CertRef]acme.RevokeRequest
	optional       bool          // accounts need no binding
	window         time.Duration // length of renewal windows
	refused        []pki.Actor
	fail           error
}

func newAuthority(t testing.TB) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "CA"}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	ca, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &authority{
		ca: ca, key: key, clock: time.Now, secrets: map[string][]byte{"kid-1": bytes.Repeat([]byte{1}, 32)}, window: 10 * time.Minute,
		accounts: map[acme.ID]acme.Account{}, orders: map[acme.ID]acme.Order{}, authorizations: map[acme.ID]acme.Authorization{},
		certificates: map[pki.CertRef][]byte{}, revoked: map[pki.CertRef]acme.RevokeRequest{},
	}
}

func (a *authority) lock() func() {
	a.mu.Lock()
	return a.mu.Unlock
}

func refuse(rule pki.Rule, detail string) error { return pki.Refuse(rule, "a hint", "%s", detail) }

func (a *authority) byKey(thumbprint [32]byte) (acme.Account, bool) {
	for _, account := range a.accounts {
		if account.Thumbprint == thumbprint {
			return account, true
		}
	}
	return acme.Account{}, false
}

func (a *authority) NewAccount(_ context.Context, n acme.NewAccount) (acme.Account, bool, error) {
	defer a.lock()()
	if a.fail != nil {
		return acme.Account{}, false, a.fail
	}
	if account, ok := a.byKey(n.Thumbprint); ok {
		return account, false, nil
	}
	if n.OnlyExisting {
		return acme.Account{}, false, refuse(pki.RuleACMEAccount, "there is no account with the key")
	}
	if n.Binding == nil && !a.optional {
		return acme.Account{}, false, refuse(pki.RuleACMEBindingRequired, "the request has no binding")
	}
	if n.Binding != nil {
		secret, ok := a.secrets[n.Binding.KeyID]
		if !ok || !n.Binding.Verify(secret) {
			return acme.Account{}, false, refuse(pki.RuleACMEBinding, "the binding is not valid")
		}
		delete(a.secrets, n.Binding.KeyID)
	}
	account := acme.Account{ID: acme.NewID(), Key: n.Key, Thumbprint: n.Thumbprint, Status: acme.AccountValid, Contact: n.Contact, CreatedAt: a.clock()}
	a.accounts[account.ID] = account
	return account, true, nil
}

func (a *authority) AccountByKey(_ context.Context, thumbprint [32]byte) (acme.Account, error) {
	defer a.lock()()
	account, ok := a.byKey(thumbprint)
	if !ok {
		return account, refuse(pki.RuleACMEAccount, "there is no such account")
	}
	return account, nil
}

func (a *authority) Account(_ context.Context, id acme.ID) (acme.Account, error) {
	defer a.lock()()
	account, ok := a.accounts[id]
	if !ok {
		return account, refuse(pki.RuleACMEAccount, "there is no such account")
	}
	return account, nil
}

func (a *authority) IdentityOf(context.Context, acme.Account) (pki.SPIFFEID, error) {
	return pki.SPIFFEID{}, nil
}

func (a *authority) RecordEvidence(_ context.Context, by pki.Actor, _ pki.SPIFFEID, _ pki.EvidenceRecord, err error) error {
	defer a.lock()()
	a.refused = append(a.refused, by)
	return err
}

func (a *authority) edit(id acme.ID, edit func(*acme.Account)) (acme.Account, error) {
	account := a.accounts[id]
	edit(&account)
	a.accounts[id] = account
	return account, nil
}

func (a *authority) ChangeKey(_ context.Context, id acme.ID, _ [32]byte, key []byte, thumbprint [32]byte) (acme.Account, error) {
	defer a.lock()()
	if _, ok := a.byKey(thumbprint); ok {
		return acme.Account{}, refuse(pki.RuleACMEAccountKey, "the key is that of another account")
	}
	return a.edit(id, func(account *acme.Account) { account.Key, account.Thumbprint = key, thumbprint })
}

func (a *authority) SetContact(_ context.Context, id acme.ID, contact []string) (acme.Account, error) {
	defer a.lock()()
	return a.edit(id, func(account *acme.Account) { account.Contact = contact })
}

func (a *authority) Deactivate(_ context.Context, id acme.ID) (acme.Account, error) {
	defer a.lock()()
	return a.edit(id, func(account *acme.Account) { account.Status = acme.AccountDeactivated })
}

func (a *authority) NewOrder(_ context.Context, account acme.ID, n acme.NewOrder) (acme.Order, error) {
	defer a.lock()()
	identifiers, err := acme.ParseIdentifiers(n.Identifiers)
	if err != nil {
		return acme.Order{}, err
	}
	if n.Profile != "" && n.Profile != "acme" {
		return acme.Order{}, refuse(pki.RuleACMEProfile, "the account may not have this profile")
	}
	o := acme.Order{
		ID: acme.NewID(), Account: account, Status: acme.StatusPending, Identifiers: identifiers, Profile: "acme",
		CreatedAt: a.clock(), ExpiresAt: a.clock().Add(acme.OrderLifetime), Replaces: n.Replaces,
	}
	for _, i := range identifiers {
		z := acme.Authorization{
			ID: acme.NewID(), Account: account, Order: o.ID, Identifier: i.Base(), Wildcard: i.IsWildcard(), Status: acme.StatusPending,
			ExpiresAt: o.ExpiresAt,
		}
		token := acme.NewID().String() + acme.NewID().String()
		for _, t := range acme.ChallengeTypes() {
			if t == acme.DNS01 && i.Type == acme.IP || t != acme.DNS01 && i.IsWildcard() {
				continue
			}
			z.Challenges = append(z.Challenges, acme.Challenge{Type: t, Token: token, Status: acme.StatusPending})
		}
		a.authorizations[z.ID] = z
		o.Authorizations = append(o.Authorizations, z.ID)
	}
	a.orders[o.ID] = o
	return o, nil
}

func (a *authority) Order(_ context.Context, account, id acme.ID) (acme.Order, error) {
	defer a.lock()()
	return a.orderOf(account, id)
}

func (a *authority) orderOf(account, id acme.ID) (acme.Order, error) {
	o, ok := a.orders[id]
	if !ok || o.Account != account {
		return acme.Order{}, refuse(pki.RuleACMEOrder, "the account has no such order")
	}
	if o.Status == acme.StatusPending {
		ready := true
		for _, z := range o.Authorizations {
			ready = ready && a.authorizations[z].Status == acme.StatusValid
			if a.authorizations[z].Status == acme.StatusInvalid {
				o.Status = acme.StatusInvalid
			}
		}
		if ready {
			o.Status = acme.StatusReady
		}
	}
	return o, nil
}

func (a *authority) Finalize(_ context.Context, account, id acme.ID, csr []byte) (acme.Order, error) {
	defer a.lock()()
	o, err := a.orderOf(account, id)
	if err != nil || o.Status == acme.StatusValid {
		return o, err
	}
	if o.Status != acme.StatusReady {
		return o, refuse(pki.RuleACMEOrderNotReady, "the order is "+string(o.Status))
	}
	request, err := x509.ParseCertificateRequest(csr)
	if err != nil || request.CheckSignature() != nil {
		return o, refuse(pki.RuleCSR, "the CSR is malformed")
	}
	serial, err := pki.MakeSerial(a.clock(), [14]byte(o.ID[:14]))
	if err != nil {
		return o, err
	}
	template := &x509.Certificate{
		SerialNumber: new(big.Int).SetBytes(serial.Bytes()), NotBefore: a.clock().Add(-time.Minute), NotAfter: a.clock().Add(time.Hour),
		IssuingCertificateURL: []string{"http://pki.fleet.example/ca.cer"},
	}
	for _, i := range o.Identifiers {
		if i.Type == acme.DNS {
			template.DNSNames = append(template.DNSNames, i.Value)
		}
	}
	template.IPAddresses = request.IPAddresses
	der, err := x509.CreateCertificate(rand.Reader, template, a.ca, request.PublicKey, a.key)
	if err != nil {
		return o, err
	}
	o.Status, o.Certificate = acme.StatusValid, pki.CertRef{Issuer: pki.IssuerOf(a.ca), Serial: serial}
	a.certificates[o.Certificate] = der
	a.orders[id] = o
	return o, nil
}

func (a *authority) authorizationOf(account, id acme.ID) (acme.Authorization, error) {
	z, ok := a.authorizations[id]
	if !ok || z.Account != account {
		return acme.Authorization{}, refuse(pki.RuleACMEAuthorization, "the account has no such authorization")
	}
	z.Challenges = append([]acme.Challenge(nil), z.Challenges...)
	return z, nil
}

func (a *authority) Authorization(_ context.Context, account, id acme.ID) (acme.Authorization, error) {
	defer a.lock()()
	return a.authorizationOf(account, id)
}

func (a *authority) DeactivateAuthorization(_ context.Context, account, id acme.ID) (acme.Authorization, error) {
	defer a.lock()()
	z, err := a.authorizationOf(account, id)
	if err == nil {
		z.Status = acme.StatusDeactivated
		a.authorizations[id] = z
	}
	return z, err
}

func (a *authority) BeginValidation(_ context.Context, account, id acme.ID, t acme.ChallengeType) (acme.Authorization, bool, error) {
	defer a.lock()()
	z, err := a.authorizationOf(account, id)
	if err != nil || z.Challenge(t).Status != acme.StatusPending {
		return z, false, err
	}
	z.Challenge(t).Status = acme.StatusProcessing
	a.authorizations[id] = z
	return z, true, nil
}

func (a *authority) EndValidation(_ context.Context, id acme.ID, t acme.ChallengeType, failure *pki.Refusal) (acme.Authorization, error) {
	defer a.lock()()
	z := a.authorizations[id]
	z.Challenges = append([]acme.Challenge(nil), z.Challenges...)
	c := z.Challenge(t)
	c.Failure, c.Status, z.Status = failure, acme.StatusInvalid, acme.StatusInvalid
	if failure == nil {
		c.Status, z.Status, c.ValidatedAt = acme.StatusValid, acme.StatusValid, a.clock()
	}
	a.authorizations[id] = z
	return z, nil
}

func (a *authority) Certificate(_ context.Context, account acme.ID, ref pki.CertRef) ([][]byte, error) {
	defer a.lock()()
	for _, o := range a.orders {
		if der, ok := a.certificates[ref]; ok && o.Certificate == ref && o.Account == account {
			return [][]byte{der, a.ca.Raw}, nil
		}
	}
	return nil, refuse(pki.RuleNotFound, "the account has no such certificate")
}

func (a *authority) Revoke(_ context.Context, r acme.RevokeRequest) error {
	defer a.lock()()
	if _, err := x509.ParseCertificate(r.Certificate); err != nil {
		return refuse(pki.RuleRequest, "the certificate cannot be parsed")
	}
	for ref, der := range a.certificates {
		if !bytes.Equal(der, r.Certificate) {
			continue
		}
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return err
		}
		if r.Account.IsZero() && !bytes.Equal(r.Key, c.RawSubjectPublicKeyInfo) {
			return refuse(pki.RuleACMERevocation, "the key may not revoke the certificate")
		}
		if _, ok := a.revoked[ref]; ok {
			return refuse(pki.RuleAlreadyRevoked, "the certificate is revoked")
		}
		a.revoked[ref] = r
		return nil
	}
	return refuse(pki.RuleACMERevocation, "the account may not revoke the certificate")
}

func (a *authority) Profiles() map[string]string { return map[string]string{"acme": "TLS servers"} }
func (a *authority) RequiresBinding() bool       { return !a.optional }

func (a *authority) RenewalInfo(ref pki.CertRef) (start, end time.Time, retryAfter time.Duration, err error) {
	defer a.lock()()
	if _, ok := a.certificates[ref]; !ok {
		return start, end, 0, refuse(pki.RuleNotFound, "there is no such certificate")
	}
	start = a.clock().Add(30 * time.Minute)
	return start, start.Add(a.window), 6 * time.Hour, nil
}
