package est_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"errors"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/enroll"
	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra"
	"github.com/brevet-pki/brevet/server/admission"
	"github.com/brevet-pki/brevet/server/authz"
	"github.com/brevet-pki/brevet/server/est"
	"github.com/brevet-pki/brevet/server/frontdoor"
)

// must returns the value of a call that must succeed.
func must[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// authority is a root with its key, which also issues.
type authority struct {
	certificate *x509.Certificate
	key         crypto.Signer
}

func newAuthority(t testing.TB, name string) authority {
	t.Helper()
	key := newKey(t)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der := must(x509.CreateCertificate(rand.Reader, template, template, key.Public(), key))(t)
	return authority{must(x509.ParseCertificate(der))(t), key}
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	return must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(t)
}

// issue returns a certificate for a key, with its chain.
func (a authority) issue(t testing.TB, name string) tls.Certificate {
	t.Helper()
	key := newKey(t)
	template := &x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: name}, NotAfter: time.Now().Add(time.Hour)}
	der := must(x509.CreateCertificate(rand.Reader, template, a.certificate, key.Public(), a.key))(t)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// registrar is a Registrar that keeps the requests that it gets.
type registrar struct {
	mu      sync.Mutex
	enrolls []ra.EnrollRequest
	noted   []ra.EnrollRequest
	err     error // refuses all requests if it is not nil
	issued  ca.Certificate
}

func (r *registrar) Enroll(_ context.Context, e ra.EnrollRequest) (ca.Certificate, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.enrolls = append(r.enrolls, e)
	return r.issued, r.err
}

func (r *registrar) Renew(context.Context, ra.RenewRequest) (ca.Certificate, error) {
	return r.issued, r.err
}

func (r *registrar) NoteEvidence(_ context.Context, e ra.EnrollRequest, err error) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.noted = append(r.noted, e)
	return err
}

// last returns the newest request to enroll, and forgets all of them. It is zero if there was none.
func (r *registrar) last() (e ra.EnrollRequest) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.enrolls) > 0 {
		e = r.enrolls[len(r.enrolls)-1]
	}
	r.enrolls = nil
	return e
}

// authorities are those of a server with one issuing CA.
type authorities struct{ root, issuing authority }

func (a authorities) Bundle() (roots, intermediates [][]byte) {
	return [][]byte{a.root.certificate.Raw}, [][]byte{a.issuing.certificate.Raw}
}

func (a authorities) Chain(pki.IssuerID) ([]*x509.Certificate, *x509.Certificate, error) {
	return []*x509.Certificate{a.issuing.certificate}, a.root.certificate, nil
}

// open admits every request, counts none and records no refusal.
type open struct{ refuse error }

func (o open) Admit(_ authz.Operation, _ admission.Source, refused error) error {
	if o.refuse != nil {
		return o.refuse
	}
	return refused
}

func (open) Enter(context.Context, authz.Operation, admission.Source) (func(), error) {
	return func() {}, nil
}
func (open) Handshake(error)                                                      {}
func (open) Request(context.Context, string, int, time.Duration, error)           {}
func (open) Failure(error)                                                        {}
func (open) Record(_ context.Context, _ pki.Actor, _ pki.SPIFFEID, e error) error { return e }

// labels are the labels of the tests.
func labels() map[string]ra.Label {
	return map[string]ra.Label{
		"default":  {Name: "default", Attributes: ra.NoAttributes},
		"chain":    {Name: "chain", Chain: true, Attributes: ra.AttributeOIDs, Key: pki.P256},
		"linked":   {Name: "linked", RequireLinking: true, Attributes: ra.AttributeOIDs},
		"template": {Name: "template", RequireLinking: true, Attributes: ra.AttributesTemplate, Key: pki.P384},
		"rsa":      {Name: "rsa", Attributes: ra.AttributesTemplate, Key: pki.RSA3072},
		"any":      {Name: "any", Attributes: ra.AttributesTemplate},
	}
}

// world is a running server.
type world struct {
	url         string
	registrar   *registrar
	authorities authorities
}

