package ceremony_test

import (
	"crypto"
	"crypto/dsa" //nolint:staticcheck // to see it refused
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"io"
	"math"
	"math/big"
	"strings"
	"testing"
	"time"

	"github.com/brevet-pki/brevet/ca/ceremony"
	"github.com/brevet-pki/brevet/pki"
)

// refused checks that an error is a refusal by the rule, and that its hint contains a text.
func refused(t *testing.T, name string, der []byte, err error, rule pki.Rule, hint string) {
	t.Helper()
	r, ok := pki.AsRefusal(err)
	if !ok || r.Rule != rule || r.Hint == "" || !strings.Contains(r.Hint, hint) || der != nil {
		t.Errorf("%s: %d bytes, %v; want a refusal by %s with the hint %q", name, len(der), err, rule, hint)
	}
}

type publicOnly struct{ key crypto.PublicKey }

func (p publicOnly) Public() crypto.PublicKey { return p.key }

func (p publicOnly) Sign(io.Reader, []byte, crypto.SignerOpts) ([]byte, error) {
	return nil, errors.New("the HSM is unavailable")
}

func TestRootRefuses(t *testing.T) {
	good, _ := ecPair(elliptic.P256())()
	for name, c := range map[string]struct {
		key  crypto.Signer
		edit func(*ceremony.RootSpec)
		rule pki.Rule
	}{
		"no subject":           {good, func(s *ceremony.RootSpec) { s.Subject = ceremony.Subject{} }, pki.RuleSubject},
		"no lifetime":          {good, func(s *ceremony.RootSpec) { s.Lifetime = 0 }, pki.RuleLifetime},
		"half a second":        {good, func(s *ceremony.RootSpec) { s.Lifetime = time.Second / 2 }, pki.RuleLifetime},
		"a negative lifetime":  {good, func(s *ceremony.RootSpec) { s.Lifetime = -year }, pki.RuleLifetime},
		"the year 10000":       {good, func(s *ceremony.RootSpec) { s.Now = time.Date(5900, 1, 1, 0, 0, 0, 0, time.UTC).AddDate(4099, 0, 0) }, pki.RuleLifetime},
		"negative path length": {good, func(s *ceremony.RootSpec) { s.PathLength = -1 }, pki.RuleRequest},
		"P-224":                {must(ecdsa.GenerateKey(elliptic.P224(), rand.Reader)), nil, pki.RuleKeyWeak},
		"RSA-2048":             {must(rsa.GenerateKey(rand.Reader, 2048)), nil, pki.RuleKeyWeak},
		"RSA with exponent 3":  {publicOnly{&rsa.PublicKey{N: new(big.Int).Lsh(big.NewInt(1), 3071), E: 3}}, nil, pki.RuleKeyWeak},
		"RSA-16384":            {publicOnly{&rsa.PublicKey{N: new(big.Int).Lsh(big.NewInt(1), 16383), E: 65537}}, nil, pki.RuleKeyType},
		"DSA":                  {publicOnly{&dsa.PublicKey{}}, nil, pki.RuleKeyType},
		"no key":               {publicOnly{nil}, nil, pki.RuleKeyType},
	} {
		spec := rootSpec(t)
		if c.edit != nil {
			c.edit(&spec)
		}
		der, err := ceremony.Root(c.key, spec)
		refused(t, name, der, err, c.rule, "")
	}
	if der, err := ceremony.Request(good, ceremony.RequestSpec{}); err == nil {
		t.Errorf("a request without a subject: %d bytes", len(der))
	}
}

