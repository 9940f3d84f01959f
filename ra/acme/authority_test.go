package acme_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"net"
	"net/url"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra/acme"
)

// TestOrderToCertificate goes from an account to a certificate, for an identity and for a rule.
func TestOrderToCertificate(t *testing.T) {
	w := newWorld(t, document)
	id := w.register(t, "web/shop")
	a := w.account(t, acme.NewExternalKey{Identity: id})
	c := w.issue(t, a.ID, "a.fleet.example", "*.b.fleet.example")
	if !slices.Equal(c.DNSNames, []string{"*.b.fleet.example", "a.fleet.example"}) || len(c.URIs) > 0 || c.Subject.String() != "" ||
		!slices.Equal(c.ExtKeyUsage, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}) {
		t.Errorf("the certificate has the names %v and %v, the subject %s and the usages %v", c.DNSNames, c.URIs, c.Subject, c.ExtKeyUsage)
	}
	if life := c.NotAfter.Sub(c.NotBefore); life != 90*time.Hour+time.Minute {
		t.Errorf("the certificate is valid for %s", life)
	}
	have := must(w.store.Identity(t.Context(), id))(t)
	if have.State != pki.Enrolled || have.Profile != "device" || len(have.DNSNames) > 0 {
		t.Errorf("the identity is %+v", have)
	}

	byRule := w.account(t, acme.NewExternalKey{Rule: "web"})
	w.issue(t, byRule.ID, "shop.web.example")
	have = must(w.store.Identity(t.Context(), must(pki.SPIFFEIDIn("fleet.example", "web/shop.web.example"))(t)))(t)
	if have.State != pki.Enrolled || have.Rule != "web" || have.Profile != "acme" || have.Subject.Kind != pki.EvidenceACME {
		t.Errorf("the identity is %+v", have)
	}
	// Another account that proves control of the name has the same identity.
	w.issue(t, w.account(t, acme.NewExternalKey{Rule: "web"}).ID, "shop.web.example")
}

func TestFinalize(t *testing.T) {
	w := newWorld(t, document)
	a := w.account(t, acme.NewExternalKey{Identity: w.register(t, "web/1")})
	accountKey := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(t)
	must(w.ChangeKey(t.Context(), a.ID, a.Thumbprint, must(x509.MarshalPKIXPublicKey(accountKey.Public()))(t), [32]byte{1}))(t)
	o := w.ready(t, a.ID, acme.DNS01, "a.fleet.example", "b.fleet.example")
	names := []string{"a.fleet.example", "b.fleet.example"}
	for what, request := range map[string]x509.CertificateRequest{
		"no name":        {},
		"one name":       {DNSNames: names[:1]},
		"another name":   {DNSNames: append(slices.Clone(names), "c.fleet.example")},
		"an address":     {DNSNames: names, IPAddresses: []net.IP{net.ParseIP("192.0.2.1")}},
		"an email":       {DNSNames: names, EmailAddresses: []string{"a@fleet.example"}},
		"a URI":          {DNSNames: names, URIs: []*url.URL{{Scheme: "spiffe", Host: "fleet.example", Path: "/web/1"}}},
		"another CN":     {DNSNames: names, Subject: pkix.Name{CommonName: "c.fleet.example"}},
		"a TLS feature":  {DNSNames: names, ExtraExtensions: []pkix.Extension{{Id: []int{1, 3, 6, 1, 5, 5, 7, 1, 24}, Value: []byte{0x30, 3, 2, 1, 5}}}},
		"the CN missing": {DNSNames: names[1:], Subject: pkix.Name{CommonName: "b.fleet.example"}},
	} {
		_, err := w.Finalize(t.Context(), a.ID, o.ID, csr(t, request))
		refused(t, what, err, pki.RuleCSRContent)
	}
	own := must(x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{DNSNames: names}, accountKey))(t)
	_, err := w.Finalize(t.Context(), a.ID, o.ID, own)
	refused(t, "the key of the account", err, pki.RuleCSRContent)
	_, err = w.Finalize(t.Context(), a.ID, o.ID, []byte("no CSR"))
	refused(t, "garbage", err, pki.RuleCSR)
	request := csr(t, x509.CertificateRequest{DNSNames: names[1:], Subject: pkix.Name{CommonName: "A.fleet.example", Organization: []string{"Fleet"}}})
	done := must(w.Finalize(t.Context(), a.ID, o.ID, request))(t)
	w.certificate(t, done)
	again := must(w.Finalize(t.Context(), a.ID, o.ID, request))(t)
	if again.Certificate != done.Certificate {
		t.Error("a repeat returns another certificate")
	}
	_, err = w.Finalize(t.Context(), a.ID, o.ID, csr(t, x509.CertificateRequest{DNSNames: names}))
	refused(t, "another key", err, pki.RuleACMEOrderNotReady)

	pending := must(w.NewOrder(t.Context(), a.ID, acme.NewOrder{Identifiers: named("a.fleet.example")}))(t)
	_, err = w.Finalize(t.Context(), a.ID, pending.ID, request)
	refused(t, "a pending order", err, pki.RuleACMEOrderNotReady)
	late := w.ready(t, a.ID, acme.DNS01, "a.fleet.example")
	w.advance(acme.OrderLifetime)
	_, err = w.Finalize(t.Context(), a.ID, late.ID, csr(t, x509.CertificateRequest{DNSNames: names[:1]}))
	refused(t, "an expired order", err, pki.RuleACMEOrderNotReady)
}