func build(t *testing.T, admit open) *world {
	t.Helper()
	w := &world{registrar: &registrar{}, authorities: authorities{newAuthority(t, "Fleet Root"), newAuthority(t, "Fleet Issuing")}}
	w.registrar.issued = ca.Certificate{DER: w.authorities.issuing.issue(t, "device").Certificate[0]}
	own := w.authorities.root.issue(t, "localhost")
	s := frontdoor.New(frontdoor.Config{
		Certificate: func() (*tls.Certificate, error) { return &own, nil },
		Authorizer:  authz.New(authz.Config{TrustDomain: "fleet.example", Roots: x509.NewCertPool(), Clock: time.Now}),
		Admission:   admit, Handshakes: admission.NewQueue("handshakes", admission.Size{Slots: 2, Each: 2, Queue: 64}),
		Meter: admit, Refusals: admit, Log: slog.New(slog.DiscardHandler),
	}, est.New(est.Config{Registrar: w.registrar, Authorities: w.authorities, Labels: labels, MinVersion: tls.VersionTLS12}))
	var lc net.ListenConfig
	l := must(lc.Listen(t.Context(), "tcp", "127.0.0.1:0"))(t)
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(l) }()
	t.Cleanup(func() {
		if err := s.Shutdown(context.Background()); err != nil {
			t.Error(err)
		}
		if err := <-ended; !errors.Is(err, http.ErrServerClosed) {
			t.Errorf("the server ends with %v", err)
		}
	})
	w.url = "https://" + l.Addr().String() + "/.well-known/est/"
	return w
}

// call is a request to a server.
type call struct {
	path    string
	body    []byte
	user    string // password of HTTP Basic; empty for none
	device  *tls.Certificate
	version uint16 // of TLS; zero for the newest
	method  string // POST by default, and GET without a body
}

// answer is the response to a call.
type answer struct {
	*http.Response
	text string
}

func (w *world) send(t *testing.T, c call) answer {
	t.Helper()
	config := &tls.Config{InsecureSkipVerify: true, MaxVersion: c.version} //nolint:gosec // the tests are about the server
	if c.device != nil {
		config.Certificates = []tls.Certificate{*c.device}
	}
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: config, DisableKeepAlives: true}, Timeout: time.Minute}
	return sendOn(t, client, w.url, c)
}

func sendOn(t *testing.T, client *http.Client, url string, c call) answer {
	t.Helper()
	method := c.method
	if method == "" {
		method = http.MethodGet
		if c.body != nil {
			method = http.MethodPost
		}
	}
	q := must(http.NewRequestWithContext(t.Context(), method, url+c.path, bytes.NewReader(c.body)))(t)
	q.Header.Set("Content-Type", "application/pkcs10")
	if c.user != "" {
		q.SetBasicAuth("anybody", c.user)
	}
	r := must(client.Do(q))(t)
	defer func() { _ = r.Body.Close() }()
	return answer{r, string(must(io.ReadAll(r.Body))(t))}
}

// newCSR returns a CSR in DER.
func newCSR(t testing.TB, edits ...func(*x509.CertificateRequest)) []byte {
	t.Helper()
	template := &x509.CertificateRequest{}
	for _, edit := range edits {
		edit(template)
	}
	return must(x509.CreateCertificateRequest(rand.Reader, template, newKey(t)))(t)
}

func inBase64(der []byte) []byte { return []byte(base64.StdEncoding.EncodeToString(der)) }

// inLines returns base64 in lines.
func inLines(der []byte, end string) []byte {
	var b strings.Builder
	for line := range slices.Chunk(inBase64(der), 76) {
		b.Write(line)
		b.WriteString(end)
	}
	return []byte(b.String())
}

// newToken returns the text of a token.
func newToken(t testing.TB) string {
	t.Helper()
	secret := make([]byte, 32)
	_, _ = rand.Read(secret)
	return enroll.Token{
		Secret: must(pki.TokenSecretFromBytes(secret))(t), Bootstrap: enroll.Bootstrap{TrustDomain: "fleet.example", Server: "localhost:7443"},
	}.Text()
}

func (a answer) check(t *testing.T, name string, status int, rule pki.Rule) {
	t.Helper()
	if a.StatusCode != status || rule != "" && !strings.Contains(a.text, "["+string(rule)+"]") {
		t.Errorf("%s: %s %q, want %d with the rule %s", name, a.Status, a.text, status, rule)
	}
	if a.ContentLength != int64(len(a.text)) || len(a.TransferEncoding) > 0 {
		t.Errorf("%s: the response has the length %d and the encoding %v", name, a.ContentLength, a.TransferEncoding)
	}
	if rule != "" && !strings.HasPrefix(a.Header.Get("Content-Type"), "text/plain") {
		t.Errorf("%s: the refusal has the type %s", name, a.Header.Get("Content-Type"))
	}
}

