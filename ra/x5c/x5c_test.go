package x5c_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"encoding/hex"
	"strings"
	"testing"
	"time"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra"
	"github.com/brevet-pki/brevet/ra/evidencetest"
	"github.com/brevet-pki/brevet/ra/nonce"
	"github.com/brevet-pki/brevet/ra/x5c"
)

var certified = pki.HashSPKI([]byte("the key to certify"))

func requestID(t testing.TB) pki.RequestID {
	t.Helper()
	b := make([]byte, 16)
	_, _ = rand.Read(b)
	id, err := pki.RequestIDFromBytes(b)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

const trustDomain = "fleet.example"

func newAuthenticator(t testing.TB, sources ...x5c.Source) *x5c.Authenticator {
	t.Helper()
	return withKey(t, 1, sources...)
}

// withKey returns the authenticator of the CA with a sealing key.
func withKey(t testing.TB, key byte, sources ...x5c.Source) *x5c.Authenticator {
	t.Helper()
	nonces, err := nonce.FromKey([32]byte{key}, [16]byte{})
	if err != nil {
		t.Fatal(err)
	}
	a, err := x5c.New(trustDomain, sources, nonces)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// acme is the source for the factory's root.
func (f *factory) acme(t testing.TB) x5c.Source {
	t.Helper()
	return x5c.Source{Name: "cameras", Roots: []*x509.Certificate{f.certificate(t, "root")}}
}

// chain returns certificates in DER.
func (f *factory) chain(t testing.TB, names ...string) [][]byte {
	t.Helper()
	var ders [][]byte
	for _, name := range names {
		ders = append(ders, f.certificate(t, name).Raw)
	}
	return ders
}

// sign signs a statement as a device does.
func sign(t testing.TB, key crypto.Signer, statement []byte) []byte {
	t.Helper()
	var options crypto.SignerOpts = crypto.SHA256
	digest := statement
	switch public := key.Public().(type) {
	case ed25519.PublicKey:
		options = crypto.Hash(0)
	case *ecdsa.PublicKey:
		if public.Curve == elliptic.P384() {
			options = crypto.SHA384
		}
	case *rsa.PublicKey:
		options = &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: crypto.SHA256}
	}
	if hash := options.HashFunc(); hash != 0 {
		h := hash.New()
		h.Write(statement)
		digest = h.Sum(nil)
	}
	signature, err := key.Sign(rand.Reader, digest, options)
	if err != nil {
		t.Fatal(err)
	}
	return signature
}

// present returns the evidence of a device in a new request.
func present(t testing.TB, a *x5c.Authenticator, certificates [][]byte, key crypto.Signer, at time.Time) ra.Presented {
	t.Helper()
	p := ra.Presented{Request: requestID(t), Key: certified, At: at}
	challenge, err := a.Challenge(context.Background(), ra.ChallengeRequest{Kind: pki.EvidenceX5C, Request: p.Request, Key: p.Key}, at)
	if err != nil {
		t.Fatal(err)
	}
	signature := sign(t, key, pki.X5CStatement(trustDomain, p.Key, p.Request, challenge))
	p.Evidence = pki.X5CEvidence{Certificates: certificates, Challenge: challenge, Signature: signature}.Encode()
	return p
}

// identify presents the certificates of the factory with the key of the first.
func (f *factory) identify(t testing.TB, a *x5c.Authenticator, at time.Time, names ...string) (ra.Claim, error) {
	t.Helper()
	return a.Identify(t.Context(), present(t, a, f.chain(t, names...), f.key(t, names[0]), at))
}

func mustRefuse(t testing.TB, what string, err error, rule pki.Rule) {
	t.Helper()
	refusal, ok := pki.AsRefusal(err)
	if !ok || refusal.Rule != rule || refusal.Hint == "" {
		t.Errorf("%s: got %v, want a refusal by %s", what, err, rule)
	}
	t.Logf("%s: %v", what, err)
}

// TestConformance runs the suite with devices that OpenSSL made, one with each type of key.
func TestConformance(t *testing.T) {
	for _, kind := range []string{"P-256", "P-384", "RSA-2048", "Ed25519"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			f := newFactory(t)
			f.issue(t, "device", "issuing", spec{key: kind})
			key, chain := f.key(t, "device"), f.chain(t, "device", "issuing")
			evidencetest.Run(t, evidencetest.Sample{
				Kind: pki.EvidenceX5C, Authenticator: newAuthenticator(t, f.acme(t)), Foreign: withKey(t, 2, f.acme(t)),
				At: now, Expired: now.Add(nonce.Lifetime), Key: certified,
				Make: func(t testing.TB, r evidencetest.Request) []byte {
					signature := sign(t, key, pki.X5CStatement(trustDomain, r.Key, r.ID, r.Challenge))
					return pki.X5CEvidence{Certificates: chain, Challenge: r.Challenge, Signature: signature}.Encode()
				},
			})
		})
	}
}

