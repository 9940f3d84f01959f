package server_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"io"
	"maps"
	"math/big"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/cryptobyte"
	cryptobyte_asn1 "golang.org/x/crypto/cryptobyte/asn1"

	"github.com/brevet-pki/brevet/enroll"
	"github.com/brevet-pki/brevet/pki"
	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
	"github.com/brevet-pki/brevet/server"
	"github.com/brevet-pki/brevet/server/admission"
	"github.com/brevet-pki/brevet/server/servertest"
	"github.com/brevet-pki/brevet/translog"
)

// maker is a manufacturer's CA.
type maker struct {
	root *x509.Certificate
	key  crypto.Signer
}

func newMaker(t testing.TB) maker {
	t.Helper()
	key := servertest.Key(t)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{Organization: []string{"Acme"}, CommonName: "Acme Root"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(1000 * time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der := servertest.Must(x509.CreateCertificate(rand.Reader, template, template, key.Public(), key))(t)
	return maker{servertest.Must(x509.ParseCertificate(der))(t), key}
}

// device returns the factory certificate of a device. The functions edits may change its template.
func (m maker) device(t testing.TB, serial string, key crypto.Signer, edits ...func(*x509.Certificate)) *tls.Certificate {
	t.Helper()
	template := &x509.Certificate{
		SerialNumber: servertest.Must(rand.Int(rand.Reader, big.NewInt(1<<62)))(t), Subject: pkix.Name{SerialNumber: serial, CommonName: "router"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(500 * time.Hour), KeyUsage: x509.KeyUsageDigitalSignature,
	}
	for _, edit := range edits {
		edit(template)
	}
	return certificate(key, servertest.Must(x509.CreateCertificate(rand.Reader, template, m.root, key.Public(), m.key))(t))
}

// estPolicy lets routers and holders of tokens enroll by EST.
func estPolicy(m maker) []byte {
	return fmt.Appendf(nil, `
x5c:
  routers:
    roots: %q
rules:
- {name: routers, evidence: [x5c-tls], when: 'x5c.source == "routers"', identity: "router/{x5c.serial}", register: true, replace: true}
- {name: agents, evidence: [x5c], when: 'x5c.source == "routers"', identity: "router/{x5c.serial}", register: true, replace: true}
- {name: tokens, evidence: [token]}
- {name: both, evidence: [token, x5c-tls]}
est:
  labels:
    default: {}
    meters: {rules: [tokens], chain: true, attributes: template}
    routers: {rules: [routers], accept_names: true, attributes: oids}
    linked: {require_linking: true}
`, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: m.root.Raw}))
}

// estCall is a request by EST.
type estCall struct {
	path, token string
	device      *tls.Certificate
	csr         []byte
	version     uint16 // of TLS; zero for the newest
	header      http.Header
}

// estAnswer is the response to an estCall.
type estAnswer struct {
	status       int
	header       http.Header
	text         string
	certificates []*x509.Certificate // if the status is 200
}

// est sends a request, on a connection of its own.
func est(t *testing.T, w *servertest.World, c estCall) estAnswer {
	t.Helper()
	a, err := tryEST(t, w, c)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// tryEST is like est, and returns the error if there is no response.
func tryEST(t *testing.T, w *servertest.World, c estCall) (estAnswer, error) {
	t.Helper()
	roots := x509.NewCertPool()
	roots.AddCert(w.Root)
	config := &tls.Config{RootCAs: roots, ServerName: "localhost", MaxVersion: c.version, MinVersion: tls.VersionTLS12}
	if c.device != nil {
		config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return c.device, nil }
	}
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: config, DisableKeepAlives: true}, Timeout: time.Minute}
	method, body := http.MethodGet, []byte(nil)
	if c.csr != nil {
		method, body = http.MethodPost, []byte(base64.StdEncoding.EncodeToString(c.csr))
	}
	q := servertest.Must(http.NewRequestWithContext(t.Context(), method, "https://"+w.HTTPS+"/.well-known/est/"+c.path, bytes.NewReader(body)))(t)
	maps.Copy(q.Header, c.header)
	if c.token != "" {
		q.SetBasicAuth("est", c.token)
	}
	r, err := client.Do(q)
	if err != nil {
		return estAnswer{}, err
	}
	defer func() { _ = r.Body.Close() }()
	a := estAnswer{status: r.StatusCode, header: r.Header, text: string(servertest.Must(io.ReadAll(r.Body))(t))}
	if r.ContentLength != int64(len(a.text)) && r.StatusCode != http.StatusNoContent {
		t.Errorf("%s: the length is %d, and the body has %d bytes", c.path, r.ContentLength, len(a.text))
	}
	if a.status == http.StatusOK && strings.HasPrefix(r.Header.Get("Content-Type"), "application/pkcs7-mime") {
		a.certificates = certsOnly(t, servertest.Must(base64.StdEncoding.DecodeString(a.text))(t))
	}
	return a, nil
}

