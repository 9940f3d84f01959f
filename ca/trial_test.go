package ca_test

import (
	"crypto"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/pki"
)

// externalChain returns an issuing CA under a policy CA and a root of another organization. edit changes
// the two CAs below the root before they are signed.
func externalChain(t *testing.T, edit func(policy, issuing *x509.Certificate)) ca.IssuingCA {
	t.Helper()
	now := time.Now().Add(-time.Hour).Truncate(time.Second)
	template := func(name string) *x509.Certificate {
		return &x509.Certificate{
			SerialNumber: big.NewInt(now.UnixNano()), Subject: pkix.Name{CommonName: name}, NotBefore: now, NotAfter: now.Add(365 * 24 * time.Hour),
			BasicConstraintsValid: true, IsCA: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign, PermittedDNSDomainsCritical: true,
		}
	}
	root, policy, issuing := template("Corporate Root"), template("Policy"), template("Issuing")
	edit(policy, issuing)
	rootKey, policyKey, issuingKey := newKey(t, elliptic.P256()), newKey(t, elliptic.P256()), newKey(t, elliptic.P256())
	sign := func(template, parent *x509.Certificate, key, signer crypto.Signer) *x509.Certificate {
		der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
		if err != nil {
			t.Fatal(err)
		}
		return parse(t, der)
	}
	top := sign(root, root, rootKey, rootKey)
	middle := sign(policy, top, policyKey, rootKey)
	iss, err := ca.NewIssuingCA(sign(issuing, middle, issuingKey, policyKey), issuingKey, []*x509.Certificate{top, middle})
	if err != nil {
		t.Fatal(err)
	}
	return iss
}