func TestFactsOfDevices(t *testing.T) {
	f := newFactory(t)
	a := newAuthenticator(t, f.acme(t))
	for name, c := range map[string]struct {
		spec
		facts   map[string]any
		purpose string // for OpenSSL; empty for TLS clients
	}{
		"subject": {
			spec{subject: "/O=Acme/serialNumber=SN-0042/CN=Camera 42", end: forever},
			map[string]any{"x5c.serial": "SN-0042", "x5c.common_name": "Camera 42", "x5c.organization": "Acme", "x5c.hardware_type": "", "x5c.source": "cameras",
				"x5c.issuer": "CN=Acme Cameras,O=Acme", "x5c.not_after": time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC)}, "",
		},
		"hardware": {
			spec{subject: "/O=Acme", extensions: []string{hardware + "serial=OCT:HW-7"}, end: forever},
			map[string]any{"x5c.serial": "HW-7", "x5c.hardware_type": "1.3.6.1.4.1.99999.7", "x5c.common_name": ""}, "",
		},
		"hardware, binary": {
			spec{extensions: []string{strings.Replace(hardware, "critical,", "", 1) + "serial=FORMAT:HEX,OCT:0010ff"}},
			map[string]any{"x5c.serial": "0x0010ff"}, "",
		},
		"hardware, text that looks binary": {
			spec{extensions: []string{hardware + "serial=OCT:0x12"}}, map[string]any{"x5c.serial": "0x30783132"}, "",
		},
		"hardware and subject": {
			spec{subject: "/serialNumber=SN-1/CN=x", extensions: []string{hardware + "serial=OCT:HW-7"}},
			map[string]any{"x5c.serial": "SN-1", "x5c.hardware_type": "1.3.6.1.4.1.99999.7"}, "",
		},
		"permanent identifier": {
			spec{extensions: []string{"subjectAltName=critical,otherName:1.3.6.1.5.5.7.8.3;SEQ:permanent\n[permanent]\nid=UTF8:PI-7\nassigner=OID:1.3.6.1.4.1.99999.8"}},
			map[string]any{"x5c.serial": "PI-7", "x5c.hardware_type": ""}, "",
		},
		"permanent identifier without value": {
			spec{extensions: []string{"subjectAltName=otherName:1.3.6.1.5.5.7.8.3;SEQ:permanent\n[permanent]\nassigner=OID:1.3.6.1.4.1.99999.8"}},
			map[string]any{"x5c.serial": ""}, "",
		},
		"other names": {
			spec{extensions: []string{"subjectAltName=DNS:camera.example,IP:192.0.2.1,RID:1.2.3,otherName:1.2.3.4;UTF8:other,dirName:dir\n[dir]\nCN=x"}},
			map[string]any{"x5c.serial": ""}, "",
		},
		"for TLS clients": {spec{extensions: []string{"extendedKeyUsage=serverAuth,clientAuth", "keyUsage=critical,digitalSignature"}}, nil, ""},
		"for all uses":    {spec{extensions: []string{"extendedKeyUsage=anyExtendedKeyUsage"}}, nil, "any"},
	} {
		t.Run(name, func(t *testing.T) {
			device := f.issue(t, "device", "issuing", c.spec)
			claim, err := f.identify(t, a, now, "device", "issuing")
			if err != nil {
				t.Fatal(err)
			}
			if !f.verifies(t, "root", now, or(c.purpose, "sslclient"), "device", "issuing") {
				t.Error("OpenSSL refuses the chain")
			}
			for fact, want := range c.facts {
				if got := claim.Facts[fact]; got != want {
					t.Errorf("%s is %q, want %q", fact, got, want)
				}
			}
			serial, _, _ := strings.Cut(strings.TrimPrefix(run(t, "x509", "-in", f.path("device.pem"), "-noout", "-serial"), "serial="), "\n")
			if claim.Facts["x5c.certificate_serial"] != serial {
				t.Errorf("x5c.certificate_serial is %s, and %s in OpenSSL", claim.Facts["x5c.certificate_serial"], serial)
			}
			issuing := f.certificate(t, "issuing")
			both := append(pki.IssuerOf(issuing).Bytes(), must(asn1.Marshal(device.SerialNumber))(t)...)
			if claim.Subject.Hash != sha256.Sum256(both) || claim.Subject != x5c.SubjectOf(device, issuing) {
				t.Errorf("the subject is %s, want the hash of the issuer ID and the serial number", claim.Subject)
			}
		})
	}
}

func must[T any](value T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return value
	}
}