// certsOnly returns the certificates in a SignedData without signatures.
func certsOnly(t *testing.T, der []byte) []*x509.Certificate {
	t.Helper()
	s, explicit := cryptobyte.String(der), cryptobyte_asn1.Tag(0).ContextSpecific().Constructed()
	if !s.ReadASN1(&s, cryptobyte_asn1.SEQUENCE) || !s.SkipASN1(cryptobyte_asn1.OBJECT_IDENTIFIER) || !s.ReadASN1(&s, explicit) ||
		!s.ReadASN1(&s, cryptobyte_asn1.SEQUENCE) || !s.SkipASN1(cryptobyte_asn1.INTEGER) || !s.SkipASN1(cryptobyte_asn1.SET) ||
		!s.SkipASN1(cryptobyte_asn1.SEQUENCE) || !s.ReadASN1(&s, explicit) {
		t.Fatalf("%x is no SignedData", der)
	}
	return servertest.Must(x509.ParseCertificates(s))(t)
}

// refused checks the status of a response, and that its text has the rule and the next step.
func (a estAnswer) refused(t *testing.T, what string, status int, rule pki.Rule) {
	t.Helper()
	if a.status != status || !strings.Contains(a.text, "["+string(rule)+"]") || !strings.Contains(a.text, "; ") {
		t.Errorf("%s: %d %q, want %d by the rule %s", what, a.status, a.text, status, rule)
	}
}

// issued checks that a response has one certificate of an identity for a key.
func (a estAnswer) issued(t *testing.T, what, path string, key crypto.Signer) *x509.Certificate {
	t.Helper()
	if a.status != http.StatusOK || len(a.certificates) == 0 {
		t.Fatalf("%s: %d %q", what, a.status, a.text)
	}
	c := a.certificates[0]
	if id := c.URIs[0].String(); id != "spiffe://"+servertest.TrustDomain+"/"+path || !key.(*ecdsa.PrivateKey).PublicKey.Equal(c.PublicKey) {
		t.Errorf("%s: the certificate is of %s, want %s, or has another key", what, id, path)
	}
	return c
}

// tokenText creates a token, and returns its text.
func tokenText(t *testing.T, w *servertest.World, id string, replace bool) string {
	t.Helper()
	resp := servertest.Must(w.Operator.CreateToken(t.Context(), &brevetv1.CreateTokenRequest{Identity: id, Replace: replace}))(t)
	w.Secret(t, resp.GetToken())
	return resp.GetToken()
}

func TestESTWithTokens(t *testing.T) {
	t.Parallel()
	w := servertest.New(t, ground, servertest.Options{Policy: estPolicy(newMaker(t))})
	id := w.Register(t, "device", "meter/1", func(r *brevetv1.CreateIdentityRequest) {
		r.Spec.Names = servertest.Names([]string{"m1.fleet.example"}, nil)
	})
	token, key := tokenText(t, w, id, false), servertest.Key(t)
	call := estCall{path: "simpleenroll", token: token, csr: servertest.CSR(t, key)}
	first := est(t, w, call).issued(t, "a token", "meter/1", key)
	if !slices.Equal(first.DNSNames, []string{"m1.fleet.example"}) {
		t.Errorf("the names are %v", first.DNSNames)
	}
	w.Status(t, first, "good")
	again := est(t, w, call)
	if len(again.certificates) != 1 || !again.certificates[0].Equal(first) || len(again.text) >= 2000 {
		t.Errorf("a repeat gets %d certificates in %d bytes, or another one", len(again.certificates), len(again.text))
	}
	call.path = "meters/simpleenroll"
	if again = est(t, w, call); len(again.certificates) != 2 || !again.certificates[0].Equal(first) || !again.certificates[1].Equal(w.Issuing) {
		t.Errorf("a repeat with another label gets %d certificates, want the same one with its chain", len(again.certificates))
	}
	call.csr = servertest.CSR(t, servertest.Key(t))
	est(t, w, call).refused(t, "the token with another key", 403, pki.RuleTokenBound)
	call.path = "routers/simpleenroll"
	est(t, w, call).refused(t, "a label for another rule", 403, pki.RulePolicy)
	call.path = "other/simpleenroll"
	est(t, w, call).refused(t, "an unknown label", 404, pki.RuleLabel)
	if a := est(t, w, estCall{path: "simpleenroll", csr: call.csr}); a.status != 401 || a.text != "" || a.header.Get("WWW-Authenticate") == "" {
		t.Errorf("nothing: %d %q", a.status, a.text)
	}

	entries := servertest.Find(w.Entries(t, 0), translog.CertificateIssued, id)
	if len(entries) != 1 || !strings.HasPrefix(entries[0].Actor.String(), "token:") || entries[0].Facts()["policy_rule"] == "" && entries[0].Facts()["rule"] == "" {
		t.Errorf("the log has %d entries: %+v", len(entries), entries)
	}
}