func TestSignerErrorsAreReturned(t *testing.T) {
	p := build(t, ecPair(elliptic.P256()), nil)
	gone := publicOnly{p.rootKey.Public()}
	_, rootErr := ceremony.Root(gone, rootSpec(t))
	_, requestErr := ceremony.Request(publicOnly{p.subKey.Public()}, ceremony.RequestSpec{Subject: subject(t, "CN=a")})
	_, signErr := ceremony.Sign(p.root, gone, p.request, signSpec())
	_, crlErr := ceremony.RootCRL(p.root, gone, ceremony.CRLSpec{Number: big.NewInt(1), Now: time.Now(), NextUpdate: time.Now().Add(year)})
	_, clockErr := ceremony.Root(p.rootKey, ceremony.RootSpec{Subject: subject(t, "CN=a"), Lifetime: year})
	for name, err := range map[string]error{"root": rootErr, "request": requestErr, "sign": signErr, "CRL": crlErr} {
		if err == nil || !strings.Contains(err.Error(), "the HSM is unavailable") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if clockErr == nil || !strings.Contains(clockErr.Error(), "clock") {
		t.Errorf("a clock at zero: %v", clockErr)
	}
}

// requestFor makes a request with crypto/x509, without Brevet's checks.
func requestFor(t *testing.T, key crypto.Signer, name pkix.Name) []byte {
	t.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: name}, key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func TestSignRefusesRequests(t *testing.T) {
	p := build(t, ecPair(elliptic.P256()), nil)
	_, fresh := ecPair(elliptic.P256())()
	cn := func(text string) pkix.Name { return pkix.Name{CommonName: text} }
	forged := append([]byte(nil), p.request...)
	forged[len(forged)-5] ^= 1
	renamed := []byte(strings.Replace(string(p.request), "Fleet Issuing CA G1", "Fleet Issuing CA G2", 1))
	for name, c := range map[string]struct {
		request []byte
		rule    pki.Rule
	}{
		"nothing":                    {nil, pki.RuleCSR},
		"not a request":              {p.root.Raw, pki.RuleCSR},
		"trailing data":              {append(append([]byte(nil), p.request...), 0), pki.RuleCSR},
		"a megabyte":                 {make([]byte, 1<<20), pki.RuleCSR},
		"a forged signature":         {forged, pki.RuleCSRSignature},
		"another subject":            {renamed, pki.RuleCSRSignature},
		"P-224":                      {requestFor(t, must(ecdsa.GenerateKey(elliptic.P224(), rand.Reader)), cn("G2")), pki.RuleKeyWeak},
		"RSA-2048":                   {requestFor(t, must(rsa.GenerateKey(rand.Reader, 2048)), cn("G2")), pki.RuleKeyWeak},
		"the root's key":             {requestFor(t, p.rootKey, cn("G2")), pki.RuleKeyReserved},
		"the key of a generation":    {requestFor(t, p.subKey, cn("G2")), pki.RuleKeyInUse},
		"no subject":                 {requestFor(t, fresh, pkix.Name{}), pki.RuleSubject},
		"no common name":             {requestFor(t, fresh, pkix.Name{Organization: []string{"Example"}}), pki.RuleSubject},
		"a street":                   {requestFor(t, fresh, pkix.Name{CommonName: "G2", StreetAddress: []string{"1 Way"}}), pki.RuleSubject},
		"two organizations":          {requestFor(t, fresh, pkix.Name{CommonName: "G2", Organization: []string{"a", "b"}}), pki.RuleSubject},
		"the root's subject":         {requestFor(t, fresh, p.root.Subject), pki.RuleSubject},
		"a generation's subject":     {requestFor(t, fresh, p.sub.Subject), pki.RuleSubject},
		"… in other case and spaces": {requestFor(t, fresh, pkix.Name{CommonName: "fleet  issuing ca g1", Organization: []string{"EXAMPLE"}}), pki.RuleSubject},
	} {
		spec := signSpec()
		spec.Existing = []*x509.Certificate{p.sub}
		der, err := ceremony.Sign(p.root, p.rootKey, c.request, spec)
		refused(t, name, der, err, c.rule, "")
	}
	spec := signSpec()
	spec.Existing = []*x509.Certificate{p.sub}
	if _, err := ceremony.Sign(p.root, p.rootKey, requestFor(t, fresh, pkix.Name{CommonName: "Fleet Issuing CA G2", Organization: []string{"Example"}}), spec); err != nil {
		t.Errorf("the next generation: %v", err)
	}
}

func TestSignRefusesSpecs(t *testing.T) {
	p := build(t, ecPair(elliptic.P256()), nil)
	for name, c := range map[string]struct {
		edit func(*ceremony.SignSpec)
		rule pki.Rule
		fix  string
	}{
		"no lifetime":           {func(s *ceremony.SignSpec) { s.Lifetime = 0 }, pki.RuleLifetime, ""},
		"beyond the root":       {func(s *ceremony.SignSpec) { s.Now, s.Lifetime = p.root.NotBefore.Add(time.Hour), 20*year }, pki.RuleLifetime, "at most 175199h0m0s"},
		"no end":                {func(s *ceremony.SignSpec) { s.Lifetime = math.MaxInt64 }, pki.RuleLifetime, "at most"},
		"negative path length":  {func(s *ceremony.SignSpec) { s.PathLength = -1 }, pki.RuleRequest, ""},
		"the root's own length": {func(s *ceremony.SignSpec) { s.PathLength = 1 }, pki.RuleParent, "use at most 0"},
		"no trust domain":       {func(s *ceremony.SignSpec) { s.TrustDomain = "" }, pki.RuleTrustDomain, "fleet.example"},
		"capitals":              {func(s *ceremony.SignSpec) { s.TrustDomain = "Fleet.example" }, pki.RuleTrustDomain, ""},
		"one label, to limit":   {func(s *ceremony.SignSpec) { s.TrustDomain, s.Constrain = "fleet", true }, pki.RuleTrustDomain, "fully qualified"},
		"an underscore":         {func(s *ceremony.SignSpec) { s.TrustDomain = "fleet_1.example" }, pki.RuleTrustDomain, "host name"},
		"all subdomains":        {func(s *ceremony.SignSpec) { s.TrustDomain = ".fleet.example" }, pki.RuleTrustDomain, ""},
		"a dot at the end":      {func(s *ceremony.SignSpec) { s.TrustDomain = "fleet.example." }, pki.RuleTrustDomain, ""},
		"two dots":              {func(s *ceremony.SignSpec) { s.TrustDomain = "fleet..example" }, pki.RuleTrustDomain, ""},
		"an IP address":         {func(s *ceremony.SignSpec) { s.TrustDomain = "10.0.0.1" }, pki.RuleTrustDomain, ""},
		"a SPIFFE ID":           {func(s *ceremony.SignSpec) { s.TrustDomain = "spiffe://fleet.example" }, pki.RuleTrustDomain, ""},
		"a DNS name with a *":   {func(s *ceremony.SignSpec) { s.Constrain, s.PermittedDNS = true, []string{"*.fleet.example"} }, pki.RuleRequest, ""},
		"an empty DNS name":     {func(s *ceremony.SignSpec) { s.Constrain, s.PermittedDNS = true, []string{""} }, pki.RuleRequest, ""},
		"DNS without a limit":   {func(s *ceremony.SignSpec) { s.PermittedDNS = []string{"fleet.example"} }, pki.RuleRequest, "constrain"},
		"a CRL over https":      {func(s *ceremony.SignSpec) { s.CRLURL = "https://ca.fleet.example/root.crl" }, pki.RuleRequest, "http://"},
		"a CRL in a file":       {func(s *ceremony.SignSpec) { s.CRLURL = "/root.crl" }, pki.RuleRequest, ""},
		"an issuer nowhere":     {func(s *ceremony.SignSpec) { s.IssuerURL = "http:///root.cer" }, pki.RuleRequest, ""},
		"a password in a URL":   {func(s *ceremony.SignSpec) { s.IssuerURL = "http://a:b@ca.fleet.example/root.cer" }, pki.RuleRequest, ""},
		"before the root":       {func(s *ceremony.SignSpec) { s.Now = s.Now.Add(-time.Hour) }, pki.RuleParent, "clock"},
		"after the root":        {func(s *ceremony.SignSpec) { s.Now = s.Now.Add(30 * year) }, pki.RuleParent, "new root"},
	} {
		spec := signSpec()
		c.edit(&spec)
		der, err := ceremony.Sign(p.root, p.rootKey, p.request, spec)
		refused(t, name, der, err, c.rule, c.fix)
	}
	longest := signSpec()
	longest.Lifetime = p.root.NotAfter.Sub(longest.Now.Truncate(time.Second))
	if der, err := ceremony.Sign(p.root, p.rootKey, p.request, longest); err != nil || !parse(t, der).NotAfter.Equal(p.root.NotAfter) {
		t.Errorf("the root's own end: %v", err)
	}
}

func TestSignRefusesParents(t *testing.T) {
	p := build(t, ecPair(elliptic.P256()), nil)
	other := build(t, ecPair(elliptic.P256()), nil)
	end := leaf(t, p.sub, p.subKey, "spiffe://fleet.example/device/42")
	for name, c := range map[string]struct {
		parent *x509.Certificate
		key    crypto.Signer
	}{
		"another root's key":   {p.root, other.rootKey},
		"another root":         {other.root, p.rootKey},
		"a leaf":               {end, p.subKey},
		"an issuing CA":        {p.sub, p.subKey}, // its path length is 0
		"a CA of another kind": {&x509.Certificate{PublicKey: p.rootKey.Public(), KeyUsage: x509.KeyUsageCertSign}, p.rootKey},
	} {
		_, fresh := ecPair(elliptic.P256())()
		der, err := ceremony.Sign(c.parent, c.key, requestFor(t, fresh, pkix.Name{CommonName: "G2"}), signSpec())
		refused(t, name, der, err, pki.RuleParent, "")
	}
}