// Devices may send the root or leave it out, and an operator may configure the issuing CAs.
func TestChainsToSources(t *testing.T) {
	f := newFactory(t)
	f.issue(t, "policy", "root", spec{subject: "/O=Acme/CN=Acme Policy", extensions: []string{caExtensions}})
	f.issue(t, "deep", "policy", spec{subject: "/O=Acme/CN=Acme Deep", extensions: []string{caExtensions}})
	f.issue(t, "device", "issuing", spec{})
	f.issue(t, "low", "deep", spec{})
	f.renew(t, "renewed", "issuing", "root")
	root, issuing, policy, deep := f.certificate(t, "root"), f.certificate(t, "issuing"), f.certificate(t, "policy"), f.certificate(t, "deep")
	of := func(certs ...*x509.Certificate) []*x509.Certificate { return certs }
	for name, c := range map[string]struct {
		sources []x5c.Source
		sent    []string
		source  string // empty if the chain is refused
		rule    pki.Rule
	}{
		"with the root":                         {[]x5c.Source{{Name: "a", Roots: of(root)}}, []string{"device", "issuing", "root"}, "a", ""},
		"without the root":                      {[]x5c.Source{{Name: "a", Roots: of(root)}}, []string{"device", "issuing"}, "a", ""},
		"without the issuing CA":                {[]x5c.Source{{Name: "a", Roots: of(root)}}, []string{"device"}, "", pki.RuleEvidenceUntrusted},
		"with a configured issuing CA":          {[]x5c.Source{{Name: "a", Roots: of(root), Intermediates: of(issuing)}}, []string{"device"}, "a", ""},
		"with an issuing CA as root":            {[]x5c.Source{{Name: "a", Roots: of(issuing)}}, []string{"device"}, "a", ""},
		"with more than the root":               {[]x5c.Source{{Name: "a", Roots: of(issuing)}}, []string{"device", "issuing", "root"}, "a", ""},
		"of the second source":                  {[]x5c.Source{{Name: "a", Roots: of(deep)}, {Name: "b", Roots: of(issuing)}}, []string{"device", "issuing"}, "b", ""},
		"of a source for all":                   {[]x5c.Source{{Name: "b", Roots: of(root)}, {Name: "a", Roots: of(issuing)}}, []string{"device", "issuing", "root"}, "b", ""},
		"with the CA's other certificate":       {[]x5c.Source{{Name: "a", Roots: of(issuing)}, {Name: "b", Roots: of(root)}}, []string{"device", "renewed"}, "a", ""},
		"of two sources":                        {[]x5c.Source{{Name: "a", Roots: of(issuing)}, {Name: "b", Roots: of(root)}}, []string{"device", "issuing"}, "a", ""},
		"of no source":                          {[]x5c.Source{{Name: "a", Roots: of(deep)}}, []string{"device", "issuing", "root"}, "", pki.RuleEvidenceUntrusted},
		"as long as the default":                {[]x5c.Source{{Name: "a", Roots: of(root)}}, []string{"low", "deep", "policy"}, "a", ""},
		"longer than the source allows":         {[]x5c.Source{{Name: "a", Roots: of(root), MaxChain: 3}}, []string{"low", "deep", "policy"}, "", pki.RuleEvidenceSize},
		"longer with configured certificates":   {[]x5c.Source{{Name: "a", Roots: of(root), Intermediates: of(deep, policy), MaxChain: 3}}, []string{"low"}, "", pki.RuleEvidenceSize},
		"in another order":                      {[]x5c.Source{{Name: "a", Roots: of(root)}}, []string{"low", "policy", "deep"}, "", pki.RuleEvidenceMalformed},
		"with a foreign certificate":            {[]x5c.Source{{Name: "a", Roots: of(root)}}, []string{"device", "deep"}, "", pki.RuleEvidenceMalformed},
		"with a certificate twice":              {[]x5c.Source{{Name: "a", Roots: of(root)}}, []string{"device", "issuing", "root", "root"}, "", pki.RuleEvidenceMalformed},
		"with a type of key that is not listed": {[]x5c.Source{{Name: "a", Roots: of(root), Keys: []pki.KeyType{pki.P384, pki.RSA3072}}}, []string{"device", "issuing"}, "", pki.RuleEvidenceAlgorithm},
	} {
		claim, err := f.identify(t, newAuthenticator(t, c.sources...), now, c.sent...)
		if c.source == "" {
			mustRefuse(t, name, err, c.rule)
		} else if err != nil || claim.Facts["x5c.source"] != c.source {
			t.Errorf("%s: the source is %v, want %s: %v", name, claim.Facts["x5c.source"], c.source, err)
		}
	}
}

