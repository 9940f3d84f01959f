package acme_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/server/acme"
	"github.com/brevet-pki/brevet/server/acme/validation"
	"github.com/brevet-pki/brevet/server/frontdoor"
)

// target is an ACME server.
type target struct {
	t         testing.TB
	url       string // external URL
	http      *http.Client
	directory map[string]string // URLs of the resources by name
}

// open reads the directory of a target.
func (w *target) open(url string) {
	w.t.Helper()
	w.directory = map[string]string{}
	for name, value := range w.send(http.MethodGet, url, "", "").object {
		if text, ok := value.(string); ok {
			w.directory[name] = text
		}
	}
	if w.directory["newNonce"] == "" {
		w.t.Fatalf("%s is not a directory", url)
	}
}

// at returns the URL of a resource of the directory, of a path, or a URL itself.
func (w *target) at(resource string) string {
	if url, ok := w.directory[resource]; ok {
		return url
	}
	if strings.HasPrefix(resource, "/") {
		return w.url + resource
	}
	return resource
}

// web is a web server that responds to http-01. It is safe for concurrent use.
type web struct {
	port uint16

	mu        sync.Mutex
	responses map[string]string // by path
}

func newWeb(t testing.TB) *web {
	t.Helper()
	w := &web{responses: map[string]string{}}
	s := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		w.mu.Lock()
		defer w.mu.Unlock()
		_, _ = io.WriteString(rw, w.responses[r.URL.Path])
	}))
	t.Cleanup(s.Close)
	w.port = portOf(t, s.Listener.Addr())
	return w
}

// set sets the response at a path.
func (w *web) set(path, response string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.responses[path] = response
}

// hold lets the server respond to no request until release.
func (w *web) hold() (release func()) {
	w.mu.Lock()
	return w.mu.Unlock
}

// world is a door on a TLS listener, with a web server that responds to http-01.
type world struct {
	target
	*web
	authority *authority
	door      *acme.Door
	// certificate is that of the TLS listener.
	certificate *x509.Certificate
}

// Validated implements acme.Meter.
func (*world) Validated(string, *pki.Refusal, time.Duration) {}

func newWorld(t testing.TB) *world {
	t.Helper()
	return newWorldWith(t, validation.Config{})
}

// newWorldWith returns a world that validates challenges as c says. If c has no port for http-01, it is that of the web
// server.
func newWorldWith(t testing.TB, c validation.Config) *world {
	t.Helper()
	w := &world{target: target{t: t}, web: newWeb(t), authority: newAuthority(t)}
	c.Networks = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
	if c.HTTPPort == 0 {
		c.HTTPPort = w.port
	}
	mux := http.NewServeMux()
	s := httptest.NewUnstartedServer(mux)
	s.EnableHTTP2 = false
	s.StartTLS()
	t.Cleanup(s.Close)
	w.url, w.http, w.certificate = s.URL, s.Client(), s.Certificate()
	var err error
	w.door, err = acme.New(acme.Config{
		URL: s.URL, MinVersion: tls.VersionTLS12, Accounts: w.authority, AccountChanges: w.authority, Orders: w.authority,
		Authorizations: w.authority, Certificates: w.authority, Terms: w.authority, Renewals: w.authority,
		Authorities: []*x509.Certificate{w.authority.ca},
		Validator:   validation.New(c),
		Nonces:      acme.NewNonceSet(), Refusals: w.authority, Meter: w, Clock: time.Now, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.door.Close)
	serve(mux, w.door.Door())
	w.open(s.URL + "/acme/directory")
	return w
}

func portOf(t testing.TB, a net.Addr) uint16 {
	t.Helper()
	return netip.MustParseAddrPort(a.String()).Port()
}

// serve adds the routes of a door to a mux.
func serve(mux *http.ServeMux, door frontdoor.Door) {
	for _, route := range door.Routes {
		mux.HandleFunc(route.Method+" "+route.Path, func(w http.ResponseWriter, r *http.Request) {
			request := &frontdoor.Request{Request: r, From: netip.MustParseAddrPort(r.RemoteAddr).Addr()}
			content, err := io.ReadAll(io.LimitReader(r.Body, route.MaxBody+1))
			if err == nil && int64(len(content)) > route.MaxBody {
				err = pki.Refuse(pki.RuleSize, "send less", "the body is too large")
			}
			request.Content = content
			var resp frontdoor.Response
			if err == nil {
				resp, err = route.Handle(r.Context(), request)
			}
			if err != nil {
				resp = door.Fail(request, err)
			}
			for name, values := range resp.Header {
				w.Header()[name] = values
			}
			w.WriteHeader(max(resp.Status, http.StatusOK))
			_, _ = w.Write(resp.Body)
		})
	}
}

// client signs requests as an ACME client does, and lets a test change every part of them.
type client struct {
	w   *target
	key crypto.Signer
	alg jose.SignatureAlgorithm
	kid string // "" to send the key as jwk
}

func (w *target) client() *client {
	w.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		w.t.Fatal(err)
	}
	return &client{w: w, key: key, alg: jose.ES256}
}

