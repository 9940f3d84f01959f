package responder_test

import (
	"bytes"
	"crypto"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/revocation/internal/revtest"
	"github.com/brevet-pki/brevet/revocation/responder"
)

// An asked responder has issued some certificates and was asked about fewer of them.
type askedResponder struct {
	*scene
	requests [][]byte
	size     int // of an answer
}

// newAsked issues without signing: requests differ in the serial number alone, which is their end.
func newAsked(b *testing.B, issued, asked int) *askedResponder {
	b.Helper()
	s := &askedResponder{scene: newScene(b, responder.Config{}, revtest.Key(b, "p256"))}
	leaf, _ := s.issue(b)
	sample := request(b, leaf, s.ca.Certificate, crypto.SHA1)
	for n := range issued {
		serial := revtest.Serial(b)
		s.Apply(pki.StatusChange{
			Ref: pki.CertRef{Issuer: s.ca.ID(), Serial: serial}, NotAfter: leaf.NotAfter, Status: pki.Status{State: pki.Good, Version: 1},
		})
		if n < asked {
			der := append(bytes.Clone(sample[:len(sample)-pki.SerialSize]), serial.Bytes()...)
			s.requests = append(s.requests, der)
			s.size = len(s.post(b, der))
		}
	}
	return s
}

// bare answers every request with the same octets: what is left when nothing is asked.
func bare(size int) http.Handler {
	body := make([]byte, size)
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/ocsp-response")
		_, _ = w.Write(body)
	})
}

// A nullWriter is an http.ResponseWriter that keeps nothing.
type nullWriter struct{ header http.Header }

func (w *nullWriter) Header() http.Header               { return w.header }
func (w *nullWriter) Write(b []byte) (int, error)       { return len(b), nil }
func (w *nullWriter) WriteString(s string) (int, error) { return len(s), nil }
func (w *nullWriter) WriteHeader(int)                   {}

// BenchmarkAnswerFromMemory is the handler alone: what it allocates is the response's header.
func BenchmarkAnswerFromMemory(b *testing.B) {
	s := newAsked(b, 200_000, 50_000)
	for _, method := range []string{http.MethodGet, http.MethodPost} {
		b.Run(method, func(b *testing.B) {
			questions := make([]*http.Request, len(s.requests))
			bodies := make([]bytes.Reader, len(s.requests))
			for n, der := range s.requests {
				path := "/ocsp"
				if method == http.MethodGet {
					path = pathOf(der)
				}
				questions[n] = httptest.NewRequest(method, path, nil)
				questions[n].Header.Set("Content-Type", "application/ocsp-request")
				if method == http.MethodPost {
					questions[n].ContentLength, questions[n].Body = int64(len(der)), io.NopCloser(&bodies[n])
				}
			}
			w := &nullWriter{http.Header{}}
			b.ReportAllocs()
			for n := 0; b.Loop(); n++ {
				at := n % len(questions)
				bodies[at].Reset(s.requests[at])
				clear(w.header)
				s.handler.ServeHTTP(w, questions[at])
			}
		})
	}
}

// BenchmarkAnswerOverHTTP holds the responder against a bare handler: by both methods, and with and without keep-alive.
func BenchmarkAnswerOverHTTP(b *testing.B) {
	s := newAsked(b, 200_000, 50_000)
	for _, h := range []struct {
		name    string
		handler http.Handler
	}{{"bare", bare(s.size)}, {"responder", s.handler}} {
		server := httptest.NewServer(h.handler)
		for _, method := range []string{http.MethodGet, http.MethodPost} {
			for _, keep := range []bool{true, false} {
				b.Run(fmt.Sprintf("%s/keepalive=%v/%s", method, keep, h.name), func(b *testing.B) {
					client := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: !keep, MaxIdleConnsPerHost: 64}}
					defer client.CloseIdleConnections()
					var asked atomic.Int64
					before := processorTime(b)
					defer func() { b.ReportMetric(float64(processorTime(b)-before)/float64(b.N), "cpu-ns/op") }()
					b.RunParallel(func(p *testing.PB) {
						for p.Next() {
							der := s.requests[int(asked.Add(1))%len(s.requests)]
							if err := askOver(client, method, server.URL, der); err != nil {
								b.Error(err)
								return
							}
						}
					})
				})
			}
		}
		server.Close()
	}
}

// processorTime is what the process, server and client alike, has computed for. It says more than the clock where others
// compute too.
func processorTime(b *testing.B) time.Duration {
	b.Helper()
	var used unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &used); err != nil {
		b.Fatal(err)
	}
	return time.Duration(used.Utime.Nano() + used.Stime.Nano())
}

func askOver(client *http.Client, method, url string, der []byte) error {
	var answer *http.Response
	var err error
	if method == http.MethodGet {
		answer, err = client.Get(url + pathOf(der))
	} else {
		answer, err = client.Post(url+"/ocsp", "application/ocsp-request", bytes.NewReader(der))
	}
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	if n, err := io.Copy(io.Discard, answer.Body); err != nil || answer.StatusCode != http.StatusOK || n < 100 {
		return fmt.Errorf("HTTP %d with %d octets: %w", answer.StatusCode, n, err)
	}
	return nil
}