// TestOpenSSLSignsStatements makes the signatures with the commands that a device without a library would use.
func TestOpenSSLSignsStatements(t *testing.T) {
	f := newFactory(t)
	a := newAuthenticator(t, f.acme(t))
	for name, c := range map[string]struct {
		key     string
		command []string
	}{
		"P-256":    {"P-256", []string{"dgst", "-sha256"}},
		"P-384":    {"P-384", []string{"dgst", "-sha384"}},
		"PKCS #1":  {"RSA-3072", []string{"dgst", "-sha256"}},
		"PSS":      {"RSA-3072", []string{"dgst", "-sha256", "-sigopt", "rsa_padding_mode:pss"}},
		"PSS, 32":  {"RSA-2048", []string{"dgst", "-sha256", "-sigopt", "rsa_padding_mode:pss", "-sigopt", "rsa_pss_saltlen:32"}},
		"Ed25519":  {"Ed25519", nil},
		"RSA-4096": {"RSA-4096", []string{"dgst", "-sha256"}},
	} {
		t.Run(name, func(t *testing.T) {
			f.issue(t, "device", "issuing", spec{key: c.key})
			p := present(t, a, f.chain(t, "device", "issuing"), f.key(t, "device"), now)
			e := must(pki.ParseX5CEvidence(p.Evidence))(t)
			challenge := sha256.Sum256(e.Challenge)
			text := "brevet: the device with this factory key enrolls a new key\nfleet.example\n" + p.Key.String() + "\n" + p.Request.String() + "\n" + hex.EncodeToString(challenge[:]) + "\n"
			in, out := f.write(t, "statement", text), f.path("signature")
			if c.command == nil {
				run(t, "pkeyutl", "-sign", "-rawin", "-inkey", f.path("device.key"), "-in", in, "-out", out)
			} else {
				run(t, append(c.command, "-sign", f.path("device.key"), "-out", out, in)...)
			}
			e.Signature = f.read(t, "signature")
			p.Evidence = e.Encode()
			if _, err := a.Identify(t.Context(), p); err != nil {
				t.Error(err)
			}
		})
	}
}

// BenchmarkIdentify verifies a chain of device, issuing CA and root, with P-256 and P-384 keys.
func BenchmarkIdentify(b *testing.B) {
	f := newFactory(b)
	f.issue(b, "device", "issuing", spec{})
	a := newAuthenticator(b, f.acme(b))
	p := present(b, a, f.chain(b, "device", "issuing"), f.key(b, "device"), now)
	for b.Loop() {
		if _, err := a.Identify(b.Context(), p); err != nil {
			b.Fatal(err)
		}
	}
}

func TestUnusableSources(t *testing.T) {
	f := newFactory(t)
	device := f.issue(t, "device", "issuing", spec{})
	odd := f.issue(t, "odd", "odd", spec{extensions: []string{caExtensions, "1.2.3.4=critical,ASN1:NULL"}})
	root, issuing := f.certificate(t, "root"), f.certificate(t, "issuing")
	of := func(certs ...*x509.Certificate) []*x509.Certificate { return certs }
	for name, c := range map[string]struct {
		sources []x5c.Source
		says    string
	}{
		"none":                   {nil, "no source"},
		"no root":                {[]x5c.Source{{Name: "a"}}, "no root"},
		"no name":                {[]x5c.Source{{Roots: of(root)}}, "name of a source"},
		"name with a space":      {[]x5c.Source{{Name: "a b", Roots: of(root)}}, "name of a source"},
		"one name twice":         {[]x5c.Source{{Name: "a", Roots: of(root)}, {Name: "a", Roots: of(issuing)}}, "two sources"},
		"one root twice":         {[]x5c.Source{{Name: "a", Roots: of(root)}, {Name: "b", Roots: of(root)}}, "same root"},
		"root is a device":       {[]x5c.Source{{Name: "a", Roots: of(device)}}, "basicConstraints"},
		"intermediate is device": {[]x5c.Source{{Name: "a", Roots: of(root), Intermediates: of(device)}}, "basicConstraints"},
		"unknown extension":      {[]x5c.Source{{Name: "a", Roots: of(odd)}}, "critical extension 1.2.3.4 is unknown"},
		"no CRL":                 {[]x5c.Source{{Name: "a", Roots: of(root), RequireCRLs: true}}, "requires CRLs"},
		"chain of 1":             {[]x5c.Source{{Name: "a", Roots: of(root), MaxChain: 1}}, "allow 2 to 8"},
		"chain of 9":             {[]x5c.Source{{Name: "a", Roots: of(root), MaxChain: 9}}, "allow 2 to 8"},
	} {
		if _, err := x5c.New(trustDomain, c.sources, nil); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: got the error %v, want one that contains %q", name, err, c.says)
		}
	}
}

func TestChallengeNeedsNoPublicEvidence(t *testing.T) {
	f := newFactory(t)
	_, err := newAuthenticator(t, f.acme(t)).Challenge(t.Context(), ra.ChallengeRequest{Kind: pki.EvidenceX5C, Public: []byte{1}}, now)
	mustRefuse(t, "with public evidence", err, pki.RuleRequest)
}
