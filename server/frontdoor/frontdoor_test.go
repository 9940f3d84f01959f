package frontdoor_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/server/admission"
	"github.com/brevet-pki/brevet/server/authz"
	"github.com/brevet-pki/brevet/server/frontdoor"
)

// open is an Admission that admits every request.
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

// counter is a Meter and a RefusalLog that keeps what it gets.
type counter struct {
	mu       sync.Mutex
	requests []string
	failures int
	refusals int          // recorded, and counted with their request
	shaken   map[bool]int // handshakes, by whether they succeeded
}

func (c *counter) Handshake(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.shaken[err == nil]++
}

func (*counter) Start(q *http.Request, _ string) (*http.Request, func()) { return q, func() {} }

func (c *counter) Request(_ context.Context, handler string, status int, _ time.Duration, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if recorded := (record{}); errors.As(err, &recorded) {
		c.refusals++
	}
	c.requests = append(c.requests, fmt.Sprintf("%s %d", handler, status))
}

func (c *counter) Failure(error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.failures++
}

// record is a refusal that was recorded.
type record struct{ error }

func (r record) Unwrap() error { return r.error }

func (*counter) Record(_ context.Context, _ pki.Actor, _ pki.SPIFFEID, err error) error {
	if err != nil {
		return record{err}
	}
	return nil
}

func (c *counter) last() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.requests) == 0 {
		return ""
	}
	return c.requests[len(c.requests)-1]
}

// errDisk is an error whose text no client may get.
var errDisk = errors.New("the disk is on fire")

// fail responds with the status and, if the error is a refusal, with its text.
func fail(_ *frontdoor.Request, err error) frontdoor.Response {
	r := frontdoor.Response{Status: frontdoor.StatusOf(err), Header: http.Header{}}
	if after, ok := frontdoor.RetryAfter(err); ok {
		r.Header.Set("Retry-After", fmt.Sprint(after))
	}
	if refusal, ok := pki.AsRefusal(err); ok {
		r.Body = []byte(refusal.Error())
	}
	return r
}

// doors are a door for TLS 1.3, and one that also accepts TLS 1.2.
func doors() []frontdoor.Door {
	route := func(method, path string, op authz.Operation, handle func(r *frontdoor.Request) (frontdoor.Response, error)) frontdoor.Route {
		return frontdoor.Route{Method: method, Path: path, Operation: op, MaxBody: 1000,
			Handle: func(_ context.Context, r *frontdoor.Request) (frontdoor.Response, error) { return handle(r) }}
	}
	repeat := func(r *frontdoor.Request) (frontdoor.Response, error) {
		for _, kept := range r.TLS.PeerCertificates {
			if kept != nil {
				return frontdoor.Response{}, errors.New("the connection keeps a parsed certificate")
			}
		}
		if err := r.Context().Err(); err != nil {
			return frontdoor.Response{}, err
		}
		return frontdoor.Response{Body: fmt.Appendf(nil, "%d certificates, %s", len(r.Chain), r.Content)}, nil
	}
	return []frontdoor.Door{
		{Name: "new", MinVersion: tls.VersionTLS13, Fail: fail, Routes: []frontdoor.Route{
			route("POST", "/new/echo", authz.Enroll, repeat),
			route("GET", "/new/echo", authz.CreateChallenge, repeat),
			route("GET", "/new/panic", authz.CheckHealth, func(*frontdoor.Request) (frontdoor.Response, error) { panic("oops") }),
			route("GET", "/new/fails", authz.ListHealth, func(*frontdoor.Request) (frontdoor.Response, error) { return frontdoor.Response{}, errDisk }),
			route("GET", "/new/unlisted", "MadeUp", repeat),
			route("POST", "/new/own", authz.GetTrustBundle, repeat),
		}},
		{Name: "old", MinVersion: tls.VersionTLS12, Fail: fail, Routes: []frontdoor.Route{route("POST", "/old/{name}", authz.Enroll, repeat)}},
	}
}

// house is a running server.
type house struct {
	url     string
	address string
	counter *counter
	log     *bytes.Buffer
}

