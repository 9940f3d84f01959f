package x5c_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"fmt"
	"math/big"
	"strings"
	"testing"
	"time"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra/nonce"
)

// TestChainsThatOpenSSLRefusesToo compares the refusals of chains with OpenSSL's results for them.
func TestChainsThatOpenSSLRefusesToo(t *testing.T) {
	f := newFactory(t)
	a := newAuthenticator(t, f.acme(t))
	f.issue(t, "fake", "fake", spec{subject: "/O=Acme/CN=Acme Root", extensions: []string{caExtensions}})
	f.issue(t, "fake issuing", "fake", spec{subject: "/O=Acme/CN=Acme Cameras", extensions: []string{caExtensions}})
	f.issue(t, "no ca", "root", spec{extensions: []string{"keyUsage=critical,digitalSignature"}})
	f.issue(t, "no signing ca", "root", spec{extensions: []string{"basicConstraints=critical,CA:true\nkeyUsage=critical,cRLSign"}})
	f.issue(t, "short", "root", spec{extensions: []string{"basicConstraints=critical,CA:true,pathlen:0\nkeyUsage=critical,keyCertSign"}})
	f.issue(t, "below", "short", spec{extensions: []string{caExtensions}})
	f.issue(t, "old ca", "root", spec{extensions: []string{caExtensions}, start: "20200101000000Z", end: "20250101000000Z"})
	f.issue(t, "odd ca", "root", spec{extensions: []string{caExtensions, "1.2.3.4=critical,ASN1:NULL"}})
	f.issue(t, "mail ca", "root", spec{extensions: []string{caExtensions, "extendedKeyUsage=emailProtection"}})
	f.issue(t, "named ca", "root", spec{extensions: []string{caExtensions, "nameConstraints=critical,permitted;DNS:acme.example"}})
	for name, c := range map[string]struct {
		spec
		chain []string // the issuers of the device
		rule  pki.Rule
	}{
		"valid":                      {spec{}, []string{"issuing"}, ""},
		"self-made root":             {spec{}, []string{"fake issuing", "fake"}, pki.RuleEvidenceUntrusted},
		"self-made root, not sent":   {spec{}, []string{"fake issuing"}, pki.RuleEvidenceUntrusted},
		"device as CA":               {spec{}, []string{"no ca"}, pki.RuleEvidenceUntrusted},
		"CA that may not sign":       {spec{}, []string{"no signing ca"}, pki.RuleEvidenceUntrusted},
		"path length":                {spec{}, []string{"below", "short"}, pki.RuleEvidenceUntrusted},
		"expired":                    {spec{end: "20261031000000Z"}, []string{"issuing"}, pki.RuleEvidenceExpired},
		"not yet valid":              {spec{start: "20261102000000Z"}, []string{"issuing"}, pki.RuleEvidenceNotYet},
		"expired CA":                 {spec{}, []string{"old ca"}, pki.RuleEvidenceExpired},
		"unknown critical extension": {spec{extensions: []string{"1.2.3.4=critical,ASN1:NULL"}}, []string{"issuing"}, pki.RuleEvidenceUntrusted},
		"unknown critical extension beside a hardware name": {
			spec{extensions: []string{"1.2.3.4=critical,ASN1:NULL", hardware + "serial=OCT:HW-7"}}, []string{"issuing"}, pki.RuleEvidenceUntrusted,
		},
		"CA with an unknown critical extension": {spec{}, []string{"odd ca"}, pki.RuleEvidenceUntrusted},
		"for servers":                           {spec{extensions: []string{"extendedKeyUsage=serverAuth"}}, []string{"issuing"}, pki.RuleEvidenceUntrusted},
		"of a CA for email":                     {spec{}, []string{"mail ca"}, pki.RuleEvidenceUntrusted},
		"key agreement":                         {spec{extensions: []string{"keyUsage=critical,keyAgreement", "extendedKeyUsage=emailProtection"}}, []string{"issuing"}, pki.RuleEvidenceUntrusted},
		"name that the CA may not certify":      {spec{extensions: []string{"subjectAltName=DNS:other.example"}}, []string{"named ca"}, pki.RuleEvidenceUntrusted},
	} {
		t.Run(name, func(t *testing.T) {
			f.issue(t, "device", c.chain[0], c.spec)
			chain := append([]string{"device"}, c.chain...)
			_, err := f.identify(t, a, now, chain...)
			if c.rule == "" && err != nil {
				t.Error(err)
			} else if c.rule != "" {
				mustRefuse(t, name, err, c.rule)
			}
			if got := f.verifies(t, "root", now, "sslclient", chain...); got != (c.rule == "") {
				t.Errorf("OpenSSL accepts the chain: %t", got)
			}
		})
	}
}

