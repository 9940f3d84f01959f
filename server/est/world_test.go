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
	"os"
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

// authorities are those of a server with one issuing CA, and with old roots.
type authorities struct {
	root, issuing authority
	old           [][]byte
}

func (a authorities) Bundle() (roots, intermediates [][]byte) {
	return append([][]byte{a.root.certificate.Raw}, a.old...), [][]byte{a.issuing.certificate.Raw}
}

func (a authorities) Has(subject []byte) bool {
	return bytes.Equal(subject, a.issuing.certificate.RawSubject)
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

func (open) Enter(context.Context, authz.Operation, admission.Source, time.Time) (func(), error) {
	return func() {}, nil
}
func (open) Start(q *http.Request, _ string) (*http.Request, func())              { return q, func() {} }
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

func build(t *testing.T, admit open, old ...[]byte) *world {
	t.Helper()
	w := &world{registrar: &registrar{}, authorities: authorities{root: newAuthority(t, "Fleet Root"), issuing: newAuthority(t, "Fleet Issuing")}}
	w.registrar.issued = ca.Certificate{DER: w.authorities.issuing.issue(t, "device").Certificate[0]}
	w.authorities.old = old
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

// host returns the address of the server.
func (w *world) host() string {
	return strings.TrimSuffix(strings.TrimPrefix(w.url, "https://"), "/.well-known/est/")
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
	config := &tls.Config{InsecureSkipVerify: true, MaxVersion: c.version}
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

func write(t testing.TB, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}