// build starts a server. It stops at the end of the test.
func build(t *testing.T, admit open, change ...func(*frontdoor.Server)) *house {
	t.Helper()
	h := &house{counter: &counter{shaken: map[bool]int{}}, log: &bytes.Buffer{}}
	own := certificate(t)
	s := frontdoor.New(frontdoor.Config{
		Certificate: func() (*tls.Certificate, error) { return &own, nil },
		Authorizer:  authz.New(authz.Config{TrustDomain: "fleet.example", Roots: x509.NewCertPool(), Clock: time.Now}),
		Admission:   admit, Handshakes: admission.NewQueue("handshakes", admission.Size{Slots: 2, Each: 2, Queue: 64}),
		Meter: h.counter, Refusals: h.counter, Log: slog.New(slog.NewTextHandler(h.log, nil)),
	}, doors()...)
	for _, f := range change {
		f(s)
	}
	var lc net.ListenConfig
	l, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
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
	h.address = l.Addr().String()
	h.url = "https://" + h.address
	return h
}

// certificate returns a self-signed certificate for TLS.
func certificate(t *testing.T) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), DNSNames: []string{"localhost"}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// manyNames returns a self-signed certificate with thousands of empty URIs.
func manyNames(t *testing.T) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), URIs: make([]*url.URL, 5000)}
	for i := range template.URIs {
		template.URIs[i] = &url.URL{}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// client returns an HTTP client that changes its TLS configuration with adjust, and opens a connection for each request.
func client(adjust func(c *tls.Config)) *http.Client {
	c := &tls.Config{InsecureSkipVerify: true}
	if adjust != nil {
		adjust(c)
	}
	return &http.Client{Transport: &http.Transport{TLSClientConfig: c, DisableKeepAlives: true}, Timeout: time.Minute}
}

// send sends a request, and returns the response with its body.
func send(t *testing.T, c *http.Client, method, url string, body io.Reader) (*http.Response, string) {
	t.Helper()
	q, err := http.NewRequestWithContext(t.Context(), method, url, body)
	if err != nil {
		t.Fatal(err)
	}
	r, err := c.Do(q)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.Body.Close() }()
	text, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	return r, string(text)
}

func TestRequests(t *testing.T) {
	t.Parallel()
	h := build(t, open{})
	device, crowded := certificate(t), manyNames(t)
	many := func(c *tls.Config) { c.Certificates = []tls.Certificate{crowded} }
	with := func(c *tls.Config) { c.Certificates = []tls.Certificate{device} }
	tls12 := func(c *tls.Config) { c.MaxVersion = tls.VersionTLS12 }
	unsized := func(n int) io.Reader { return io.MultiReader(strings.NewReader(strings.Repeat("x", n))) }
	for name, c := range map[string]struct {
		adjust       func(c *tls.Config)
		method, path string
		body         io.Reader
		status       int
		text         string
		handler      string
	}{
		"no certificate":          {nil, "POST", "/new/echo", strings.NewReader("hello"), 200, "0 certificates, hello", "new/Enroll"},
		"a certificate":           {with, "POST", "/new/echo", nil, 200, "1 certificates, ", "new/Enroll"},
		"another method":          {nil, "GET", "/new/echo", nil, 200, "0 certificates, ", "new/CreateChallenge"},
		"a method without route":  {nil, "PUT", "/new/echo", nil, 405, "Method Not Allowed", "other"},
		"a path with a dot":       {nil, "GET", "/./new/echo", nil, 200, "0 certificates, ", "new/CreateChallenge"},
		"no such path":            {nil, "GET", "/elsewhere", nil, 404, "404 page not found", "other"},
		"the largest body":        {nil, "POST", "/new/echo", unsized(1000), 200, "0 certificates, xxx", "new/Enroll"},
		"a larger body":           {nil, "POST", "/new/echo", strings.NewReader(strings.Repeat("x", 1001)), 413, "[request.size]", "new/Enroll"},
		"a larger body in chunks": {nil, "POST", "/new/echo", unsized(5000), 413, "[request.size]", "new/Enroll"},
		"TLS 1.2 at the new door": {tls12, "POST", "/new/echo", nil, 403, "connect with TLS 1.3", "new/Enroll"},
		"TLS 1.2 at the old door": {tls12, "POST", "/old/a", nil, 200, "0 certificates, ", "old/Enroll"},
		"a panic":                 {nil, "GET", "/new/panic", nil, 500, "", "new/CheckHealth"},
		"a failure":               {nil, "GET", "/new/fails", nil, 500, "", "new/ListHealth"},
		"not in the access table": {nil, "GET", "/new/unlisted", nil, 501, "[request.method]", "new/MadeUp"},
		"no client certificate":   {nil, "POST", "/new/own", nil, 401, "[access.unauthenticated]", "new/GetTrustBundle"},
		"many names":              {many, "POST", "/new/echo", nil, 401, "[certificate.untrusted]", "new/Enroll"},
		"many names, to be used":  {many, "POST", "/new/own", nil, 401, "the certificate has 50", "new/GetTrustBundle"},
		"a foreign certificate":   {with, "POST", "/new/own", nil, 401, "[certificate.untrusted]", "new/GetTrustBundle"},
	} {
		r, text := send(t, client(c.adjust), c.method, h.url+c.path, c.body)
		if r.StatusCode != c.status || !strings.Contains(text, c.text) {
			t.Errorf("%s: %s with %.100q, want %d with %q", name, r.Status, text, c.status, c.text)
		}
		if r.ContentLength != int64(len(text)) || len(r.TransferEncoding) > 0 {
			t.Errorf("%s: the response has the length %d and the encoding %v", name, r.ContentLength, r.TransferEncoding)
		}
		if want := fmt.Sprintf("%s %d", c.handler, c.status); h.counter.last() != want {
			t.Errorf("%s counts as %q, want %q", name, h.counter.last(), want)
		}
	}
	if h.counter.failures != 2 || !strings.Contains(h.log.String(), "the disk is on fire") || !strings.Contains(h.log.String(), "oops") {
		t.Errorf("%d failures are counted, want 2; the log: %s", h.counter.failures, h.log)
	}
}