// A device with a factory certificate is the same device by EST and by gRPC.
func TestESTWithFactoryCertificates(t *testing.T) {
	t.Parallel()
	acme := newMaker(t)
	w := servertest.New(t, ground, servertest.Options{Policy: estPolicy(acme), EST: server.EST{MinTLS: tls.VersionTLS12}})
	factoryKey, key := servertest.Key(t), servertest.Key(t)
	device := acme.device(t, "R17", factoryKey)
	call := estCall{path: "simpleenroll", device: device, csr: servertest.CSR(t, key)}
	first := est(t, w, call).issued(t, "a factory certificate", "router/R17", key)
	call.version = tls.VersionTLS12
	if again := est(t, w, call); again.status != 200 || !again.certificates[0].Equal(first) {
		t.Errorf("a repeat with TLS 1.2: %d %q", again.status, again.text)
	}
	entries := servertest.Find(w.Entries(t, 0), translog.CertificateIssued, "spiffe://"+servertest.TrustDomain+"/router/R17")
	if len(entries) != 1 || !strings.HasPrefix(entries[0].Actor.String(), "x5c-tls:") {
		t.Errorf("the log has %d entries, of %v", len(entries), entries)
	}

	client, other := servertest.Must(enroll.NewClient(""))(t), servertest.Key(t)
	byAgent := servertest.Must(client.Enroll(t.Context(), enroll.EnrollRequest{
		RequestID: servertest.Must(pki.RequestIDFromBytes(servertest.RequestID()))(t), CSR: servertest.CSR(t, other),
		Bootstrap: enroll.Bootstrap{RootFingerprint: sha256.Sum256(w.Root.Raw), TrustDomain: servertest.TrustDomain, Server: w.GRPC},
		Evidence:  []enroll.Evidence{servertest.Must(enroll.FactoryCertificate(*device))(t)},
	}))(t)
	w.Status(t, first, "superseded")
	w.Status(t, byAgent.Certificate, "good")

	// Another certificate for the same serial number of the maker is another device.
	impostor := acme.device(t, "R17", servertest.Key(t))
	est(t, w, estCall{path: "simpleenroll", device: impostor, csr: servertest.CSR(t, servertest.Key(t))}).refused(t, "another certificate", 403, pki.RuleEvidenceConflict)

	// A rule for both kinds of evidence ties the identity of the token to the device.
	id := w.Register(t, "device", "gate/1")
	both := estCall{path: "simpleenroll", token: tokenText(t, w, id, false), device: acme.device(t, "R18", servertest.Key(t)), csr: servertest.CSR(t, key)}
	alone := servertest.Key(t)
	est(t, w, estCall{path: "simpleenroll", device: both.device, csr: servertest.CSR(t, alone)}).issued(t, "alone", "router/R18", alone)
	both.csr = servertest.CSR(t, servertest.Key(t))
	est(t, w, both).refused(t, "a token with the certificate of another identity", 403, pki.RuleEvidenceConflict)
}

