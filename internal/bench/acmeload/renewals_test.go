package acmeload

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
)

const window = `{"suggestedWindow":{"start":"2026-01-01T00:00:00Z","end":"2026-01-02T00:00:00Z"}}`

// A Poller accepts responses with a window only, and detects each other one, also after the first.
func TestPollerVerifiesResponses(t *testing.T) {
	for name, c := range map[string]struct {
		first, later func(http.ResponseWriter)
		openError    string
		pollError    string
	}{
		"windows":                  {first: respond(200, window), later: respond(200, window)},
		"no window":                {first: respond(200, `{}`), openError: "no renewal window"},
		"an error":                 {first: respond(404, window), openError: "404"},
		"an error under load":      {first: respond(200, window), later: respond(429, window), pollError: "429"},
		"no length under load":     {first: respond(200, window), later: flush, pollError: "without a length"},
		"no connection any longer": {first: respond(200, window), later: abort, pollError: "EOF"},
	} {
		t.Run(name, func(t *testing.T) {
			var requests atomic.Int32
			s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
				if q.URL.Path != "/renewal-info/a.b" {
					t.Errorf("the path is %s", q.URL.Path)
				}
				if requests.Add(1) == 1 {
					c.first(w)
				} else {
					c.later(w)
				}
			}))
			defer s.Close()
			roots := x509.NewCertPool()
			roots.AddCert(s.Certificate())
			config := &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: roots, ServerName: "example.com"}
			pollers, err := OpenPollers(t.Context(), 1, config, []*Client{{issued: []string{s.URL + "/renewal-info/a.b"}}})
			t.Cleanup(func() {
				for _, p := range pollers {
					_ = p.Close()
				}
			})
			check(t, err, c.openError)
			if err != nil {
				return
			}
			for range 3 {
				if _, err = pollers[0].Poll(context.Background()); err != nil {
					break
				}
			}
			check(t, err, c.pollError)
		})
	}
}

func respond(status int, body string) func(http.ResponseWriter) {
	return func(w http.ResponseWriter) {
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body)
	}
}

func flush(w http.ResponseWriter) { _ = http.NewResponseController(w).Flush() }

func abort(http.ResponseWriter) { panic(http.ErrAbortHandler) }

func check(t *testing.T, err error, want string) {
	t.Helper()
	if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
		t.Errorf("error %v, want %q", err, want)
	}
}

func TestWithoutRenewalInfoThereAreNoPollers(t *testing.T) {
	if _, err := OpenPollers(t.Context(), 1, &tls.Config{MinVersion: tls.VersionTLS13}, []*Client{{}}); err == nil {
		t.Error("no error")
	}
}