// A connection is a new one each time: a session is never resumed, so that its handshake proves the client's key.
func TestSessionsAreNotResumed(t *testing.T) {
	t.Parallel()
	h := build(t, open{})
	cache := tls.NewLRUClientSessionCache(8)
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		c := client(func(c *tls.Config) { c.ClientSessionCache, c.MaxVersion = cache, version })
		for range 2 {
			if r, _ := send(t, c, "POST", h.url+"/old/a", nil); r.StatusCode != 200 || r.TLS.DidResume {
				t.Errorf("TLS %x: %s, resumed %v", version, r.Status, r.TLS.DidResume)
			}
		}
	}
}

func TestShedRequestsSayWhenToRetry(t *testing.T) {
	t.Parallel()
	h := build(t, open{refuse: late{pki.Refuse(pki.RuleRateLimited, "wait", "too many requests")}})
	for path, want := range map[string]string{
		"/new/echo": "new/Enroll 429", "/elsewhere": "other 429", "//new/echo": "other 429", "/./new/echo": "other 429",
	} {
		r, text := send(t, client(nil), "POST", h.url+path, nil)
		if r.StatusCode != 429 || r.Header.Get("Retry-After") != "2" || !strings.Contains(text, "[server.rate_limited]") || h.counter.last() != want {
			t.Errorf("%s: %s, Retry-After %q, %q, counted as %s", path, r.Status, r.Header.Get("Retry-After"), text, h.counter.last())
		}
	}
	if h.counter.refusals != 4 {
		t.Errorf("%d refusals are recorded and counted, want 4", h.counter.refusals)
	}
}

// late is a refusal with a time for the retry.
type late struct{ *pki.Refusal }

func (l late) Unwrap() error           { return l.Refusal }
func (late) RetryAfter() time.Duration { return 1100 * time.Millisecond }

// Clients that do not finish their handshake delay no other, and are counted as failed when they disconnect.
func TestSlowHandshakes(t *testing.T) {
	t.Parallel()
	h := build(t, open{})
	var idle []net.Conn
	for range 8 {
		var d net.Dialer
		c, err := d.DialContext(t.Context(), "tcp", h.address)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Write([]byte{0x16, 0x03}); err != nil {
			t.Fatal(err)
		}
		idle = append(idle, c)
	}
	if r, _ := send(t, client(nil), "POST", h.url+"/new/echo", nil); r.StatusCode != 200 {
		t.Error(r.Status)
	}
	for _, c := range idle {
		_ = c.Close()
	}
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		h.counter.mu.Lock()
		shaken := fmt.Sprint(h.counter.shaken)
		h.counter.mu.Unlock()
		if shaken == "map[false:8 true:1]" {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("the handshakes are counted as %s", shaken)
		}
	}
}

