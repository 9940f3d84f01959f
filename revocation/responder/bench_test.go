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

// A loadedResponder knows the statuses of many certificates, and has cached responses about some of them.
type loadedResponder struct {
	*fixture
	requests [][]byte
	size     int // size of a response
}

// newLoadedResponder issues no real certificates. Its requests are copies of one request with other serial numbers at
// their end.
func newLoadedResponder(b *testing.B, issued, requested int) *loadedResponder {
	b.Helper()
	s := &loadedResponder{fixture: newFixture(b, responder.Config{}, revtest.Key(b, "p256"))}
	leaf, _ := s.issue(b)
	sample := request(b, leaf, s.ca.Certificate, crypto.SHA1)
	for n := range issued {
		serial := revtest.Serial(b)
		s.Apply(pki.StatusChange{
			Ref: pki.CertRef{Issuer: s.ca.ID(), Serial: serial}, NotAfter: leaf.NotAfter, Status: pki.Status{State: pki.Good, Version: 1},
		})
		if n < requested {
			der := append(bytes.Clone(sample[:len(sample)-pki.SerialSize]), serial.Bytes()...)
			s.requests = append(s.requests, der)
			s.size = len(s.post(b, der))
		}
	}
	return s
}

// constantHandler responds with the same bytes to every request. It shows the minimum cost of HTTP.
func constantHandler(size int) http.Handler {
	body := make([]byte, size)
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/ocsp-response")
		_, _ = w.Write(body)
	})
}

// A nullWriter is an http.ResponseWriter that discards the body.
type nullWriter struct{ header http.Header }

func (w *nullWriter) Header() http.Header               { return w.header }
func (w *nullWriter) Write(b []byte) (int, error)       { return len(b), nil }
func (w *nullWriter) WriteString(s string) (int, error) { return len(s), nil }
func (w *nullWriter) WriteHeader(int)                   {}

// BenchmarkCachedResponse measures the handler without HTTP. Its only allocations are for the header of the response.
func BenchmarkCachedResponse(b *testing.B) {
	s := newLoadedResponder(b, 200_000, 50_000)
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

// BenchmarkCachedResponseOverHTTP compares the responder with constantHandler: by GET and POST, with and without
// keep-alive.
func BenchmarkCachedResponseOverHTTP(b *testing.B) {
	s := newLoadedResponder(b, 200_000, 50_000)
	for _, h := range []struct {
		name    string
		handler http.Handler
	}{{"bare", constantHandler(s.size)}, {"responder", s.handler}} {
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
							if err := requestStatus(client, method, server.URL, der); err != nil {
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

// processorTime returns the CPU time of this process, which runs both server and client. Unlike wall time, it does not
// depend on other processes.
func processorTime(b *testing.B) time.Duration {
	b.Helper()
	var used unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &used); err != nil {
		b.Fatal(err)
	}
	return time.Duration(used.Utime.Nano() + used.Stime.Nano())
}

func requestStatus(client *http.Client, method, url string, der []byte) error {
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
		return fmt.Errorf("HTTP %d with %d bytes: %w", answer.StatusCode, n, err)
	}
	return nil
}