// Every kind of bad client certificate is refused, for first certificates and for renewals.
func TestESTClientCertificates(t *testing.T) {
	t.Parallel()
	acme := newMaker(t)
	w := servertest.New(t, ground, servertest.Options{Policy: estPolicy(acme)})
	csr := servertest.CSR(t, servertest.Key(t))
	weak := servertest.Must(rsa.GenerateKey(rand.Reader, 1024))(t)
	key := servertest.Key(t)
	issuing := acme.device(t, "CA", key, func(c *x509.Certificate) {
		c.IsCA, c.BasicConstraintsValid = true, true
		c.KeyUsage |= x509.KeyUsageCertSign
	})
	long := acme.device(t, "R1", key)
	for range 50 {
		long.Certificate = append(long.Certificate, acme.root.Raw)
	}
	twice := acme.device(t, "R1", key)
	twice.Certificate = append(twice.Certificate, acme.root.Raw, acme.root.Raw)
	unordered := acme.device(t, "R1", key)
	unordered.Certificate = append(unordered.Certificate, w.Issuing.Raw)
	for name, c := range map[string]struct {
		device *tls.Certificate
		status int
		rule   pki.Rule
	}{
		"expired":           {acme.device(t, "R1", key, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) }), 401, pki.RuleEvidenceExpired},
		"not yet valid":     {acme.device(t, "R1", key, func(c *x509.Certificate) { c.NotBefore = time.Now().Add(time.Hour) }), 401, pki.RuleEvidenceNotYet},
		"of another CA":     {newMaker(t).device(t, "R1", key), 401, pki.RuleEvidenceUntrusted},
		"of a CA":           {issuing, 401, pki.RuleEvidenceUntrusted},
		"the maker's root":  {certificate(acme.key, acme.root.Raw), 401, pki.RuleEvidenceUntrusted},
		"for servers alone": {acme.device(t, "R1", key, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }), 401, pki.RuleEvidenceUntrusted},
		"RSA-1024":          {acme.device(t, "R1", weak), 401, pki.RuleEvidenceAlgorithm},
		"no serial number":  {acme.device(t, "", key), 403, pki.RulePolicy},
		"a slash":           {acme.device(t, "R/1", key), 403, pki.RulePolicy},
		"the root twice":    {twice, 400, pki.RuleEvidenceMalformed},
		"not in order":      {unordered, 400, pki.RuleEvidenceMalformed},
	} {
		est(t, w, estCall{path: "simpleenroll", device: c.device, csr: csr}).refused(t, name, c.status, c.rule)
	}
	for name, device := range map[string]*tls.Certificate{
		"a chain of 50": long, "RSA-16384": certificate(key, rsaCertificate(t, acme, 16384)), "another key": certificate(servertest.Key(t), acme.device(t, "R1", key).Certificate[0]),
	} {
		if a, err := tryEST(t, w, estCall{path: "simpleenroll", device: device, csr: csr}); err == nil {
			t.Errorf("%s: %d %q, want no connection", name, a.status, a.text)
		}
	}
	for _, c := range callers(t, w) {
		if c.certificate == nil || c.asIdentity == admitted {
			continue
		}
		a := est(t, w, estCall{path: "simplereenroll", device: c.certificate, csr: csr})
		a.refused(t, "renewal as "+c.name, 403, c.asIdentity.rule)
	}
}