// TestFinalizeAtOnce finalizes one order in parallel with one key, and with several keys.
func TestFinalizeAtOnce(t *testing.T) {
	w := newWorld(t, document)
	a := w.account(t, acme.NewExternalKey{Identity: w.register(t, "web/1")})
	for _, keys := range []int{1, 6} {
		o := w.ready(t, a.ID, acme.DNS01, "a.fleet.example")
		var requests [][]byte
		for range keys {
			requests = append(requests, csr(t, x509.CertificateRequest{DNSNames: []string{"a.fleet.example"}}))
		}
		refs := map[pki.CertRef]bool{}
		var mu sync.Mutex
		var wait sync.WaitGroup
		for i := range 6 {
			wait.Go(func() {
				done, err := w.Finalize(t.Context(), a.ID, o.ID, requests[i%keys])
				if _, isRefusal := pki.AsRefusal(err); err != nil && (!isRefusal || keys == 1) {
					t.Error(err)
				}
				mu.Lock()
				defer mu.Unlock()
				if err == nil {
					refs[done.Certificate] = true
				}
			})
		}
		wait.Wait()
		if len(refs) != 1 {
			t.Errorf("with %d keys, %d certificates", keys, len(refs))
		}
	}
}

// TestOrdersAreBounded issues certificates up to the maximum for one set of names.
func TestOrdersAreBounded(t *testing.T) {
	w := newWorld(t, document)
	a := w.account(t, acme.NewExternalKey{Identity: w.register(t, "web/1")})
	for range 6 {
		w.issue(t, a.ID, "a.fleet.example")
	}
	o := w.ready(t, a.ID, acme.DNS01, "a.fleet.example")
	_, err := w.Finalize(t.Context(), a.ID, o.ID, csr(t, x509.CertificateRequest{DNSNames: []string{"a.fleet.example"}}))
	refused(t, "a seventh certificate", err, pki.RuleMaxUnexpired)
	w.issue(t, a.ID, "b.fleet.example")
	w.advance(91 * time.Hour)
	w.issue(t, a.ID, "a.fleet.example")
}

// TestSetsOfNamesAreBounded checks that an identity has no more certificates than 100 times max_unexpired, whatever their names.
func TestSetsOfNamesAreBounded(t *testing.T) {
	w := newWorld(t, document)
	account := w.account(t, acme.NewExternalKey{Identity: w.register(t, "device/1")})
	issue := func(name string) error {
		o := must(w.NewOrder(t.Context(), account.ID, acme.NewOrder{Identifiers: named(name), Profile: "web"}))(t)
		w.validate(t, o, acme.HTTP01)
		_, err := w.Finalize(t.Context(), account.ID, o.ID, csr(t, x509.CertificateRequest{DNSNames: []string{name}}))
		return err
	}
	for n := range 100 {
		if err := issue(fmt.Sprintf("%d.fleet.example", n)); err != nil {
			t.Fatal(err)
		}
	}
	refused(t, "a certificate with another set of names", issue("next.fleet.example"), pki.RuleMaxUnexpired)
}