func TestBodies(t *testing.T) {
	t.Parallel()
	w := build(t, open{})
	csr, token := newCSR(t), newToken(t)
	crlf := inLines(csr, "\r\n")
	for name, c := range map[string]struct {
		body   []byte
		status int
		rule   pki.Rule
		hint   string
	}{
		"one line":                  {inBase64(csr), 200, "", ""},
		"lines":                     {inLines(csr, "\n"), 200, "", ""},
		"lines with CRLF":           {crlf, 200, "", ""},
		"lines with spaces":         {inLines(csr, " \t\n"), 200, "", ""},
		"empty lines at the end":    {append(slices.Clone(crlf), "\r\n\r\n"...), 200, "", ""},
		"nothing":                   {[]byte{' '}, 400, pki.RuleESTBody, "the body is empty"},
		"garbage after it":          {append(slices.Clone(crlf), "!"...), 400, pki.RuleESTBody, "something follows it"},
		"another text after it":     {append(inBase64(append(csr, make([]byte, 3-len(csr)%3)[1:]...)), "==AAAA"...), 400, pki.RuleESTBody, ""},
		"truncated":                 {inBase64(csr)[:101], 400, pki.RuleESTBody, "it is incomplete"},
		"base64url":                 {[]byte("MIH_MIG-"), 400, pki.RuleESTBody, ""},
		"DER":                       {csr, 400, pki.RuleESTBody, "the body is in DER"},
		"PEM":                       {[]byte("-----BEGIN CERTIFICATE REQUEST-----\n" + string(crlf) + "-----END CERTIFICATE REQUEST-----\n"), 400, pki.RuleESTBody, "the body is in PEM"},
		"a truncated multipart":     {[]byte("--boundary\r\nContent-Type: application/pkcs10\r\n\r\n" + string(crlf[:50])), 400, pki.RuleESTBody, "multipart"},
		"more than may be sent":     {bytes.Repeat([]byte("A"), 40<<10), 400, pki.RuleSize, ""},
		"something other than CSRs": {inBase64([]byte("hello")), 200, "", ""}, // package ra refuses it
	} {
		a := w.send(t, call{path: "simpleenroll", body: c.body, user: token})
		a.check(t, name, c.status, c.rule)
		if !strings.Contains(a.text, c.hint) {
			t.Errorf("%s: %q does not contain %q", name, a.text, c.hint)
		}
		if e := w.registrar.last(); (c.status == 200) != (e.CSR != nil) || c.status == 200 && strings.HasPrefix(name, "lines") && !bytes.Equal(e.CSR, csr) {
			t.Errorf("%s: the CSR is %x", name, e.CSR)
		}
	}
	if n := len(w.registrar.noted); n != 8 {
		t.Errorf("%d refused bodies were noted with their evidence, want 8", n)
	}
}