// The response at the maximum age ends the connection, which until then serves many requests.
func TestConnectionsEndAtTheirMaximumAge(t *testing.T) {
	t.Parallel()
	for age, ends := range map[time.Duration]bool{time.Hour: false, time.Nanosecond: true} {
		h := build(t, open{}, func(s *frontdoor.Server) { s.SetMaxAge(age) })
		c := client(nil)
		c.Transport.(*http.Transport).DisableKeepAlives = false
		for _, path := range []string{"/new/echo", "/elsewhere", "/new/panic"} {
			if r, _ := send(t, c, "GET", h.url+path, nil); r.Close != ends {
				t.Errorf("%s at the age %s: the connection ends: %v", path, age, r.Close)
			}
		}
		c.CloseIdleConnections()
		h.counter.mu.Lock()
		if n := h.counter.shaken[true]; ends != (n == 3) || !ends && n != 1 {
			t.Errorf("at the age %s there were %d handshakes", age, n)
		}
		h.counter.mu.Unlock()
	}
}

// Clients of HTTP/1.0, and those that wait before they send their body.
func TestOldWaysOfHTTP(t *testing.T) {
	t.Parallel()
	h := build(t, open{})
	for name, c := range map[string]struct {
		text string
		want []string
		not  string
	}{
		"HTTP/1.0": {
			"POST /new/echo HTTP/1.0\r\nContent-Length: 5\r\n\r\nhello", []string{"HTTP/1.0 200 OK\r\n", "\r\n\r\n0 certificates, hello"}, "chunked",
		},
		"HTTP/1.0 without a length": {"GET /new/echo HTTP/1.0\r\n\r\n", []string{"200 OK", "Content-Length: 16"}, "chunked"},
		"Expect": {
			"POST /new/echo HTTP/1.1\r\nHost: a\r\nConnection: close\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\nhello",
			[]string{"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n", "0 certificates, hello"}, "chunked",
		},
		"Expect, with a body that is too long": {
			"POST /new/echo HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 5000\r\n\r\n",
			[]string{"HTTP/1.1 413 ", "Connection: close\r\n", "[request.size]"}, "100 Continue",
		},
		"Expect, without the right to send it": {
			"POST /new/own HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 500\r\n\r\n",
			[]string{"HTTP/1.1 401 ", "Connection: close\r\n", "[access.unauthenticated]"}, "100 Continue",
		},
		"Expect, without a route": {
			"POST /elsewhere HTTP/1.1\r\nHost: a\r\nExpect: 100-Continue\r\nContent-Length: 500\r\n\r\n",
			[]string{"HTTP/1.1 404 ", "Connection: close\r\n"}, "100 Continue",
		},
		"Expect, and another request on the connection": {
			"POST /new/echo HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\nhello" +
				"GET /new/echo HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
			[]string{"0 certificates, helloHTTP/1.1 200 OK\r\n"}, "chunked",
		},
	} {
		got := h.speak(t, 0, c.text)
		for _, want := range c.want {
			if !strings.Contains(got, want) || strings.Contains(got, c.not) {
				t.Errorf("%s: %q, want %q, and not %q", name, got, want, c.not)
			}
		}
	}
}

// A body that does not arrive in time is refused, and its connection ends.
func TestSlowBodies(t *testing.T) {
	t.Parallel()
	h := build(t, open{}, func(s *frontdoor.Server) { s.SetReadTimeout(200 * time.Millisecond) })
	got := h.speak(t, 0, "POST /new/echo HTTP/1.1\r\nHost: a\r\nContent-Length: 500\r\n\r\n", "h", "e")
	if !strings.HasPrefix(got, "HTTP/1.1 400 ") || !strings.Contains(got, "[request.malformed]") || !strings.Contains(got, "Connection: close") {
		t.Errorf("%q", got)
	}
	if last := h.counter.last(); last != "new/Enroll 400" {
		t.Errorf("the request counts as %s", last)
	}
}

// Plain HTTP on the port, and requests with malformed or long headers, get an answer and end their connection.
func TestMalformedRequests(t *testing.T) {
	t.Parallel()
	h := build(t, open{})
	for name, text := range map[string]string{
		"no HTTP":        "hello\r\n\r\n",
		"long headers":   "GET /new/echo HTTP/1.1\r\nHost: a\r\nX: " + strings.Repeat("x", 40<<10) + "\r\n\r\n",
		"two lengths":    "POST /new/echo HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
		"HTTP/2 preface": "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
	} {
		d := tls.Dialer{Config: &tls.Config{InsecureSkipVerify: true}}
		c, err := d.DialContext(t.Context(), "tcp", h.address)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(c, text); err != nil {
			t.Fatal(err)
		}
		r, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if r.StatusCode < 400 || r.StatusCode > 505 {
			t.Errorf("%s: %s", name, r.Status)
		}
		_ = r.Body.Close()
		_ = c.Close()
	}
}