func TestNewOrderRefuses(t *testing.T) {
	w := newWorld(t, document)
	byName := w.account(t, acme.NewExternalKey{Identity: w.register(t, "web/1")})
	byRule := w.account(t, acme.NewExternalKey{Rule: "web"})
	byDNS := w.account(t, acme.NewExternalKey{Rule: "dns"})
	for what, c := range map[string]struct {
		account acme.Account
		order   acme.NewOrder
		rule    pki.Rule
	}{
		"no name":                  {byName, acme.NewOrder{}, pki.RuleACMEIdentifier},
		"another domain":           {byName, acme.NewOrder{Identifiers: named("a.other.example")}, pki.RuleACMEIdentifier},
		"one of another domain":    {byName, acme.NewOrder{Identifiers: named("a.fleet.example", "a.other.example")}, pki.RuleACMEIdentifier},
		"an address":               {byName, acme.NewOrder{Identifiers: named("192.0.2.1")}, pki.RuleACMEIdentifier},
		"the server's name":        {byName, acme.NewOrder{Identifiers: named("CA.fleet.example")}, pki.RuleACMEIdentifier},
		"the server's address":     {byName, acme.NewOrder{Identifiers: named("192.0.2.9")}, pki.RuleACMEIdentifier},
		"the server's domain":      {byName, acme.NewOrder{Identifiers: named("*.fleet.example")}, pki.RuleACMEIdentifier},
		"another type":             {byName, acme.NewOrder{Identifiers: []acme.Identifier{{Type: "email", Value: "a@b"}}}, pki.RuleACMEIdentifierType},
		"another profile":          {byName, acme.NewOrder{Identifiers: named("a.fleet.example"), Profile: "device"}, pki.RuleACMEProfile},
		"two names":                {byRule, acme.NewOrder{Identifiers: named("a.web.example", "b.web.example")}, pki.RuleACMEIdentifier},
		"a wildcard":               {byRule, acme.NewOrder{Identifiers: named("*.web.example")}, pki.RuleACMEIdentifier},
		"a name of another rule":   {byRule, acme.NewOrder{Identifiers: named("a.dns.example")}, pki.RuleACMEIdentifier},
		"a name of the named rule": {byRule, acme.NewOrder{Identifiers: named("a.fleet.example")}, pki.RuleACMEIdentifier},
		"an unknown certificate":   {byName, acme.NewOrder{Identifiers: named("a.fleet.example"), Replaces: pki.CertRef{Issuer: pki.IssuerOf(w.root)}}, pki.RuleACMEReplaces},
	} {
		_, err := w.NewOrder(t.Context(), c.account.ID, c.order)
		refused(t, what, err, c.rule)
	}
	o := must(w.NewOrder(t.Context(), byDNS.ID, acme.NewOrder{Identifiers: named("A.dns.example", "a.dns.example")}))(t)
	z := must(w.Authorization(t.Context(), byDNS.ID, o.Authorizations[0]))(t)
	if len(o.Identifiers) != 1 || len(z.Challenges) != 1 || z.Challenges[0].Type != acme.DNS01 {
		t.Errorf("the order is %+v, with the authorization %+v", o, z)
	}
	o = must(w.NewOrder(t.Context(), byName.ID, acme.NewOrder{Identifiers: named("*.b.fleet.example", "a.fleet.example"), Profile: "web"}))(t)
	for i, want := range []int{1, 3} {
		if z := must(w.Authorization(t.Context(), byName.ID, o.Authorizations[i]))(t); len(z.Challenges) != want || z.Wildcard != (i == 0) {
			t.Errorf("the authorization is %+v", z)
		}
	}
}

// TestIdentityInCondition checks that a condition can depend on the identity of the external key.
func TestIdentityInCondition(t *testing.T) {
	w := newWorld(t, document)
	seventh := w.account(t, acme.NewExternalKey{Identity: w.register(t, "shop/7")})
	eighth := w.account(t, acme.NewExternalKey{Identity: w.register(t, "shop/8")})
	byRule := w.account(t, acme.NewExternalKey{Rule: "web"})
	n := acme.NewOrder{Identifiers: named("shop-7.example")}
	must(w.NewOrder(t.Context(), seventh.ID, n))(t)
	for _, other := range []acme.Account{eighth, byRule} {
		_, err := w.NewOrder(t.Context(), other.ID, n)
		refused(t, "the name of another identity", err, pki.RuleACMEIdentifier)
	}
}