func serverID(t *testing.T, trustDomain string) pki.SPIFFEID {
	t.Helper()
	id, err := pki.ServerID(trustDomain, "")
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func network(t *testing.T, text string) *net.IPNet {
	t.Helper()
	_, n, err := net.ParseCIDR(text)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// TestCheckIssues checks chains and profiles, most of which relying parties would refuse. The error must start with the
// configuration key that caused it, if there is one.
func TestCheckIssues(t *testing.T) {
	names := ca.Names{DNS: []string{"ca.fleet.example"}, IPs: []netip.Addr{netip.MustParseAddr("192.0.2.10")}}
	for name, c := range map[string]struct {
		edit func(policy, issuing *x509.Certificate)
		want []string // empty if everything verifies
	}{
		"no constraint":       {func(_, _ *x509.Certificate) {}, nil},
		"trust domain":        {func(_, i *x509.Certificate) { i.PermittedURIDomains = []string{"fleet.example"} }, nil},
		"domain above it":     {func(_, i *x509.Certificate) { i.PermittedURIDomains = []string{"example"} }, []string{"trust_domain: ", "fleet.example", "have the CA signed"}},
		"any below":           {func(_, i *x509.Certificate) { i.PermittedURIDomains = []string{".example"} }, nil},
		"only below":          {func(_, i *x509.Certificate) { i.PermittedURIDomains = []string{".fleet.example"} }, []string{"trust_domain: "}},
		"another, above":      {func(p, _ *x509.Certificate) { p.PermittedURIDomains = []string{"other.example"} }, []string{"trust_domain: ", "Policy"}},
		"excluded":            {func(_, i *x509.Certificate) { i.ExcludedURIDomains = []string{"fleet.example"} }, []string{"trust_domain: "}},
		"DNS":                 {func(_, i *x509.Certificate) { i.PermittedDNSDomains = []string{"fleet.example"} }, nil},
		"DNS with a dot":      {func(_, i *x509.Certificate) { i.PermittedDNSDomains = []string{".fleet.example"} }, nil},
		"DNS below with dot":  {func(_, i *x509.Certificate) { i.PermittedDNSDomains = []string{".ca.fleet.example"} }, []string{"names: ", "ca.fleet.example"}},
		"DNS above":           {func(p, _ *x509.Certificate) { p.PermittedDNSDomains = []string{"corp.example"} }, []string{"names: ", "ca.fleet.example", "have the CA signed"}},
		"DNS excluded, above": {func(p, _ *x509.Certificate) { p.ExcludedDNSDomains = []string{"fleet.example"} }, []string{"names: ", "ca.fleet.example"}},
		"addresses":           {func(_, i *x509.Certificate) { i.PermittedIPRanges = []*net.IPNet{network(t, "192.0.2.0/24")} }, nil},
		"other addresses":     {func(_, i *x509.Certificate) { i.PermittedIPRanges = []*net.IPNet{network(t, "10.0.0.0/8")} }, []string{"names: ", "192.0.2.10", "have the CA signed"}},
		"no addresses, above": {func(p, _ *x509.Certificate) { p.ExcludedIPRanges = []*net.IPNet{network(t, "0.0.0.0/0")} }, []string{"names: ", "192.0.2.10"}},
		"path length above":   {func(p, _ *x509.Certificate) { p.MaxPathLenZero = true }, []string{"relying parties could not verify ", "intermediates"}},
		"expired above":       {func(p, _ *x509.Certificate) { p.NotAfter = p.NotBefore.Add(time.Minute) }, []string{"relying parties could not verify ", "expired"}},
		"clients":             {usages(x509.ExtKeyUsageClientAuth), []string{"profiles.acme: ", "serverAuth"}},
		"TLS":                 {usages(x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth), []string{"profiles.ocsp: ", "OCSPSigning"}},
		"TLS and OCSP":        {usages(x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageOCSPSigning), nil},
		"any":                 {usages(x509.ExtKeyUsageAny), []string{"profiles.", "anyExtendedKeyUsage"}},
		"any, and by name": {
			usages(x509.ExtKeyUsageAny, x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageOCSPSigning), nil,
		},
		"clients, above": {func(p, _ *x509.Certificate) { p.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} }, []string{"profiles.acme: "}},
	} {
		chain, server := externalChain(t, c.edit), serverID(t, "fleet.example")
		err := chain.CheckIssues(server, names, time.Now())
		if err == nil {
			err = chain.CheckProfiles(merged(t, nil), server, time.Now())
		}
		if c.want == nil && err != nil || c.want != nil && err == nil {
			t.Errorf("%s: %v, want an error with %q", name, err, c.want)
		}
		for i, part := range c.want {
			if err != nil && (i == 0 && !strings.HasPrefix(err.Error(), part) || !strings.Contains(err.Error(), part)) {
				t.Errorf("%s: %v, want %q", name, err, c.want)
			}
		}
	}
}

func usages(all ...x509.ExtKeyUsage) func(policy, issuing *x509.Certificate) {
	return func(_, issuing *x509.Certificate) { issuing.ExtKeyUsage = all }
}

// TestNameConstraintsOfChainApply checks names against the constraints of every CA in the chain, for a new identity
// and for a draft.
func TestNameConstraintsOfChainApply(t *testing.T) {
	w := newWorld(t)
	w.issuer = externalChain(t, func(policy, issuing *x509.Certificate) {
		policy.PermittedDNSDomains, policy.PermittedIPRanges = []string{"fleet.example"}, []*net.IPNet{network(t, "192.0.2.0/24")}
		issuing.ExcludedDNSDomains, issuing.PermittedURIDomains = []string{"secret.fleet.example"}, []string{"fleet.example"}
	})
	a := w.open(t, w.store.CA())
	defer closeAuthority(t, a)
	for name, permitted := range map[string]bool{
		"fleet.example": true, "pump.fleet.example": true, "notfleet.example": false, "fleet.example.org": false,
		"secret.fleet.example": false, "a.secret.fleet.example": false, "localhost": false,
		"*.pump.fleet.example": true, "*.a.secret.fleet.example": false, "*.fleet.example": false, "*.other.example": false, "192.0.2.7": true, "192.0.3.7": false, "2001:db8::1": false,
	} {
		req := w.request(t)
		req.Names = ca.Names{DNS: []string{name}}
		if ip, err := netip.ParseAddr(name); err == nil {
			req.Names = ca.Names{IPs: []netip.Addr{ip}}
		}
		_, err := a.Draft(req)
		for what, err := range map[string]error{"drafted": err, "registered": a.CheckNames(req.Identity, req.Names)} {
			if refusal, ok := pki.AsRefusal(err); permitted && err != nil || !permitted && (!ok || refusal.Rule != pki.RuleNames) {
				t.Errorf("%s %s: %v, want permitted %v", name, what, err, permitted)
			}
		}
	}
	req := w.request(t)
	req.Identity = serverID(t, "other.example")
	_, err := a.Draft(req)
	if refusal, ok := pki.AsRefusal(err); !ok || refusal.Rule != pki.RuleNames {
		t.Errorf("another trust domain: %v", err)
	}
}