func TestAuthentication(t *testing.T) {
	t.Parallel()
	w := build(t, open{})
	token, factory := newToken(t), newAuthority(t, "Acme").issue(t, "camera")
	own := w.authorities.issuing.issue(t, "device")
	body := inBase64(newCSR(t))
	for name, c := range map[string]struct {
		call
		status int
		rule   pki.Rule
		kinds  []pki.EvidenceKind
	}{
		"a token":                        {call{user: token}, 200, "", []pki.EvidenceKind{pki.EvidenceToken}},
		"a factory certificate":          {call{device: &factory}, 200, "", []pki.EvidenceKind{pki.EvidenceX5CTLS}},
		"with TLS 1.2":                   {call{device: &factory, version: tls.VersionTLS12}, 200, "", []pki.EvidenceKind{pki.EvidenceX5CTLS}},
		"both":                           {call{user: token, device: &factory}, 200, "", []pki.EvidenceKind{pki.EvidenceToken, pki.EvidenceX5CTLS}},
		"a token and an own certificate": {call{user: token, device: &own}, 200, "", []pki.EvidenceKind{pki.EvidenceToken}},
		"nothing":                        {call{}, 401, "", nil},
		"an own certificate":             {call{device: &own}, 401, pki.RuleUnauthenticated, nil},
		"no token":                       {call{user: "secret"}, 401, pki.RuleToken, nil},
		"a damaged token":                {call{user: token[:len(token)-1]}, 401, pki.RuleToken, nil},
	} {
		c.path, c.body = "simpleenroll", body
		a := w.send(t, c.call)
		a.check(t, name, c.status, c.rule)
		if challenge := a.Header.Get("WWW-Authenticate"); (c.status == 401) != strings.HasPrefix(challenge, "Basic realm=") {
			t.Errorf("%s: %d with the challenge %q", name, c.status, challenge)
		}
		if strings.Contains(a.text, token[20:40]) || strings.Contains(a.text, "secret") {
			t.Errorf("%s: the response contains the secret: %q", name, a.text)
		}
		var kinds []pki.EvidenceKind
		for _, e := range w.registrar.last().Evidence {
			kinds = append(kinds, e.Kind)
			if e.Kind == pki.EvidenceX5CTLS && !bytes.Equal(e.Value, pki.X5CTLSEvidence{Certificates: factory.Certificate}.Encode()) {
				t.Errorf("%s: the evidence is %x", name, e.Value)
			}
		}
		if !slices.Equal(kinds, c.kinds) {
			t.Errorf("%s: the evidence is of the kinds %v, want %v", name, kinds, c.kinds)
		}
	}
	a := w.send(t, call{path: "simplereenroll", body: body})
	a.check(t, "simplereenroll without a certificate", 403, pki.RuleUnauthenticated)
	a = w.send(t, call{path: "simplereenroll", body: body, device: &factory})
	a.check(t, "simplereenroll with a factory certificate", 403, pki.RuleCertificate)
}

// A repeated request has the same ID. A request with another key, token or certificate has another.
func TestRequestIDs(t *testing.T) {
	t.Parallel()
	w := build(t, open{})
	acme := newAuthority(t, "Acme")
	a, b, one, two := newToken(t), newToken(t), acme.issue(t, "1"), acme.issue(t, "2")
	x, y := inBase64(newCSR(t)), inBase64(newCSR(t))
	seen := map[pki.RequestID]bool{}
	for _, c := range []call{
		{body: x, user: a}, {body: y, user: a}, {body: x, user: b}, {body: x, device: &one}, {body: x, device: &two}, {body: x, user: a, device: &one},
	} {
		c.path = "simpleenroll"
		w.send(t, c).check(t, "a request", 200, "")
		id := w.registrar.last().RequestID
		if seen[id] || id.IsZero() {
			t.Errorf("the request ID %s is used for two requests", id)
		}
		seen[id] = true
		c.path = "chain/simpleenroll"
		w.send(t, c).check(t, "its repeat", 200, "")
		if again := w.registrar.last().RequestID; again != id {
			t.Errorf("a repeat has the request ID %s, want %s", again, id)
		}
	}
}

func TestLabels(t *testing.T) {
	t.Parallel()
	w := build(t, open{})
	token, body := newToken(t), inBase64(newCSR(t))
	for path, status := range map[string]int{
		"simpleenroll": 200, "default/simpleenroll": 200, "chain/simpleenroll": 200, "other/simpleenroll": 404, "Default/simpleenroll": 404,
		"default/x/simpleenroll": 404, "default/simpleenrol": 404, "%2e%2e/simpleenroll": 404,
	} {
		a := w.send(t, call{path: path, body: body, user: token})
		if a.StatusCode != status {
			t.Errorf("%s: %s %q, want %d", path, a.Status, a.text, status)
		}
	}
	for _, path := range []string{"cacerts", "csrattrs"} {
		w.send(t, call{path: "other/" + path}).check(t, path, 404, pki.RuleLabel)
	}
	for _, path := range []string{"serverkeygen", "fullcmc", "chain/serverkeygen"} {
		w.send(t, call{path: path, body: body, user: token}).check(t, path, 501, pki.RuleESTOperation)
	}
	if a := w.send(t, call{path: "simpleenroll", user: token}); a.StatusCode != http.StatusMethodNotAllowed {
		t.Errorf("GET simpleenroll: %s", a.Status)
	}
}

// temporary is an error that passes.
type temporary struct{ after time.Duration }

func (temporary) Error() string               { return "the password of the store is 1234" }
func (temporary) Temporary() bool             { return true }
func (e temporary) RetryAfter() time.Duration { return e.after }