// TestDevicesThatOpenSSLAccepts refuses what OpenSSL does not check.
func TestDevicesThatOpenSSLAccepts(t *testing.T) {
	f := newFactory(t)
	a := newAuthenticator(t, f.acme(t))
	const twice = "subjectAltName=otherName:1.3.6.1.5.5.7.8.4;SEQ:one,otherName:1.3.6.1.5.5.7.8.4;SEQ:one\n[one]\ntype=OID:1.2.3\nserial=OCT:1"
	for name, c := range map[string]struct {
		spec
		rule pki.Rule
	}{
		"a CA":                        {spec{extensions: []string{caExtensions}}, pki.RuleEvidenceUntrusted},
		"a CA without key usage":      {spec{extensions: []string{"basicConstraints=critical,CA:true"}}, pki.RuleEvidenceUntrusted},
		"unknown critical name":       {spec{extensions: []string{"subjectAltName=critical,otherName:1.2.3.4;UTF8:x"}}, pki.RuleEvidenceUntrusted},
		"unknown name among known":    {spec{extensions: []string{"subjectAltName=critical,DNS:a.example,otherName:1.2.3.4;UTF8:x"}}, pki.RuleEvidenceUntrusted},
		"registered ID":               {spec{extensions: []string{"subjectAltName=critical,RID:1.2.3.4"}}, pki.RuleEvidenceUntrusted},
		"hardware name is no such":    {spec{extensions: []string{"subjectAltName=otherName:1.3.6.1.5.5.7.8.4;UTF8:x"}}, pki.RuleEvidenceMalformed},
		"hardware name twice":         {spec{extensions: []string{twice}}, pki.RuleEvidenceMalformed},
		"permanent name is no such":   {spec{extensions: []string{"subjectAltName=otherName:1.3.6.1.5.5.7.8.3;SEQ:one\n[one]\nx=INT:1"}}, pki.RuleEvidenceMalformed},
		"two serial numbers":          {spec{subject: "/serialNumber=1/serialNumber=2/CN=x"}, pki.RuleEvidenceMalformed},
		"two common names":            {spec{subject: "/CN=1/CN=2"}, pki.RuleEvidenceMalformed},
		"key usage without signature": {spec{extensions: []string{"keyUsage=critical,keyEncipherment"}}, pki.RuleEvidenceUntrusted},
		"signed with SHA-1":           {spec{digest: "sha1"}, pki.RuleEvidenceAlgorithm},
		"RSA-1024":                    {spec{key: "RSA-1024"}, pki.RuleEvidenceAlgorithm},
		"RSA-2056":                    {spec{key: "RSA-2056"}, pki.RuleEvidenceAlgorithm},
		"P-521":                       {spec{key: "P-521"}, pki.RuleEvidenceAlgorithm},
		"P-224":                       {spec{key: "P-224"}, pki.RuleEvidenceAlgorithm},
	} {
		t.Run(name, func(t *testing.T) {
			f.issue(t, "device", "issuing", c.spec)
			_, err := f.identify(t, a, now, "device", "issuing")
			mustRefuse(t, name, err, c.rule)
		})
	}
}

// TestValidityEnds checks the last and the first second outside of the validity period.
func TestValidityEnds(t *testing.T) {
	f := newFactory(t)
	a := newAuthenticator(t, f.acme(t))
	c := f.issue(t, "device", "issuing", spec{})
	for _, at := range []time.Time{c.NotBefore, c.NotAfter} {
		if _, err := f.identify(t, a, at, "device", "issuing"); err != nil {
			t.Errorf("at %s: %v", at, err)
		}
	}
	_, err := f.identify(t, a, c.NotBefore.Add(-time.Second), "device", "issuing")
	mustRefuse(t, "a second early", err, pki.RuleEvidenceNotYet)
	_, err = f.identify(t, a, c.NotAfter.Add(time.Second), "device", "issuing")
	mustRefuse(t, "a second late", err, pki.RuleEvidenceExpired)
	f.issue(t, "device", "issuing", spec{end: forever})
	if _, err := f.identify(t, a, time.Date(9998, 1, 1, 0, 0, 0, 0, time.UTC), "device", "issuing"); err != nil {
		t.Errorf("a device without an end: %v", err)
	}
}

// certify makes a certificate with crypto/x509, which makes those that OpenSSL does not.
func certify(t testing.TB, template, parent *x509.Certificate, public crypto.PublicKey, key crypto.Signer) *x509.Certificate {
	t.Helper()
	return must(x509.ParseCertificate(certificateDER(t, template, parent, public, key)))(t)
}

func certificateDER(t testing.TB, template, parent *x509.Certificate, public crypto.PublicKey, key crypto.Signer) []byte {
	t.Helper()
	template.SerialNumber = must(rand.Int(rand.Reader, big.NewInt(1<<62)))(t)
	template.NotBefore, template.NotAfter = now.Add(-time.Hour), now.Add(time.Hour)
	return must(x509.CreateCertificate(rand.Reader, template, parent, public, key))(t)
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	return must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(t)
}