// TestReplaces orders the successor of a certificate twice.
func TestReplaces(t *testing.T) {
	w := newWorld(t, document)
	a := w.account(t, acme.NewExternalKey{Identity: w.register(t, "web/1")})
	o := w.ready(t, a.ID, acme.HTTP01, "a.fleet.example", "b.fleet.example")
	before := must(w.Finalize(t.Context(), a.ID, o.ID, csr(t, x509.CertificateRequest{DNSNames: []string{"a.fleet.example", "b.fleet.example"}})))(t)
	next := acme.NewOrder{Identifiers: named("b.fleet.example"), Replaces: before.Certificate}
	first := must(w.NewOrder(t.Context(), a.ID, next))(t)
	_, err := w.NewOrder(t.Context(), a.ID, next)
	refused(t, "a second replacement", err, pki.RuleACMEReplaced)
	must(w.DeactivateAuthorization(t.Context(), a.ID, first.Authorizations[0]))(t)
	must(w.NewOrder(t.Context(), a.ID, next))(t)
	next.Identifiers = named("c.fleet.example")
	_, err = w.NewOrder(t.Context(), a.ID, next)
	refused(t, "no common name", err, pki.RuleACMEReplaces)
	other := w.account(t, acme.NewExternalKey{Identity: w.register(t, "web/2")})
	next.Identifiers = named("b.fleet.example")
	_, err = w.NewOrder(t.Context(), other.ID, next)
	refused(t, "another account", err, pki.RuleACMEReplaces)
}

// TestOtherAccountsFindNothing uses the objects of one account with another.
func TestOtherAccountsFindNothing(t *testing.T) {
	w := newWorld(t, document)
	a := w.account(t, acme.NewExternalKey{Identity: w.register(t, "web/1")})
	other := w.account(t, acme.NewExternalKey{Identity: w.register(t, "web/2")}).ID
	o := w.ready(t, a.ID, acme.HTTP01, "a.fleet.example")
	request := csr(t, x509.CertificateRequest{DNSNames: []string{"a.fleet.example"}})
	_, err := w.Order(t.Context(), other, o.ID)
	refused(t, "its order", err, pki.RuleACMEOrder)
	_, err = w.Finalize(t.Context(), other, o.ID, request)
	refused(t, "finalizing its order", err, pki.RuleACMEOrder)
	_, err = w.Authorization(t.Context(), other, o.Authorizations[0])
	refused(t, "its authorization", err, pki.RuleACMEAuthorization)
	_, err = w.DeactivateAuthorization(t.Context(), other, o.Authorizations[0])
	refused(t, "deactivating its authorization", err, pki.RuleACMEAuthorization)
	_, _, err = w.BeginValidation(t.Context(), other, o.Authorizations[0], acme.DNS01)
	refused(t, "its challenge", err, pki.RuleACMEAuthorization)
	done := must(w.Finalize(t.Context(), a.ID, o.ID, request))(t)
	_, err = w.Certificate(t.Context(), other, done.Certificate)
	refused(t, "its certificate", err, pki.RuleNotFound)
	c := w.certificate(t, done)
	refused(t, "revoking its certificate", w.Revoke(t.Context(), acme.RevokeRequest{Account: other, Certificate: c.Raw}), pki.RuleACMERevocation)
}