func TestErrors(t *testing.T) {
	t.Parallel()
	w := build(t, open{})
	token, body := newToken(t), inBase64(newCSR(t))
	for name, c := range map[string]struct {
		err    error
		status int
		after  string
	}{
		"no rule":              {pki.Refuse(pki.RulePolicy, "ask", "no rule"), 403, ""},
		"a conflict":           {pki.Refuse(pki.RuleAlreadyEnrolled, "ask", "enrolled"), 409, ""},
		"too many":             {pki.Refuse(pki.RuleMaxUnexpired, "wait", "too many"), 429, ""},
		"a busy HSM":           {temporary{1500 * time.Millisecond}, 202, "2"},
		"an HSM that is away":  {temporary{}, 202, "10"},
		"a failure":            {errors.New("the password of the store is 1234"), 500, ""},
		"a lack of permission": {pki.Refuse(pki.RuleRevoked, "ask", "revoked"), 403, ""},
	} {
		w.registrar.err = c.err
		a := w.send(t, call{path: "simpleenroll", body: body, user: token})
		a.check(t, name, c.status, "")
		if a.Header.Get("Retry-After") != c.after || a.text == "" || strings.Contains(a.text, "1234") {
			t.Errorf("%s: Retry-After %q, %q", name, a.Header.Get("Retry-After"), a.text)
		}
	}
	shed := build(t, open{refuse: errors.Join(pki.Refuse(pki.RuleOverloaded, "wait", "too many requests"), temporary{time.Second})})
	a := shed.send(t, call{path: "simpleenroll", body: body, user: token})
	a.check(t, "a shed enrollment", 202, pki.RuleOverloaded)
	if a.Header.Get("Retry-After") != "1" {
		t.Errorf("a shed enrollment is to be repeated after %q", a.Header.Get("Retry-After"))
	}
	shed.send(t, call{path: "cacerts"}).check(t, "a shed read", 429, pki.RuleOverloaded)
}

func TestLinking(t *testing.T) {
	t.Parallel()
	w := build(t, open{})
	token := newToken(t)
	for name, c := range map[string]struct {
		version uint16
		value   func(tls.ConnectionState) []byte
		status  int
		linked  bool
	}{
		"tls-unique":          {tls.VersionTLS12, func(s tls.ConnectionState) []byte { return s.TLSUnique }, 200, true},
		"tls-exporter":        {tls.VersionTLS13, exporter, 200, true},
		"tls-exporter of 1.2": {tls.VersionTLS12, exporter, 200, true},
		"of another":          {tls.VersionTLS13, func(tls.ConnectionState) []byte { return make([]byte, 32) }, 403, false},
		"truncated":           {tls.VersionTLS13, func(s tls.ConnectionState) []byte { return exporter(s)[:30] }, 403, false},
		"none":                {tls.VersionTLS13, nil, 200, false},
	} {
		// The connection is opened before the CSR is made, as clients do that link CSRs.
		dialer := tls.Dialer{Config: &tls.Config{InsecureSkipVerify: true, MaxVersion: c.version}} //nolint:gosec // the test is about the server
		host := strings.TrimSuffix(strings.TrimPrefix(w.url, "https://"), "/.well-known/est/")
		conn := must(dialer.DialContext(t.Context(), "tcp", host))(t)
		client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialTLSContext: func(context.Context, string, string) (net.Conn, error) {
			return conn, nil
		}}}
		der := newCSR(t)
		if c.value != nil {
			state := conn.(*tls.Conn).ConnectionState()
			der = withPassword(t, base64.StdEncoding.EncodeToString(c.value(state)))
		}
		a := sendOn(t, client, w.url, call{path: "linked/simpleenroll", body: inBase64(der), user: token})
		rule := pki.RuleLinking
		if c.status == 200 {
			rule = ""
		}
		a.check(t, name, c.status, rule)
		if e := w.registrar.last(); e.Linked != c.linked || c.status == 200 && e.Label != "linked" {
			t.Errorf("%s: linked is %v, with the label %s", name, e.Linked, e.Label)
		}
	}
}

func exporter(s tls.ConnectionState) []byte {
	b, err := s.ExportKeyingMaterial("EXPORTER-Channel-Binding", nil, 32)
	if err != nil {
		return nil
	}
	return b
}