// TestCostlyChains checks that limits apply before any signature is verified: none of the chains leads to a source.
func TestCostlyChains(t *testing.T) {
	f := newFactory(t)
	a := newAuthenticator(t, f.acme(t))
	key := newKey(t)
	huge := &rsa.PublicKey{N: new(big.Int).SetBit(must(rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 16383)))(t), 16383, 1), E: 65537}
	huge.N.SetBit(huge.N, 0, 1)
	name := func(text string) pkix.Name { return pkix.Name{CommonName: text} }
	ca := func(text string) *x509.Certificate {
		return &x509.Certificate{Subject: name(text), IsCA: true, BasicConstraintsValid: true}
	}
	issuing := f.certificate(t, "issuing")
	var fifty [][]byte
	for i := range 50 {
		fifty = append(fifty, certify(t, ca(fmt.Sprint(i)), ca(fmt.Sprint(i+1)), key.Public(), key).Raw)
	}
	// It claims the name of a trusted CA as its issuer, so that only the size of its key is wrong.
	large := certify(t, &x509.Certificate{Subject: name("x")}, issuing, huge, f.key(t, "issuing"))
	weak := &rsa.PublicKey{N: new(big.Int).Rsh(huge.N, 16384-2048), E: 1} // each signature verifies
	weakCA := certify(t, ca("y"), issuing, weak, f.key(t, "issuing"))
	largeCA := certify(t, ca("y"), issuing, huge, f.key(t, "issuing"))
	below := certify(t, &x509.Certificate{Subject: name("x")}, ca("y"), key.Public(), key)
	bulky := certify(t, &x509.Certificate{Subject: name("x"), DNSNames: []string{strings.Repeat("a", 9000)}}, issuing, key.Public(), f.key(t, "issuing"))
	for what, c := range map[string]struct {
		chain [][]byte
		rule  pki.Rule
	}{
		"50 certificates":            {fifty, pki.RuleEvidenceSize},
		"9 certificates":             {fifty[:9], pki.RuleEvidenceSize},
		"8 certificates":             {fifty[:8], pki.RuleEvidenceUntrusted},
		"10,000 empty certificates":  {make([][]byte, 10000), pki.RuleEvidenceSize},
		"no certificate":             {nil, pki.RuleEvidenceMalformed},
		"an empty certificate":       {[][]byte{{}}, pki.RuleEvidenceMalformed},
		"data after a certificate":   {[][]byte{append(bytes.Clone(issuing.Raw), 0)}, pki.RuleEvidenceMalformed},
		"RSA-16384":                  {[][]byte{large.Raw, issuing.Raw}, pki.RuleEvidenceAlgorithm},
		"RSA-16384 of a CA":          {[][]byte{below.Raw, largeCA.Raw, issuing.Raw}, pki.RuleEvidenceAlgorithm},
		"RSA with the exponent 1":    {[][]byte{below.Raw, weakCA.Raw, issuing.Raw}, pki.RuleEvidenceAlgorithm},
		"a certificate of 9 KB":      {[][]byte{bulky.Raw, issuing.Raw}, pki.RuleEvidenceSize},
		"a megabyte":                 {[][]byte{make([]byte, 1<<20)}, pki.RuleEvidenceSize},
		"a negative serial number":   {[][]byte{negative(t, f.certificate(t, "issuing"))}, pki.RuleEvidenceMalformed},
		"a CA with the same subject": {[][]byte{certify(t, ca("z"), ca("z"), key.Public(), key).Raw, certify(t, ca("z"), ca("z"), key.Public(), key).Raw}, pki.RuleEvidenceMalformed},
	} {
		_, err := a.Identify(t.Context(), present(t, a, c.chain, key, now))
		mustRefuse(t, what, err, c.rule)
	}
	p := present(t, a, f.chain(t, "issuing"), key, now)
	e := must(pki.ParseX5CEvidence(p.Evidence))(t)
	e.Signature = make([]byte, 513)
	p.Evidence = e.Encode()
	_, err := a.Identify(t.Context(), p)
	mustRefuse(t, "a long signature", err, pki.RuleEvidenceSize)
}

// negative returns the certificate with a negative serial number.
func negative(t testing.TB, c *x509.Certificate) []byte {
	t.Helper()
	serial := must(asn1.Marshal(c.SerialNumber))(t)
	changed := bytes.Clone(serial)
	changed[2] |= 0x80
	return bytes.Replace(c.Raw, serial, changed, 1)
}