func TestRevoke(t *testing.T) {
	w := newWorld(t, document)
	a := w.account(t, acme.NewExternalKey{Identity: w.register(t, "web/1")})
	other := w.account(t, acme.NewExternalKey{Identity: w.register(t, "web/2")})
	status := func(c *x509.Certificate) pki.Status {
		t.Helper()
		return must(w.store.CertificateBySerial(t.Context(), must(pki.SerialFromInt(c.SerialNumber))(t)))(t).Status
	}
	check := func(c *x509.Certificate, r acme.RevokeRequest, want pki.Reason) {
		t.Helper()
		r.Certificate = c.Raw
		if err := w.Revoke(t.Context(), r); err != nil {
			t.Fatal(err)
		}
		if s := status(c); s.State != pki.Revoked || s.Reason != want {
			t.Errorf("the certificate is %+v", s)
		}
	}
	first := w.issue(t, a.ID, "a.fleet.example")
	for _, reason := range []int{-1, 2, 6, 7, 8, 9, 10, 11, 257} {
		refused(t, "a reason", w.Revoke(t.Context(), acme.RevokeRequest{Account: a.ID, Certificate: first.Raw, Reason: reason}), pki.RuleReason)
	}
	check(first, acme.RevokeRequest{Account: a.ID, Reason: 4}, pki.Superseded)
	second := w.issue(t, a.ID, "b.fleet.example")
	check(second, acme.RevokeRequest{Key: second.RawSubjectPublicKeyInfo, Reason: 1}, pki.KeyCompromise)

	third := w.issue(t, a.ID, "c.fleet.example", "*.c.fleet.example")
	spki, _ := newKey(t)
	refused(t, "another key", w.Revoke(t.Context(), acme.RevokeRequest{Key: spki, Certificate: third.Raw}), pki.RuleACMERevocation)
	w.ready(t, other.ID, acme.DNS01, "c.fleet.example")
	refused(t, "one of two names", w.Revoke(t.Context(), acme.RevokeRequest{Account: other.ID, Certificate: third.Raw}), pki.RuleACMERevocation)
	w.ready(t, other.ID, acme.DNS01, "*.c.fleet.example")
	refused(t, "a compromised key", w.Revoke(t.Context(), acme.RevokeRequest{Account: other.ID, Certificate: third.Raw, Reason: 1}), pki.RuleACMERevocation)
	check(third, acme.RevokeRequest{Account: other.ID}, pki.Unspecified)

	// An authorization proves no SPIFFE ID.
	o := must(w.NewOrder(t.Context(), a.ID, acme.NewOrder{Identifiers: named("d.fleet.example"), Profile: "web"}))(t)
	w.validate(t, o, acme.DNS01)
	request := csr(t, x509.CertificateRequest{DNSNames: []string{"d.fleet.example"}})
	fourth := w.certificate(t, must(w.Finalize(t.Context(), a.ID, o.ID, request))(t))
	w.ready(t, other.ID, acme.DNS01, "d.fleet.example")
	refused(t, "a SPIFFE ID", w.Revoke(t.Context(), acme.RevokeRequest{Account: other.ID, Certificate: fourth.Raw}), pki.RuleACMERevocation)
	check(fourth, acme.RevokeRequest{Account: a.ID}, pki.Unspecified)

	for what, der := range map[string][]byte{"garbage": []byte("no certificate"), "a large one": bytes.Repeat([]byte{0x30}, 1<<20), "the root": w.root.Raw} {
		refused(t, what, w.Revoke(t.Context(), acme.RevokeRequest{Account: a.ID, Certificate: der}), pki.RuleNotFound)
	}
}