// withPassword returns a CSR with the attribute challengePassword.
func withPassword(t testing.TB, password string) []byte {
	t.Helper()
	dir := t.TempDir()
	key := filepath.Join(dir, "key")
	openssl(t, nil, "ecparam", "-genkey", "-name", "prime256v1", "-noout", "-out", key)
	config := filepath.Join(dir, "config")
	write(t, config, "[req]\nprompt=no\ndistinguished_name=dn\nattributes=attributes\n[dn]\nCN=device\n[attributes]\nchallengePassword="+password+"\n")
	return openssl(t, nil, "req", "-new", "-key", key, "-config", config, "-outform", "DER")
}

// openssl runs OpenSSL and returns its output.
func openssl(t testing.TB, input []byte, args ...string) []byte {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "openssl", args...)
	cmd.Stdin = bytes.NewReader(input)
	out, err := cmd.Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			t.Fatalf("openssl %v: %v\n%s", args, err, exit.Stderr)
		}
		t.Fatalf("openssl %v: %v (run deploy/setup.sh --test)", args, err)
	}
	return out
}

// OpenSSL reads the responses.
func TestResponses(t *testing.T) {
	t.Parallel()
	w := build(t, open{})
	token, body := newToken(t), inBase64(newCSR(t))
	for path, want := range map[string][]string{
		"simpleenroll": {"CN = device"}, "chain/simpleenroll": {"CN = device", "CN = Fleet Issuing"},
		"cacerts": {"CN = Fleet Root", "CN = Fleet Issuing"}, "chain/cacerts": {"CN = Fleet Root", "CN = Fleet Issuing"},
	} {
		c := call{path: path, body: body, user: token}
		if strings.HasSuffix(path, "cacerts") {
			c = call{path: path}
		}
		a := w.send(t, c)
		a.check(t, path, 200, "")
		if a.Header.Get("Content-Type") != "application/pkcs7-mime; smime-type=certs-only" || a.Header.Get("Content-Transfer-Encoding") != "base64" {
			t.Errorf("%s: the headers are %v", path, a.Header)
		}
		if path == "simpleenroll" && len(a.text) >= 2000 {
			t.Errorf("the response has %d bytes", len(a.text))
		}
		der := openssl(t, []byte(a.text), "base64", "-d", "-A")
		var subjects []string
		for line := range strings.Lines(string(openssl(t, der, "pkcs7", "-inform", "DER", "-print_certs", "-noout"))) {
			if subject, ok := strings.CutPrefix(strings.TrimSpace(line), "subject="); ok {
				subjects = append(subjects, subject)
			}
		}
		if !slices.Equal(subjects, want) {
			t.Errorf("%s has certificates of %q, want %q", path, subjects, want)
		}
	}
}

func TestAttributes(t *testing.T) {
	t.Parallel()
	w := build(t, open{})
	for label, want := range map[string][]string{
		"default":  nil,
		"chain":    {":id-ecPublicKey", ":prime256v1", ":ecdsa-with-SHA256"},
		"linked":   {":challengePassword"},
		"template": {":1.2.840.113549.1.9.16.2.61", "INTEGER", "cont [ 0 ]", ":id-ecPublicKey", ":secp384r1", "cont [ 1 ]", ":challengePassword"},
		"rsa":      {":1.2.840.113549.1.9.16.2.61", "cont [ 0 ]", ":rsaEncryption", "NULL", "BIT STRING", "cont [ 1 ]"},
		"any":      {":1.2.840.113549.1.9.16.2.61", "INTEGER", "cont [ 1 ]"},
	} {
		a := w.send(t, call{path: label + "/csrattrs"})
		if want == nil {
			if a.StatusCode != http.StatusNoContent || a.text != "" {
				t.Errorf("%s: %s %q", label, a.Status, a.text)
			}
			continue
		}
		a.check(t, label, 200, "")
		if a.Header.Get("Content-Type") != "application/csrattrs" {
			t.Errorf("%s: the type is %s", label, a.Header.Get("Content-Type"))
		}
		printed := string(openssl(t, openssl(t, []byte(a.text), "base64", "-d", "-A"), "asn1parse", "-inform", "DER"))
		rest := printed
		for _, part := range want {
			_, after, found := strings.Cut(rest, part)
			if !found {
				t.Errorf("%s: after the parts before it, there is no %q in\n%s", label, part, printed)
			}
			rest = after
		}
	}
}