// rsaCertificate returns a certificate for an RSA key that is too large to be generated in a test.
func rsaCertificate(t *testing.T, m maker, bits int) []byte {
	t.Helper()
	n := servertest.Must(rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), uint(bits-1))))(t)
	n.SetBit(n, bits-1, 1).SetBit(n, 0, 1)
	template := &x509.Certificate{SerialNumber: big.NewInt(7), Subject: pkix.Name{SerialNumber: "R1"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	return servertest.Must(x509.CreateCertificate(rand.Reader, template, m.root, &rsa.PublicKey{N: n, E: 65537}, m.key))(t)
}

// What is issued is what the record grants now. The CSR may have the names of the certificate that is renewed.
func TestESTRenewals(t *testing.T) {
	t.Parallel()
	w := servertest.New(t, ground, servertest.Options{Policy: estPolicy(newMaker(t))})
	names := func(dns ...string) func(*brevetv1.CreateIdentityRequest) {
		return func(r *brevetv1.CreateIdentityRequest) { r.Spec.Names = servertest.Names(dns, nil) }
	}
	holder := w.Enrolled(t, "device", "meter/1", names("old.fleet.example"))
	w.Update(t, holder.ID, &brevetv1.IdentitySpec{Names: servertest.Names([]string{"new.fleet.example"}, nil)}, "names")
	same := func(r *x509.CertificateRequest) {
		r.RawSubject, r.DNSNames, r.URIs = holder.Certificate.RawSubject, holder.Certificate.DNSNames, holder.Certificate.URIs
	}
	key := servertest.Key(t)
	renew := func(path string, csr []byte) estAnswer {
		return est(t, w, estCall{path: path, device: holder.TLS(w), csr: csr})
	}
	renew("simplereenroll", servertest.CSR(t, key, same, func(r *x509.CertificateRequest) { r.DNSNames = append(r.DNSNames, "new.fleet.example") })).
		refused(t, "another name", 400, pki.RuleCSRContent)
	renew("simplereenroll", servertest.CSR(t, key, func(r *x509.CertificateRequest) { r.Subject.CommonName = "meter" })).
		refused(t, "another subject", 400, pki.RuleCSRContent)
	renew("linked/simplereenroll", servertest.CSR(t, key)).refused(t, "no linking", 403, pki.RuleLinking)
	renewed := renew("simplereenroll", servertest.CSR(t, key, same)).issued(t, "a renewal", "meter/1", key)
	if !slices.Equal(renewed.DNSNames, []string{"new.fleet.example"}) {
		t.Errorf("the names are %v, want those of the record", renewed.DNSNames)
	}
	odd := servertest.CSR(t, key, func(r *x509.CertificateRequest) { r.Subject.CommonName, r.DNSNames = "x", []string{"evil.example"} })
	again := renew("routers/simplereenroll", odd).issued(t, "a repeat whose names are ignored", "meter/1", key)
	if !again.Equal(renewed) {
		t.Error("a repeat with the same key gets another certificate")
	}
	renew("simplereenroll", servertest.CSR(t, servertest.Key(t))).refused(t, "another key", 403, pki.RuleRenewalKeyConflict)
	byGRPC := servertest.Must(w.Holder(t, renewed.Raw, key).Renew(t.Context(), servertest.Renewal(t, servertest.Key(t))))(t)
	w.Status(t, servertest.Must(x509.ParseCertificate(byGRPC.GetCredential().GetCertificate()))(t), "good")

	est(t, w, estCall{path: "simpleenroll", device: holder.TLS(w), csr: servertest.CSR(t, key)}).refused(t, "simpleenroll", 401, pki.RuleUnauthenticated)
	entries := servertest.Find(w.Entries(t, 0), translog.CertificateIssued, holder.ID)
	if len(entries) != 3 {
		t.Errorf("the log has %d certificates, want 3", len(entries))
	}
}

// A CSR is refused if it is malformed, and the refusal is on record with the evidence.
func TestESTRequests(t *testing.T) {
	t.Parallel()
	acme := newMaker(t)
	w := servertest.New(t, ground, servertest.Options{Policy: estPolicy(acme)})
	device := acme.device(t, "R1", servertest.Key(t))
	named := servertest.CSR(t, servertest.Key(t), func(r *x509.CertificateRequest) { r.Subject.CommonName = "R1"; r.DNSNames = []string{"r1.example"} })
	forged := servertest.CSR(t, servertest.Key(t))
	forged[len(forged)-1] ^= 1
	for name, c := range map[string]struct {
		path string
		csr  []byte
		rule pki.Rule
	}{
		"an unknown label":    {"other/simpleenroll", forged, pki.RuleLabel},
		"names":               {"simpleenroll", named, pki.RuleCSRContent},
		"a forged signature":  {"simpleenroll", forged, pki.RuleCSRSignature},
		"no CSR":              {"simpleenroll", []byte("hello"), pki.RuleCSR},
		"trailing data":       {"simpleenroll", append(servertest.CSR(t, servertest.Key(t)), 0, 0, 0), pki.RuleCSR},
		"a key of an unknown": {"routers/simpleenroll", servertest.CSR(t, servertest.Must(rsa.GenerateKey(rand.Reader, 1024))(t)), pki.RuleKeyType},
	} {
		before := len(w.Entries(t, 0))
		status := 400
		if c.rule == pki.RuleLabel {
			status = 404
		}
		est(t, w, estCall{path: c.path, device: device, csr: c.csr}).refused(t, name, status, c.rule)
		found := false
		for _, e := range w.Entries(t, before) {
			found = found || e.Action == translog.RequestRefused && e.Facts()["rule"] == string(c.rule) && strings.HasPrefix(e.Actor.String(), "x5c-tls:")
		}
		if !found {
			t.Errorf("%s: the log has no refusal", name)
		}
	}
	key := servertest.Key(t)
	csr := servertest.CSR(t, key, func(r *x509.CertificateRequest) { r.Subject.CommonName = "R1"; r.DNSNames = []string{"r1.example"} })
	c := est(t, w, estCall{path: "routers/simpleenroll", device: device, csr: csr}).issued(t, "names that are ignored", "router/R1", key)
	if len(c.DNSNames) > 0 || strings.Contains(c.Subject.String(), "CN=") {
		t.Errorf("the certificate has the names %v and the subject %s", c.DNSNames, c.Subject)
	}
}

func TestESTWithoutAuthentication(t *testing.T) {
	t.Parallel()
	w := servertest.New(t, ground, servertest.Options{Policy: estPolicy(newMaker(t))})
	for _, path := range []string{"cacerts", "meters/cacerts"} {
		a := est(t, w, estCall{path: path})
		if len(a.certificates) != 2 || !a.certificates[0].Equal(w.Root) || !a.certificates[1].Equal(w.Issuing) {
			t.Errorf("%s: %d with %d certificates", path, a.status, len(a.certificates))
		}
	}
	for path, status := range map[string]int{"csrattrs": 204, "meters/csrattrs": 200, "routers/csrattrs": 200, "other/csrattrs": 404} {
		if a := est(t, w, estCall{path: path}); a.status != status {
			t.Errorf("%s: %d %q, want %d", path, a.status, a.text, status)
		}
	}
	est(t, w, estCall{path: "serverkeygen", csr: servertest.CSR(t, servertest.Key(t))}).refused(t, "serverkeygen", 501, pki.RuleESTOperation)
	// TLS 1.2 is off by default.
	if _, err := tryEST(t, w, estCall{path: "cacerts", version: tls.VersionTLS12}); err == nil {
		t.Error("a client of TLS 1.2 is connected")
	}
}

// Without the section est, no request is accepted. A new revision of the policy applies at once.
func TestESTNeedsLabels(t *testing.T) {
	t.Parallel()
	w := servertest.New(t, ground, servertest.Options{})
	csr := servertest.CSR(t, servertest.Key(t))
	est(t, w, estCall{path: "cacerts"}).refused(t, "cacerts", 404, pki.RuleLabel)
	est(t, w, estCall{path: "simpleenroll", token: "x", csr: csr}).refused(t, "simpleenroll", 404, pki.RuleLabel)
	policies := brevetv1.NewPolicyServiceClient(w.Operator.Conn)
	servertest.Must(policies.ApplyPolicy(t.Context(), &brevetv1.ApplyPolicyRequest{
		BasedRevision: 1, Document: []byte("rules: [{name: a, evidence: [token], when: token.identity == \"a\"}, {name: b, evidence: [token]}]\nest: {labels: {x: {rules: [a]}}}\n"),
	}))(t)
	id := w.Register(t, "device", "meter/1")
	call := estCall{path: "x/simpleenroll", token: tokenText(t, w, id, false), csr: csr}
	est(t, w, call).refused(t, "a rule that the label does not select", 403, pki.RulePolicy)
	entries := servertest.Find(w.Entries(t, 0), translog.RequestRefused, id)
	if len(entries) != 1 {
		t.Fatalf("the log has %d refusals, want 1", len(entries))
	}
	explained := servertest.Must(policies.ExplainPolicy(t.Context(), &brevetv1.ExplainPolicyRequest{Request: entries[0].Actor.String()}))(t)
	if rules := explained.GetRules(); len(rules) != 2 || !strings.Contains(rules[0].GetExplanation(), "is false") && !strings.Contains(rules[0].GetExplanation(), "false is") ||
		!strings.Contains(rules[1].GetExplanation(), "the label of the request, or the external key of its account, selects others") {
		t.Errorf("the explanation is %v", explained.GetRules())
	}
}

// A request above the rate of its address gets 202 and Retry-After.
func TestESTShedsLoad(t *testing.T) {
	t.Parallel()
	one := admission.Rate{PerSecond: 0.01, Burst: 3}
	endless := admission.Rate{PerSecond: 1e6, Burst: 1e6}
	w := servertest.New(t, ground, servertest.Options{Policy: estPolicy(newMaker(t)), Limits: &server.Limits{Identity: endless, Address: one}})
	call := estCall{path: "simpleenroll", csr: servertest.CSR(t, servertest.Key(t))}
	for range 5 {
		a := est(t, w, call)
		if a.status == 401 {
			continue
		}
		a.refused(t, "a request above the rate", 202, pki.RuleRateLimited)
		if a.header.Get("Retry-After") == "" {
			t.Error("there is no Retry-After")
		}
		return
	}
	t.Error("no request was above the rate")
}
