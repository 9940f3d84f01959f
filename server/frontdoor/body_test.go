package frontdoor_test

import (
	"crypto/tls"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"
)

// A client that sends its body slowly gets the response, although the response does not depend on the body and ends the
// connection.
func TestRefusedBodies(t *testing.T) {
	t.Parallel()
	h := build(t, open{})
	for name, c := range map[string]struct{ request, status string }{
		"too large":                   {"POST /new/echo HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 30000\r\n\r\n", "HTTP/1.1 413 "},
		"too large, HTTP/1.0":         {"POST /new/echo HTTP/1.0\r\nContent-Length: 30000\r\n\r\n", "HTTP/1.0 413 "},
		"without a route":             {"POST /elsewhere HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 30000\r\n\r\n", "HTTP/1.1 404 "},
		"without the right to send":   {"POST /new/own HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 30000\r\n\r\n", "HTTP/1.1 401 "},
		"too large, not to be closed": {"POST /new/echo HTTP/1.1\r\nHost: a\r\nContent-Length: 30000\r\n\r\n", "HTTP/1.1 413 "},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			parts := []string{c.request}
			for range 30 {
				parts = append(parts, strings.Repeat("x", 1000))
			}
			if !strings.Contains(c.request, "close") {
				parts = append(parts, "GET /new/echo HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
			}
			if got := h.speak(t, time.Millisecond, parts...); !strings.HasPrefix(got, c.status) {
				t.Errorf("%q, want %s", got, c.status)
			}
		})
	}
}

// A request that asks for the status 100 and has no body leaves its connection usable.
func TestExpectWithoutBody(t *testing.T) {
	t.Parallel()
	h, c := build(t, open{}), client(nil)
	c.Transport.(*http.Transport).DisableKeepAlives = false
	defer c.CloseIdleConnections()
	for n := range 20 {
		q, err := http.NewRequestWithContext(t.Context(), http.MethodGet, h.url+"/new/echo", http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		q.Header.Set("Expect", "100-continue")
		r, err := c.Do(q)
		if err != nil {
			t.Fatal(err)
		}
		_, err = io.Copy(io.Discard, r.Body)
		if err := errors.Join(err, r.Body.Close()); err != nil || r.StatusCode != http.StatusOK {
			t.Fatalf("request %d of the connection: %s, %v", n+1, r.Status, err)
		}
	}
	h.counter.mu.Lock()
	defer h.counter.mu.Unlock()
	if n := h.counter.shaken[true]; n != 1 {
		t.Errorf("there were %d connections", n)
	}
}

// speak sends parts on a connection, each after a pause, and returns what the server sends until it ends the connection.
func (h *house) speak(t *testing.T, pause time.Duration, parts ...string) string {
	t.Helper()
	d := tls.Dialer{Config: &tls.Config{InsecureSkipVerify: true}}
	c, err := d.DialContext(t.Context(), "tcp", h.address)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil { // less than the server's timeout for a body
		t.Fatal(err)
	}
	for _, part := range parts {
		time.Sleep(pause)
		if _, err := io.WriteString(c, part); err != nil {
			t.Fatal(err)
		}
	}
	answer, err := io.ReadAll(c)
	if err != nil {
		t.Errorf("%.40q: %v after %q", parts[0], err, answer)
	}
	return string(answer)
}