func TestAccounts(t *testing.T) {
	w := newWorld(t, document)
	id := w.register(t, "web/1")
	spki, thumbprint := newKey(t)
	n := acme.NewAccount{Key: spki, Thumbprint: thumbprint}
	create := func(n acme.NewAccount) error { _, _, err := w.NewAccount(t.Context(), n); return err }
	refused(t, "no binding", create(n), pki.RuleACMEBindingRequired)
	refused(t, "only existing", create(acme.NewAccount{Key: spki, Thumbprint: thumbprint, OnlyExisting: true}), pki.RuleACMEAccount)
	if !w.RequiresBinding() || len(w.Profiles()) != 2 {
		t.Errorf("bindings are required: %t, and the profiles are %v", w.RequiresBinding(), w.Profiles())
	}
	k, hmacKey, err := w.CreateExternalKey(t.Context(), acme.NewExternalKey{Identity: id, By: operator})
	if err != nil || len(hmacKey) != 64 {
		t.Fatalf("the HMAC key has %d bytes: %v", len(hmacKey), err)
	}
	for what, b := range map[string]acme.Binding{
		"another ID":        {KeyID: acme.NewID().String(), Verify: func([]byte) bool { return true }},
		"no ID":             {KeyID: "1", Verify: func([]byte) bool { return true }},
		"another signature": {KeyID: k.ID.String(), Verify: func([]byte) bool { return false }},
	} {
		n.Binding = &b
		refused(t, what, create(n), pki.RuleACMEBinding)
	}
	n.Binding = &acme.Binding{KeyID: k.ID.String(), Verify: func(have []byte) bool { return bytes.Equal(have, hmacKey) }}
	for _, contact := range []string{"", "tel:1", "mailto:", "mailto:a", "mailto:a@b,c@d", "mailto:a@b?subject=c", "mailto:\u00e4@b"} {
		n.Contact = []string{contact}
		refused(t, contact, create(n), pki.RuleACMEContact)
	}
	n.Contact = make([]string, acme.MaxContacts+1)
	refused(t, "many contacts", create(n), pki.RuleACMEContact)
	n.Contact = []string{"mailto:admin@fleet.example"}
	if err := create(n); err != nil {
		t.Fatal(err)
	}
	a, created, err := w.NewAccount(t.Context(), acme.NewAccount{Key: spki, Thumbprint: thumbprint, OnlyExisting: true})
	if err != nil || created || a.ExternalKey != k.ID || !slices.Equal(a.Contact, n.Contact) {
		t.Errorf("the account is %+v, created: %t, %v", a, created, err)
	}
	n.Key, n.Thumbprint = newKey(t)
	refused(t, "a used key", create(n), pki.RuleACMEBinding)

	next, nextThumbprint := newKey(t)
	changed := must(w.ChangeKey(t.Context(), a.ID, thumbprint, next, nextThumbprint))(t)
	if !bytes.Equal(changed.Key, next) {
		t.Error("the account has another key")
	}
	_, err = w.ChangeKey(t.Context(), a.ID, nextThumbprint, []byte("no key"), [32]byte{1})
	refused(t, "no key", err, pki.RuleRequest)
	must(w.SetContact(t.Context(), a.ID, nil))(t)
	must(w.Deactivate(t.Context(), a.ID))(t)
	ended := must(w.Account(t.Context(), a.ID))(t)
	refused(t, "a deactivated account", ended.CheckValid(), pki.RuleACMEAccountStatus)
	_, err = w.NewOrder(t.Context(), a.ID, acme.NewOrder{Identifiers: named("a.fleet.example")})
	refused(t, "an order", err, pki.RuleACMEAccountStatus)
	_, _, err = w.NewAccount(t.Context(), acme.NewAccount{Key: next, Thumbprint: nextThumbprint, OnlyExisting: true})
	refused(t, "its key", err, pki.RuleACMEAccountStatus)
}

// TestAccountEndsDuringAnOrder deactivates an account between the validation and the end of an order.
func TestAccountEndsDuringAnOrder(t *testing.T) {
	w := newWorld(t, document)
	a := w.account(t, acme.NewExternalKey{Identity: w.register(t, "web/1")})
	o := w.ready(t, a.ID, acme.HTTP01, "a.fleet.example")
	must(w.Deactivate(t.Context(), a.ID))(t)
	_, err := w.Finalize(t.Context(), a.ID, o.ID, csr(t, x509.CertificateRequest{DNSNames: []string{"a.fleet.example"}}))
	refused(t, "finalizing", err, pki.RuleACMEAccountStatus)
}

