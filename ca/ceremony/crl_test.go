package ceremony_test

import (
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"math/big"
	"strings"
	"testing"
	"time"

	"github.com/brevet-pki/brevet/ca/ceremony"
	"github.com/brevet-pki/brevet/pki"
)

func serialOf(t *testing.T, c *x509.Certificate) pki.Serial {
	t.Helper()
	s, err := pki.SerialFromInt(c.SerialNumber)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func someSerial(t *testing.T, n byte) pki.Serial {
	t.Helper()
	s, err := pki.MakeSerial(time.Now(), [pki.SerialRandomSize]byte{n})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func crlSpec(number int64, previous *x509.RevocationList, revoke ...ceremony.Revocation) ceremony.CRLSpec {
	now := time.Now()
	return ceremony.CRLSpec{Number: big.NewInt(number), Previous: previous, Revoke: revoke, Now: now, NextUpdate: now.Add(180 * 24 * time.Hour)}
}

func (p testPKI) crl(t *testing.T, spec ceremony.CRLSpec) *x509.RevocationList {
	t.Helper()
	der, err := ceremony.RootCRL(p.root, p.rootKey, spec)
	if err != nil {
		t.Fatal(err)
	}
	l, err := x509.ParseRevocationList(der)
	if err != nil {
		t.Fatal(err)
	}
	lintCRL(t, der)
	p.write(t, "crl.pem", "X509 CRL", der)
	return l
}

func TestCRLRevokesIssuingCA(t *testing.T) {
	p := build(t, ecPair(elliptic.P384()), nil)
	check := []string{"verify", "-crl_check", "-CAfile", "root.pem", "-CRLfile", "crl.pem", "sub.pem"}
	first := p.crl(t, crlSpec(1, nil))
	if len(first.RevokedCertificateEntries) != 0 {
		t.Errorf("the first CRL has entries: %v", first.RevokedCertificateEntries)
	}
	p.expect(t, "sub.pem: OK", "openssl", check...)
	at := time.Now().Add(-time.Hour).Truncate(time.Second)
	p.crl(t, crlSpec(2, first, ceremony.Revocation{Serial: serialOf(t, p.sub), Reason: pki.CessationOfOperation, At: at}))
	if out, err := p.run(t, "openssl", check...); err == nil || !strings.Contains(out, "error 23") { // X509_V_ERR_CERT_REVOKED
		t.Errorf("OpenSSL: %v\n%s", err, out)
	}
	out, err := p.run(t, "certtool", "--verify", "--load-ca-certificate", "root.pem", "--load-crl", "crl.pem", "--infile", "sub.pem")
	if err == nil || !strings.Contains(out, "revoked") {
		t.Errorf("GnuTLS: %v\n%s", err, out)
	}
}

func TestCRLCopiesEntries(t *testing.T) {
	p := build(t, ecPair(elliptic.P256()), nil)
	at := time.Now().Add(-time.Hour).UTC().Truncate(time.Second)
	one, two, three := someSerial(t, 1), someSerial(t, 2), someSerial(t, 3)
	first := p.crl(t, crlSpec(7, nil,
		ceremony.Revocation{Serial: one, Reason: pki.Superseded, At: at}, ceremony.Revocation{Serial: two, At: at}))
	second := p.crl(t, crlSpec(8, first))
	third := p.crl(t, crlSpec(4711, second, ceremony.Revocation{Serial: three, Reason: pki.CACompromise, At: at.Add(time.Minute)}))
	want := []ceremony.Revocation{{Serial: one, Reason: pki.Superseded, At: at}, {Serial: two, At: at}, {Serial: three, Reason: pki.CACompromise, At: at.Add(time.Minute)}}
	if len(third.RevokedCertificateEntries) != len(want) || third.Number.Int64() != 4711 {
		t.Fatalf("CRL %v: %v", third.Number, third.RevokedCertificateEntries)
	}
	for i, e := range third.RevokedCertificateEntries {
		if e.SerialNumber.Cmp(want[i].Serial.Int()) != 0 || e.ReasonCode != int(want[i].Reason) || !e.RevocationTime.Equal(want[i].At) {
			t.Errorf("entry %d: %v, want %v", i, e, want[i])
		}
		if hasReason := len(e.Extensions) > 0; hasReason != (want[i].Reason != pki.Unspecified) {
			t.Errorf("entry %d: extensions %v", i, e.Extensions)
		}
	}
}

// The entries of a CRL made by another tool may have extensions that Brevet does not write.
func TestCRLKeepsForeignEntryExtensions(t *testing.T) {
	p := build(t, ecPair(elliptic.P256()), nil)
	since, err := asn1.MarshalWithParams(time.Now().Add(-year).UTC(), "generalized")
	if err != nil {
		t.Fatal(err)
	}
	invalidityDate := pkix.Extension{Id: asn1.ObjectIdentifier{2, 5, 29, 24}, Value: since}
	der, err := x509.CreateRevocationList(rand.Reader, &x509.RevocationList{
		Number: big.NewInt(1), ThisUpdate: time.Now().Add(-time.Minute), NextUpdate: time.Now().Add(year),
		RevokedCertificateEntries: []x509.RevocationListEntry{{
			SerialNumber: big.NewInt(99), RevocationTime: time.Now().Add(-time.Hour), ReasonCode: 1, ExtraExtensions: []pkix.Extension{invalidityDate},
		}},
	}, p.root, p.rootKey)
	if err != nil {
		t.Fatal(err)
	}
	previous, err := x509.ParseRevocationList(der)
	if err != nil {
		t.Fatal(err)
	}
	e := p.crl(t, crlSpec(2, previous)).RevokedCertificateEntries[0]
	if len(e.Extensions) != 2 || e.ReasonCode != 1 || string(e.Extensions[0].Value) != string(since) {
		t.Errorf("the copied entry is %+v", e)
	}
}

func TestCRLRefuses(t *testing.T) {
	p := build(t, ecPair(elliptic.P256()), nil)
	other := build(t, ecPair(elliptic.P256()), nil) // with the same names
	at := time.Now().Add(-time.Hour)
	one := someSerial(t, 1)
	before := p.crl(t, crlSpec(7, nil, ceremony.Revocation{Serial: one, Reason: pki.Superseded, At: at}))
	foreign := other.crl(t, crlSpec(1, nil))
	revoke := func(serial pki.Serial, reason pki.Reason, at time.Time) ceremony.CRLSpec {
		return crlSpec(8, before, ceremony.Revocation{Serial: serial, Reason: reason, At: at})
	}
	edited := func(edit func(*ceremony.CRLSpec)) ceremony.CRLSpec {
		spec := crlSpec(8, before)
		edit(&spec)
		return spec
	}
	for name, c := range map[string]struct {
		spec ceremony.CRLSpec
		rule pki.Rule
		fix  string
	}{
		"the same number":     {crlSpec(7, before), pki.RuleCRL, "next number is 8"},
		"a lower number":      {crlSpec(6, before), pki.RuleCRL, "next number is 8"},
		"no number":           {edited(func(s *ceremony.CRLSpec) { s.Number = nil }), pki.RuleCRL, ""},
		"zero":                {crlSpec(0, nil), pki.RuleCRL, ""},
		"21 bytes":            {edited(func(s *ceremony.CRLSpec) { s.Number = new(big.Int).Lsh(big.NewInt(1), 160) }), pki.RuleCRL, ""},
		"another root's":      {crlSpec(8, foreign), pki.RuleCRL, "newest CRL of this root"},
		"out of date at once": {edited(func(s *ceremony.CRLSpec) { s.NextUpdate = s.Now }), pki.RuleCRL, "months"},
		"a clock set back":    {edited(func(s *ceremony.CRLSpec) { s.Now = p.root.NotBefore; s.Previous = later(t, p) }), pki.RuleCRL, "clock"},
		"an expired root":     {edited(func(s *ceremony.CRLSpec) { s.Now = s.Now.Add(21 * year) }), pki.RuleParent, "new root"},
		"revoked already":     {revoke(one, pki.CACompromise, at), pki.RuleAlreadyRevoked, "omit it"},
		"twice in one":        {crlSpec(8, nil, ceremony.Revocation{Serial: one, At: at}, ceremony.Revocation{Serial: one, At: at}), pki.RuleAlreadyRevoked, ""},
		"on hold":             {revoke(someSerial(t, 2), pki.CertificateHold, at), pki.RuleReason, ""},
		"no reason there is":  {revoke(someSerial(t, 2), 8, at), pki.RuleReason, ""},
		"the root itself":     {revoke(serialOf(t, p.root), pki.CACompromise, at), pki.RuleCRL, ""},
		"no serial":           {revoke(pki.Serial{}, pki.CACompromise, at), pki.RuleCRL, ""},
		"in the future":       {revoke(someSerial(t, 2), pki.CACompromise, time.Now().Add(time.Hour)), pki.RuleCRL, ""},
	} {
		der, err := ceremony.RootCRL(p.root, p.rootKey, c.spec)
		refused(t, name, der, err, c.rule, c.fix)
	}
	der, err := ceremony.RootCRL(p.root, other.rootKey, crlSpec(8, before))
	refused(t, "another root's key", der, err, pki.RuleParent, "")
}

// later returns a CRL signed with a clock that is an hour ahead.
func later(t *testing.T, p testPKI) *x509.RevocationList {
	t.Helper()
	spec := crlSpec(1, nil)
	spec.Now = spec.Now.Add(time.Hour)
	return p.crl(t, spec)
}
