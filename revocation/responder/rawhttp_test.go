package responder_test

import (
	"bufio"
	"bytes"
	"crypto"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/brevet-pki/brevet/revocation/internal/revtest"
	"github.com/brevet-pki/brevet/revocation/ocsp"
	"github.com/brevet-pki/brevet/revocation/responder"
)

// A rawServer is a fixture behind a real HTTP server, to which a test sends raw bytes.
type rawServer struct {
	*fixture
	server *httptest.Server
	plain  []byte // an OCSP request in DER
}

func newRawServer(t *testing.T, edit func(*http.Server)) *rawServer {
	t.Helper()
	s := newFixture(t, responder.Config{}, revtest.Key(t, "p256"))
	leaf, _ := s.issue(t)
	w := &rawServer{s, httptest.NewUnstartedServer(s.handler), request(t, leaf, s.ca.Certificate, crypto.SHA1)}
	w.server.Config.MaxHeaderBytes = 16 << 10
	if edit != nil {
		edit(w.server.Config)
	}
	w.server.Start()
	t.Cleanup(w.server.Close)
	return w
}

// exchange sends text on one connection and closes the connection for writing. It returns the responses up to the end
// of the connection.
func (w *rawServer) exchange(t *testing.T, text string) (responses []*http.Response, bodies [][]byte) {
	t.Helper()
	c, err := net.Dial("tcp", w.server.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	wrote := make(chan struct{})
	go func() {
		defer close(wrote)
		_, _ = io.WriteString(c, text)    // fails if the server closes the connection before it has read everything
		_ = c.(*net.TCPConn).CloseWrite() // the server then reads the end of the input
	}()
	in := bufio.NewReader(c)
	for {
		r, err := http.ReadResponse(in, nil)
		if err != nil {
			break
		}
		body, _ := io.ReadAll(r.Body)
		_ = r.Body.Close()
		responses, bodies = append(responses, r), append(bodies, body)
	}
	<-wrote
	return responses, bodies
}

// post returns the raw text of a POST request.
func post(headers string, body []byte) string {
	return "POST /ocsp HTTP/1.1\r\nHost: va\r\nContent-Type: application/ocsp-request\r\n" + headers + "\r\n" + string(body)
}

func chunked(body []byte) string { return fmt.Sprintf("%x\r\n%s\r\n0\r\n\r\n", len(body), body) }

// TestAmbiguousRequestsEndTheConnection sends requests that are each followed by a second request. If all parsers agree
// where the first request ends, the second one must get a response. If a proxy could treat the second request as part
// of the first, the server must close the connection instead.
func TestAmbiguousRequestsEndTheConnection(t *testing.T) {
	w := newRawServer(t, nil)
	length := fmt.Sprintf("Content-Length: %d\r\n", len(w.plain))
	get := "GET " + pathOf(w.plain) + " HTTP/1.1\r\nHost: va\r\n"
	second := get + "\r\n"
	for name, c := range map[string]struct {
		text  string
		codes []int
	}{
		"two in a row":                   {post(length, w.plain) + second, []int{200, 200}},
		"both lengths":                   {post(length+"Transfer-Encoding: chunked\r\n", nil) + chunked(w.plain) + second, []int{200}},
		"chunks":                         {post("Transfer-Encoding: chunked\r\n", nil) + chunked(w.plain) + second, []int{200}},
		"two lengths":                    {post(length+"Content-Length: 5\r\n", w.plain) + second, []int{400}},
		"a list of lengths":              {post("Content-Length: 5, 6\r\n", w.plain) + second, []int{400}},
		"a length with a sign":           {post(fmt.Sprintf("Content-Length: +%d\r\n", len(w.plain)), w.plain) + second, []int{400}},
		"a length in hexadecimal":        {post("Content-Length: 0x57\r\n", w.plain) + second, []int{400}},
		"a negative length":              {post("Content-Length: -1\r\n", w.plain) + second, []int{400}},
		"another coding":                 {post("Transfer-Encoding: gzip\r\n", w.plain) + second, []int{501}},
		"chunks inside another coding":   {post("Transfer-Encoding: gzip, chunked\r\n", nil) + chunked(w.plain) + second, []int{501}},
		"a tab before the coding":        {post("Transfer-Encoding:\tchunked\r\n", nil) + chunked(w.plain) + second, []int{200}},
		"a space before the colon":       {post("Transfer-Encoding : chunked\r\n"+length, w.plain) + second, []int{400}},
		"a folded header":                {post("Transfer-Encoding:\r\n chunked\r\n"+length, nil) + chunked(w.plain) + second, []int{200}},
		"a chunk's size that is none":    {post("Transfer-Encoding: chunked\r\n", nil) + "zz\r\n" + second, []int{400}},
		"a chunk that is cut off":        {post("Transfer-Encoding: chunked\r\n", nil) + "57\r\n0", []int{400}},
		"a body that is cut off":         {post("Content-Length: 100\r\n", w.plain[:20]), []int{400}},
		"GET with a body":                {get + length + "\r\n" + string(w.plain) + second, []int{200}},
		"GET with a body in chunks":      {get + "Transfer-Encoding: chunked\r\n\r\n" + chunked(w.plain) + second, []int{200}},
		"HTTP/1.0 and no host":           {"GET " + pathOf(w.plain) + " HTTP/1.0\r\n\r\n" + second, []int{200}},
		"HTTP/0.9":                       {"GET " + pathOf(w.plain) + "\r\n" + second, []int{400}},
		"TLS":                            {"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x03\r\n\r\n" + second, []int{400}},
		"no host":                        {"GET " + pathOf(w.plain) + " HTTP/1.1\r\n\r\n" + second, []int{400}},
		"two hosts":                      {get + "Host: other\r\n\r\n" + second, []int{400}},
		"HTTP/2 without asking":          {"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + second, []int{404}},
		"a line feed in the target":      {"GET /ocsp/MA\n HTTP/1.1\r\nHost: va\r\n\r\n" + second, []int{400}},
		"another server in the target":   {"GET http://other" + pathOf(w.plain) + " HTTP/1.1\r\nHost: va\r\n\r\n" + second, []int{200, 200}},
		"a byte that no header has":      {get + "X: a\x00b\r\n\r\n" + second, []int{400}},
		"ten thousand headers":           {get + strings.Repeat("X: y\r\n", 10000) + "\r\n" + second, []int{431}},
		"a target over the bound":        {"GET /ocsp/" + strings.Repeat("A", 1<<20) + " HTTP/1.1\r\n\r\n", []int{431}},
		"a body over the bound":          {post(fmt.Sprintf("Content-Length: %d\r\n", 1<<20), make([]byte, 1<<20)) + second, []int{413}},
		"a body over the bound, chunked": {post("Transfer-Encoding: chunked\r\n", nil) + chunked(make([]byte, 1<<20)) + second, []int{413}},
		"a body that never comes":        {post("Content-Length: 9223372036854775807\r\n", nil), []int{413}},
		"an expectation":                 {post(length+"Expect: 100-continue\r\n", w.plain) + second, []int{100, 200, 200}},
	} {
		responses, bodies := w.exchange(t, c.text)
		var codes []int
		for n, r := range responses {
			codes = append(codes, r.StatusCode)
			if r.StatusCode == http.StatusOK && len(bodies[n]) < 100 {
				t.Errorf("%s: response %d is %x", name, n, bodies[n])
			}
		}
		if fmt.Sprint(codes) != fmt.Sprint(c.codes) {
			t.Errorf("%s: HTTP %v, want %v", name, codes, c.codes)
		}
	}
}

// TestTenThousandCertIDsAreTooLarge sends one request with ten thousand CertIDs.
func TestTenThousandCertIDsAreTooLarge(t *testing.T) {
	w := newRawServer(t, nil)
	many := composeRequest(t, 32, bytes.Repeat(singleRequest(t, w.plain), 10_000))
	responses, _ := w.exchange(t, post(fmt.Sprintf("Content-Length: %d\r\n", len(many)), many))
	if len(responses) != 1 || responses[0].StatusCode != http.StatusRequestEntityTooLarge {
		t.Errorf("POST of %d bytes: %v, want 413", len(many), responses)
	}
	responses, _ = w.exchange(t, "GET /ocsp/"+base64.RawURLEncoding.EncodeToString(many)+" HTTP/1.1\r\nHost: va\r\n\r\n")
	if len(responses) != 1 || responses[0].StatusCode != http.StatusRequestHeaderFieldsTooLarge {
		t.Errorf("GET of %d bytes: %v, want 431", len(many), responses)
	}
}

// TestUnparsableRequestsGetMalformedRequest sends requests that cannot be parsed, by GET and POST. The responses must
// be malformedRequest.
func TestUnparsableRequestsGetMalformedRequest(t *testing.T) {
	w := newRawServer(t, nil)
	short := func(n int) []byte { return append([]byte{0x30, byte(n)}, w.plain[2:]...) }
	for name, der := range map[string][]byte{
		"truncated":              w.plain[:len(w.plain)-1],
		"a byte too many":        append(bytes.Clone(w.plain), 0),
		"an indefinite length":   append(append([]byte{0x30, 0x80}, w.plain[2:]...), 0, 0),
		"a non-minimal length":   append([]byte{0x30, 0x81, w.plain[1]}, w.plain[2:]...),
		"a length that is short": short(int(w.plain[1]) - 1),
		"a length that is long":  short(int(w.plain[1]) + 1),
		"nested without end":     bytes.Repeat([]byte{0x30, 0x80}, ocsp.MaxRequestSize/2),
		"seventeen CertIDs":      composeRequest(t, -1, bytes.Repeat(singleRequest(t, w.plain), 17)),
		"a nonce of 129":         composeRequest(t, 129, singleRequest(t, w.plain)),
		"no CertID":              composeRequest(t, -1),
	} {
		for method, text := range map[string]string{
			"POST": post(fmt.Sprintf("Content-Length: %d\r\n", len(der)), der),
			"GET":  "GET " + pathOf(der) + " HTTP/1.1\r\nHost: va\r\n\r\n",
		} {
			responses, bodies := w.exchange(t, text)
			if len(responses) != 1 || responses[0].StatusCode != http.StatusOK || !bytes.Equal(bodies[0], ocsp.MalformedRequest.DER()) ||
				responses[0].Header.Get("Cache-Control") != "no-store" {
				t.Errorf("%s by %s: %v, %x", name, method, responses, bodies)
			}
		}
	}
}

// TestSlowClientsAreDisconnected sends incomplete requests. The server's timeouts must close the connection.
func TestSlowClientsAreDisconnected(t *testing.T) {
	w := newRawServer(t, func(s *http.Server) {
		s.ReadHeaderTimeout, s.ReadTimeout, s.IdleTimeout = 20*time.Millisecond, 20*time.Millisecond, 20*time.Millisecond
	})
	for name, text := range map[string]string{
		"nothing":          "",
		"half a header":    "POST /ocsp HT",
		"no body":          post("Content-Length: 87\r\n", nil),
		"half a body":      post("Content-Length: 87\r\n", w.plain[:40]),
		"half a chunk":     post("Transfer-Encoding: chunked\r\n", nil) + "57\r\n0",
		"then no more":     post(fmt.Sprintf("Content-Length: %d\r\n", len(w.plain)), w.plain),
		"a get and a half": "GET " + pathOf(w.plain) + " HTTP/1.1\r\nHost: va\r\n\r\nGET /oc",
	} {
		c, err := net.Dial("tcp", w.server.Listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(c, text); err != nil {
			t.Fatal(err)
		}
		if err := c.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, c); errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%s: the server does not close the connection", name)
		}
		_ = c.Close()
	}
}