// optionalBinding allows accounts without an external account binding.
func (w *world) optionalBinding() *world {
	w.authority.mu.Lock()
	defer w.authority.mu.Unlock()
	w.authority.optional = true
	return w
}

// registered returns a client with an account.
func (w *target) registered() *client {
	w.t.Helper()
	c := w.client()
	resp := c.post("newAccount", `{"termsOfServiceAgreed":true}`)
	if resp.status != http.StatusCreated {
		w.t.Fatalf("newAccount: %+v", resp)
	}
	c.kid = resp.header.Get("Location")
	return c
}

func (w *target) nonce() string {
	w.t.Helper()
	resp, err := w.http.Head(w.at("newNonce"))
	if err != nil {
		w.t.Fatal(err)
	}
	_ = resp.Body.Close()
	return resp.Header.Get("Replay-Nonce")
}

// response is a response with its body, and the members of the body if it is a JSON object.
type response struct {
	status int
	header http.Header
	body   string
	object map[string]any
}

func (r response) text(name string) string {
	text, _ := r.object[name].(string)
	return text
}

// problem returns the last part of the type of the problem.
func (r response) problem() string {
	return strings.TrimPrefix(r.text("type"), "urn:ietf:params:acme:error:")
}

// sign returns a signed request. header adds members to the protected header, or replaces them.
func (c *client) sign(url, payload string, header map[string]any) string {
	c.w.t.Helper()
	options := &jose.SignerOptions{}
	members := map[string]any{"url": url, "nonce": c.w.nonce()}
	if c.kid != "" {
		members["kid"] = c.kid
	} else {
		members["jwk"] = jose.JSONWebKey{Key: c.key.Public()}
	}
	for name, value := range header {
		members[name] = value
	}
	for name, value := range members {
		if value != nil {
			options.WithHeader(jose.HeaderKey(name), value)
		}
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: c.alg, Key: c.key}, options)
	if err != nil {
		c.w.t.Fatal(err)
	}
	signed, err := signer.Sign([]byte(payload))
	if err != nil {
		c.w.t.Fatal(err)
	}
	return signed.FullSerialize()
}

// post signs and sends a request to a resource of the directory, a path or a URL.
func (c *client) post(resource, payload string) response { return c.postWith(resource, payload, nil) }

// postWith is like post, and changes the protected header.
func (c *client) postWith(resource, payload string, header map[string]any) response {
	c.w.t.Helper()
	url := c.w.at(resource)
	return c.w.post(url, c.sign(url, payload, header))
}

// post sends a body that is signed already.
func (w *target) post(url, body string) response {
	return w.send(http.MethodPost, url, body, "application/jose+json")
}