func TestExternalKeys(t *testing.T) {
	w := newWorld(t, document)
	id := w.register(t, "web/1")
	for what, c := range map[string]struct {
		key  acme.NewExternalKey
		rule pki.Rule
	}{
		"neither":          {acme.NewExternalKey{}, pki.RuleRequest},
		"both":             {acme.NewExternalKey{Identity: id, Rule: "web"}, pki.RuleRequest},
		"a long time":      {acme.NewExternalKey{Identity: id, Lifetime: acme.MaxUnused + 1}, pki.RuleLifetime},
		"another rule":     {acme.NewExternalKey{Rule: "tokens"}, pki.RuleNotFound},
		"the named rule":   {acme.NewExternalKey{Rule: "named"}, pki.RuleNotFound},
		"an operator":      {acme.NewExternalKey{Identity: must(pki.OperatorID("fleet.example", "alice"))(t)}, pki.RuleReserved},
		"no such identity": {acme.NewExternalKey{Identity: must(pki.SPIFFEIDIn("fleet.example", "web/9"))(t)}, pki.RuleIdentity},
	} {
		c.key.By = operator
		_, _, err := w.CreateExternalKey(t.Context(), c.key)
		refused(t, what, err, c.rule)
	}
	a := w.account(t, acme.NewExternalKey{Identity: id})
	first, second := w.issue(t, a.ID, "a.fleet.example"), w.issue(t, a.ID, "b.fleet.example")
	if err := w.Revoke(t.Context(), acme.RevokeRequest{Account: a.ID, Certificate: second.Raw, Reason: 4}); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		k, _, err := w.RevokeExternalKey(t.Context(), acme.ExternalKeyRevocation{ID: a.ExternalKey, By: operator}, true)
		if err != nil || k.Status != acme.AccountRevoked {
			t.Fatalf("the external key is %+v: %v", k, err)
		}
	}
	status := must(w.store.CertificateBySerial(t.Context(), must(pki.SerialFromInt(first.SerialNumber))(t)))(t).Status
	if status.State != pki.Revoked || status.Reason != pki.PrivilegeWithdrawn {
		t.Errorf("the certificate is %+v", status)
	}
	_, err := w.NewOrder(t.Context(), a.ID, acme.NewOrder{Identifiers: named("a.fleet.example")})
	refused(t, "an order of a revoked account", err, pki.RuleACMEAccountStatus)
}

// TestPolicyWithoutACME checks that every request is refused if the policy has no section for ACME.
func TestPolicyWithoutACME(t *testing.T) {
	w := newWorld(t, "rules: [{name: tokens, evidence: [token]}]")
	_, _, err := w.NewAccount(t.Context(), acme.NewAccount{})
	refused(t, "an account", err, pki.RuleACMEOff)
	_, err = w.NewOrder(t.Context(), acme.NewID(), acme.NewOrder{})
	refused(t, "an order", err, pki.RuleACMEOff)
	_, err = w.Finalize(t.Context(), acme.NewID(), acme.NewID(), nil)
	refused(t, "finalizing", err, pki.RuleACMEOff)
	refused(t, "revoking", w.Revoke(t.Context(), acme.RevokeRequest{}), pki.RuleACMEOff)
	_, _, err = w.CreateExternalKey(t.Context(), acme.NewExternalKey{Rule: "tokens"})
	refused(t, "an external key", err, pki.RuleACMEOff)
	if !w.RequiresBinding() || len(w.Profiles()) > 0 {
		t.Error("there are profiles without ACME")
	}
}

// TestIdentityOfAnotherDevice orders a certificate for an identity that is enrolled with other evidence.
func TestIdentityOfAnotherDevice(t *testing.T) {
	w := newWorld(t, document)
	a := w.account(t, acme.NewExternalKey{Rule: "web"})
	w.issue(t, a.ID, "a.web.example")
	id := must(w.store.Identity(t.Context(), must(pki.SPIFFEIDIn("fleet.example", "web/a.web.example"))(t)))(t)
	id.Subject = pki.EvidenceSubject{Kind: pki.EvidenceX5C, Hash: [32]byte{1}}
	must(w.store.UpdateIdentity(t.Context(), id, operator, w.clock()))(t)
	_, err := w.NewOrder(t.Context(), a.ID, acme.NewOrder{Identifiers: named("a.web.example")})
	refused(t, "an order", err, pki.RuleEvidenceConflict)
}

// TestOtherKeyHolder checks that a key of another identity is refused.
func TestOtherKeyHolder(t *testing.T) {
	w := newWorld(t, document)
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(t)
	for i, path := range []string{"web/1", "web/2"} {
		a := w.account(t, acme.NewExternalKey{Identity: w.register(t, path)})
		o := w.ready(t, a.ID, acme.HTTP01, "a.fleet.example")
		request := must(x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{DNSNames: []string{"a.fleet.example"}}, key))(t)
		_, err := w.Finalize(t.Context(), a.ID, o.ID, request)
		if i == 0 {
			must(o, err)(t)
			continue
		}
		refused(t, "the key of another identity", err, pki.RuleKeyInUse)
		if o := must(w.Order(t.Context(), a.ID, o.ID))(t); o.Status != acme.StatusReady {
			t.Errorf("after a refused request, the order is %s", o.Status)
		}
	}
}