func TestPossession(t *testing.T) {
	f := newFactory(t)
	a := newAuthenticator(t, f.acme(t))
	f.issue(t, "device", "issuing", spec{})
	f.issue(t, "other", "issuing", spec{})
	f.issue(t, "rsa", "issuing", spec{key: "RSA-2048"})
	chain, key := f.chain(t, "device", "issuing"), f.key(t, "device")
	statement := func(p *pki.X5CEvidence, request pki.RequestID, hash pki.KeyHash) []byte {
		return pki.X5CStatement(trustDomain, hash, request, p.Challenge)
	}
	for name, edit := range map[string]func(e *pki.X5CEvidence, request pki.RequestID){
		"key of another device": func(e *pki.X5CEvidence, r pki.RequestID) {
			e.Signature = sign(t, f.key(t, "other"), statement(e, r, certified))
		},
		"key of another type": func(e *pki.X5CEvidence, r pki.RequestID) {
			e.Signature = sign(t, f.key(t, "rsa"), statement(e, r, certified))
		},
		"certificate of another device": func(e *pki.X5CEvidence, _ pki.RequestID) { e.Certificates = f.chain(t, "other", "issuing") },
		"certificate of another type":   func(e *pki.X5CEvidence, _ pki.RequestID) { e.Certificates = f.chain(t, "rsa", "issuing") },
		"statement for another key": func(e *pki.X5CEvidence, r pki.RequestID) {
			e.Signature = sign(t, key, statement(e, r, pki.HashSPKI(nil)))
		},
		"statement for another request": func(e *pki.X5CEvidence, _ pki.RequestID) {
			e.Signature = sign(t, key, statement(e, requestID(t), certified))
		},
		"statement for another challenge": func(e *pki.X5CEvidence, r pki.RequestID) {
			e.Signature = sign(t, key, pki.X5CStatement(trustDomain, certified, r, append(bytes.Clone(e.Challenge), 0)))
		},
		"statement for another trust domain": func(e *pki.X5CEvidence, r pki.RequestID) {
			e.Signature = sign(t, key, pki.X5CStatement("other.example", certified, r, e.Challenge))
		},
		"the challenge alone": func(e *pki.X5CEvidence, _ pki.RequestID) { e.Signature = sign(t, key, e.Challenge) },
		"no signature":        func(e *pki.X5CEvidence, _ pki.RequestID) { e.Signature = nil },
	} {
		p := present(t, a, chain, key, now)
		e := must(pki.ParseX5CEvidence(p.Evidence))(t)
		edit(&e, p.Request)
		p.Evidence = e.Encode()
		_, err := a.Identify(t.Context(), p)
		mustRefuse(t, name, err, pki.RuleEvidenceSignature)
	}
}

// A replayed piece of evidence has the nonce of the first use, which the store consumes. It never serves for another
// request, and not after five minutes.
func TestReplay(t *testing.T) {
	f := newFactory(t)
	a := newAuthenticator(t, f.acme(t))
	f.issue(t, "device", "issuing", spec{})
	p := present(t, a, f.chain(t, "device", "issuing"), f.key(t, "device"), now)
	first := must(a.Identify(t.Context(), p))(t)
	p.At = now.Add(nonce.Lifetime - time.Second)
	if again := must(a.Identify(t.Context(), p))(t); again.Nonce != first.Nonce || first.Nonce.IsZero() {
		t.Errorf("the nonces are %v and %v", first.Nonce, again.Nonce)
	}
	other := p
	other.Request = requestID(t)
	_, err := a.Identify(t.Context(), other)
	mustRefuse(t, "another request", err, pki.RuleEvidenceKey)
	p.At = now.Add(nonce.Lifetime)
	_, err = a.Identify(t.Context(), p)
	mustRefuse(t, "too late", err, pki.RuleChallengeExpired)
}

// A certificate with the name and the key of a trusted CA is refused if the CA above did not sign it, although the
// configured certificate of that CA would verify the device.
func TestEachSentCertificateIsVerified(t *testing.T) {
	f := newFactory(t)
	f.issue(t, "device", "issuing", spec{})
	issuing := f.certificate(t, "issuing")
	template := *issuing
	forged := certify(t, &template, &x509.Certificate{RawSubject: f.certificate(t, "root").RawSubject}, issuing.PublicKey, newKey(t))
	source := f.acme(t)
	source.Intermediates = []*x509.Certificate{issuing}
	a := newAuthenticator(t, source)
	device := f.certificate(t, "device")
	_, err := a.Identify(t.Context(), present(t, a, [][]byte{device.Raw, forged.Raw}, f.key(t, "device"), now))
	mustRefuse(t, "a forged certificate of the issuing CA", err, pki.RuleEvidenceUntrusted)
	if _, err := f.identify(t, a, now, "device", "issuing"); err != nil {
		t.Error(err)
	}
}