func (w *target) get(resource string) response { return w.send(http.MethodGet, w.at(resource), "", "") }

func (w *target) send(method, url, body, contentType string) response {
	w.t.Helper()
	req, err := http.NewRequestWithContext(w.t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		w.t.Fatal(err)
	}
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	resp, err := w.http.Do(req)
	if err != nil {
		w.t.Fatal(err)
	}
	defer resp.Body.Close()
	content, err := io.ReadAll(resp.Body)
	if err != nil {
		w.t.Fatal(err)
	}
	r := response{status: resp.StatusCode, header: resp.Header, body: string(content)}
	_ = json.Unmarshal(bytes.TrimSpace(content), &r.object)
	return r
}

// order creates an order for an IP address or a name.
func (c *client) order(kind, value string) response {
	c.w.t.Helper()
	o := c.post("newOrder", fmt.Sprintf(`{"identifiers":[{"type":%q,"value":%q}]}`, kind, value))
	if o.status != http.StatusCreated {
		c.w.t.Fatalf("newOrder: %+v", o)
	}
	return o
}

// challenges returns the challenges of the first authorization of an order by their types, and the authorization.
func (c *client) challenges(o response) (byType map[string]map[string]any, authorization string) {
	c.w.t.Helper()
	urls, _ := o.object["authorizations"].([]any)
	if len(urls) == 0 {
		c.w.t.Fatalf("the order has no authorizations: %+v", o)
	}
	authorization = fmt.Sprint(urls[0])
	all, _ := c.post(authorization, "").object["challenges"].([]any)
	byType = map[string]map[string]any{}
	for _, each := range all {
		if ch, ok := each.(map[string]any); ok {
			byType[fmt.Sprint(ch["type"])] = ch
		}
	}
	return byType, authorization
}

// keyAuthorization returns the response to a challenge.
func (c *client) keyAuthorization(token string) string {
	c.w.t.Helper()
	thumbprint, err := (&jose.JSONWebKey{Key: c.key.Public()}).Thumbprint(crypto.SHA256)
	if err != nil {
		c.w.t.Fatal(err)
	}
	return token + "." + base64.RawURLEncoding.EncodeToString(thumbprint)
}

// respond lets the web server respond to a token.
func (w *web) respond(c *client, token string) {
	w.set("/.well-known/acme-challenge/"+token, c.keyAuthorization(token))
}

// wait reads a resource until it has another status than before.
func (c *client) wait(url, before string) response {
	c.w.t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for {
		r := c.post(url, "")
		if r.text("status") != before || time.Now().After(deadline) {
			return r
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// ready returns an order for an address that is ready.
func (w *web) ready(c *client) response {
	c.w.t.Helper()
	o := c.order("ip", "127.0.0.1")
	challenges, authorization := c.challenges(o)
	ch := challenges["http-01"]
	w.respond(c, fmt.Sprint(ch["token"]))
	if r := c.post(fmt.Sprint(ch["url"]), "{}"); r.status != http.StatusOK {
		c.w.t.Fatalf("challenge: %+v", r)
	}
	if z := c.wait(authorization, "pending"); z.text("status") != "valid" {
		c.w.t.Fatalf("authorization: %+v", z)
	}
	return c.wait(o.header.Get("Location"), "pending")
}

// csr returns a CSR in base64url for an order, with a new key.
func csr(t testing.TB, template *x509.CertificateRequest) (text string, key *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, template, key)
	if err != nil {
		t.Fatal(err)
	}
	return base64.RawURLEncoding.EncodeToString(der), key
}

func csrFor(name string) *x509.CertificateRequest {
	return &x509.CertificateRequest{DNSNames: []string{name}}
}

func base64URL(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

// decodePEM returns the first block.
func decodePEM(t testing.TB, text []byte) []byte {
	t.Helper()
	block, _ := pem.Decode(text)
	if block == nil {
		t.Fatalf("%q is not PEM", text)
	}
	return block.Bytes
}
