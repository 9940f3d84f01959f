package acme_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"encoding/json"
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
	racme "github.com/brevet-pki/brevet/ra/acme"
	"github.com/brevet-pki/brevet/server/acme"
	"github.com/brevet-pki/brevet/server/acme/validation"
	"github.com/brevet-pki/brevet/server/frontdoor"

	"crypto/x509"
)

// world is a door on a TLS listener, with a web server that responds to http-01.
type world struct {
	t         testing.TB
	authority *authority
	door      *acme.Door
	url       string // external URL
	http      *http.Client

	mu        sync.Mutex
	responses map[string]string // of the web server, by path
}

func newWorld(t testing.TB) *world {
	t.Helper()
	w := &world{t: t, authority: newAuthority(t), responses: map[string]string{}}
	web := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		w.mu.Lock()
		defer w.mu.Unlock()
		_, _ = io.WriteString(rw, w.responses[r.URL.Path])
	}))
	t.Cleanup(web.Close)
	mux := http.NewServeMux()
	s := httptest.NewUnstartedServer(mux)
	s.EnableHTTP2 = false
	s.StartTLS()
	t.Cleanup(s.Close)
	w.url, w.http = s.URL, s.Client()
	var err error
	w.door, err = acme.New(acme.Config{
		URL: s.URL, MinVersion: tls.VersionTLS12, Accounts: w.authority, AccountChanges: w.authority, Orders: w.authority,
		Authorizations: w.authority, Certificates: w.authority, Terms: w.authority, Renewals: w.authority,
		Authorities: []*x509.Certificate{w.authority.ca},
		Validator: validation.New(validation.Config{
			Networks: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}, HTTPPort: portOf(t, web.Listener.Addr()), TLSPort: 1,
		}),
		Nonces: acme.NewNonceSet(time.Now), Clock: time.Now, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.door.Close)
	serve(mux, w.door.Door())
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
	w   *world
	key crypto.Signer
	alg jose.SignatureAlgorithm
	kid string // "" to send the key as jwk
}

func (w *world) client() *client {
	w.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		w.t.Fatal(err)
	}
	return &client{w: w, key: key, alg: jose.ES256}
}

// registered returns a client with an account.
func (w *world) registered() *client {
	w.t.Helper()
	c := w.client()
	w.authority.mu.Lock()
	w.authority.optional = true
	w.authority.mu.Unlock()
	resp := c.post("/acme/new-account", `{}`)
	if resp.status != http.StatusCreated {
		w.t.Fatalf("newAccount: %+v", resp)
	}
	c.kid = resp.header.Get("Location")
	return c
}

func (w *world) nonce() string {
	w.t.Helper()
	resp, err := w.http.Head(w.url + "/acme/new-nonce")
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

// post signs and sends a request to a path or URL.
func (c *client) post(path, payload string) response { return c.postWith(path, payload, nil) }

func (c *client) postWith(path, payload string, header map[string]any) response {
	c.w.t.Helper()
	url := path
	if strings.HasPrefix(path, "/") {
		url = c.w.url + path
	}
	return c.w.send(http.MethodPost, url, c.sign(url, payload, header), "application/jose+json")
}

func (w *world) get(path string) response { return w.send(http.MethodGet, w.url+path, "", "") }

func (w *world) send(method, url, body, contentType string) response {
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

// ready returns the URL of an order for an IP address, whose challenge is valid.
func (c *client) ready() string {
	c.w.t.Helper()
	o := c.post("/acme/new-order", `{"identifiers":[{"type":"ip","value":"127.0.0.1"}]}`)
	if o.status != http.StatusCreated {
		c.w.t.Fatalf("newOrder: %+v", o)
	}
	c.authorize(o)
	return o.header.Get("Location")
}

// authorize responds to the http-01 challenges of an order.
func (c *client) authorize(o response) {
	c.w.t.Helper()
	urls, _ := o.object["authorizations"].([]any)
	for _, url := range urls {
		at := fmt.Sprint(url)
		z := c.post(at, "")
		challenges, _ := z.object["challenges"].([]any)
		for _, each := range challenges {
			ch, _ := each.(map[string]any)
			if ch["type"] != string(racme.HTTP01) {
				continue
			}
			token := fmt.Sprint(ch["token"])
			thumbprint, err := (&jose.JSONWebKey{Key: c.key.Public()}).Thumbprint(crypto.SHA256)
			if err != nil {
				c.w.t.Fatal(err)
			}
			c.w.mu.Lock()
			c.w.responses["/.well-known/acme-challenge/"+token] = token + "." + encode(thumbprint)
			c.w.mu.Unlock()
			if resp := c.post(fmt.Sprint(ch["url"]), "{}"); resp.status != http.StatusOK {
				c.w.t.Fatalf("challenge: %+v", resp)
			}
		}
		deadline := time.Now().Add(10 * time.Second)
		for z.text("status") == "pending" && time.Now().Before(deadline) {
			time.Sleep(5 * time.Millisecond)
			z = c.post(at, "")
		}
	}
}
