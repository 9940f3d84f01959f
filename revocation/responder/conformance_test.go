package responder_test

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/revocation"
	"github.com/brevet-pki/brevet/revocation/crl"
	"github.com/brevet-pki/brevet/revocation/internal/revtest"
	"github.com/brevet-pki/brevet/revocation/responder"
)

// A testServer is a fixture behind a real HTTP server, with an authority that revokes certificates and an updater that
// signs CRLs.
type testServer struct {
	*fixture
	authority *revocation.Authority
	updater   *crl.Updater
	url       string
	caFile    string // certificate of the issuing CA
	chainFile string // certificates of the issuing CA and its root
	methods   methodLog
}

// A methodLog records the HTTP methods of OCSP requests.
type methodLog struct {
	mu  sync.Mutex
	all map[string]bool
}

func (m *methodLog) record(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		if strings.HasPrefix(q.URL.Path, "/ocsp") {
			m.mu.Lock()
			m.all[q.Method] = true
			m.mu.Unlock()
		}
		next.ServeHTTP(w, q)
	})
}

// want compares the recorded methods with want, in sorted order, and clears them.
func (m *methodLog) want(t *testing.T, who, want string) {
	t.Helper()
	m.mu.Lock()
	defer m.mu.Unlock()
	if got := strings.Join(slices.Sorted(maps.Keys(m.all)), " "); got != want {
		t.Errorf("%s used the methods %q, want %q", who, got, want)
	}
	clear(m.all)
}

func newTestServer(t *testing.T, keyKind string) *testServer {
	t.Helper()
	s := &testServer{fixture: newFixture(t, responder.Config{Validity: time.Hour}, revtest.Key(t, keyKind))}
	var err error
	s.updater, err = crl.New(t.Context(), crl.Config{
		Issuers: []crl.Issuer{{Certificate: s.ca.Certificate, Signer: s.ca.Key}},
		Store:   s.book, Publisher: s.Responder, Directory: t.TempDir(), Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	s.authority, err = revocation.New(revocation.Config{Store: s.book, Observer: s.Responder, CRLs: s.updater, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	s.methods.all = map[string]bool{}
	server := httptest.NewServer(s.methods.record(s.handler))
	t.Cleanup(server.Close)
	s.url = server.URL
	s.caFile, s.chainFile = revtest.PEMFile(t, s.ca.Certificate), revtest.PEMFile(t, s.ca.Certificate, s.root.Certificate)
	return s
}

func (s *testServer) revoke(t *testing.T, ref pki.CertRef, reason pki.Reason) time.Time {
	t.Helper()
	changes, err := s.authority.Apply(t.Context(), revocation.Change{
		Action: revocation.Revoke, Reason: reason, Certificate: ref, Actor: pki.ActorCommand("test"), At: s.clock.now().Add(-time.Hour),
	})
	if err != nil || len(changes.Changed) != 1 {
		t.Fatalf("revoke: %v, %v", changes, err)
	}
	return changes.Changed[0].Status.RevokedAt
}

// openssl runs openssl ocsp, which sends a POST. It checks that OpenSSL accepts the response.
func (s *testServer) openssl(t *testing.T, args ...string) string {
	t.Helper()
	out := revtest.MustTool(t, "openssl", append([]string{"ocsp", "-url", s.url + "/ocsp", "-issuer", s.caFile, "-CAfile", s.chainFile}, args...)...)
	if !strings.Contains(out, "Response verify OK") || strings.Contains(out, "WARNING") {
		t.Errorf("openssl ocsp does not verify the response:\n%s", out)
	}
	return out
}

func TestOpenSSLReadsStatus(t *testing.T) {
	for _, kind := range []string{"p256", "p384", "rsa", "ed25519"} {
		t.Run(kind, func(t *testing.T) {
			s := newTestServer(t, kind)
			leaf, ref := s.issue(t)
			other, _ := s.issue(t)
			leafFile, otherFile := revtest.PEMFile(t, leaf), revtest.PEMFile(t, other)
			strangerFile := revtest.PEMFile(t, s.ca.Leaf(t, "stranger"))
			questions := [][]string{{"-no_nonce"}, {"-no_nonce", "-sha256"}, {"-nonce"}, {"-nonce", "-sha256"}}
			for _, args := range questions {
				if out := s.openssl(t, append(args, "-cert", leafFile)...); !strings.Contains(out, leafFile+": good") {
					t.Errorf("%v: want good:\n%s", args, out)
				}
			}
			at := s.revoke(t, ref, pki.KeyCompromise)
			for _, args := range questions {
				out := s.openssl(t, append(args, "-cert", leafFile, "-cert", otherFile, "-cert", strangerFile)...)
				for _, want := range []string{
					leafFile + ": revoked", otherFile + ": good", strangerFile + ": unknown", "Reason: keyCompromise",
					"Revocation Time: " + at.Format("Jan _2 15:04:05 2006 GMT"),
				} {
					if !strings.Contains(out, want) {
						t.Errorf("%v: want %q:\n%s", args, want, out)
					}
				}
				if out := s.openssl(t, append(args, "-cert", leafFile)...); !strings.Contains(out, leafFile+": revoked") {
					t.Errorf("%v: want revoked:\n%s", args, out)
				}
			}
			s.methods.want(t, "OpenSSL", "POST")
			s.wantByGET(t, leafFile, "revoked")
			s.wantByGET(t, otherFile, "good")
			s.wantByGET(t, strangerFile, "unknown")
		})
	}
}

// wantByGET sends one of OpenSSL's requests by GET, and lets OpenSSL verify the response.
func (s *testServer) wantByGET(t *testing.T, certFile, want string) {
	t.Helper()
	dir := t.TempDir()
	requestFile, responseFile := filepath.Join(dir, "request.der"), filepath.Join(dir, "response.der")
	revtest.MustTool(t, "openssl", "ocsp", "-no_nonce", "-issuer", s.caFile, "-cert", certFile, "-reqout", requestFile)
	der, err := os.ReadFile(requestFile)
	if err != nil {
		t.Fatal(err)
	}
	body := fetch(t, s.url+"/ocsp/"+base64.StdEncoding.EncodeToString(der))
	if err := os.WriteFile(responseFile, body, 0o600); err != nil {
		t.Fatal(err)
	}
	out := revtest.MustTool(t, "openssl", "ocsp", "-respin", responseFile, "-issuer", s.caFile, "-cert", certFile, "-CAfile", s.chainFile, "-no_nonce")
	if !strings.Contains(out, "Response verify OK") || !strings.Contains(out, certFile+": "+want) {
		t.Errorf("by GET: want %s:\n%s", want, out)
	}
}

func fetch(t *testing.T, url string) []byte {
	t.Helper()
	q, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	response, err := client.Do(q)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil || response.StatusCode != http.StatusOK {
		t.Fatalf("%s: HTTP %d, %v", url, response.StatusCode, err)
	}
	return body
}

func TestOpenSSLGetsRefusals(t *testing.T) {
	s := newTestServer(t, "p256")
	leaf, _ := s.issue(t)
	stranger := revtest.NewRoot(t, "Stranger", "p256")
	strangerFile := revtest.PEMFile(t, stranger.Certificate)
	leafFile := revtest.PEMFile(t, leaf)
	run := func(issuer string, more ...string) string {
		out, _ := revtest.Tool(t, "openssl", append([]string{"ocsp", "-url", s.url + "/ocsp", "-issuer", issuer, "-cert", leafFile, "-noverify"}, more...)...)
		return out
	}
	if out := run(strangerFile); !strings.Contains(out, "unauthorized (6)") {
		t.Errorf("another issuer:\n%s", out)
	}
	if out := run(s.caFile, "-issuer", strangerFile, "-cert", leafFile); !strings.Contains(out, "unauthorized (6)") {
		t.Errorf("two issuers in one request:\n%s", out)
	}
	var many []string
	for n := range 16 {
		many = append(many, "-serial", fmt.Sprint(n+1))
	}
	if out := run(s.caFile, many...); !strings.Contains(out, "malformedrequest (1)") {
		t.Errorf("seventeen certificates in one request:\n%s", out)
	}
	s.clock.advance(2 * time.Hour)
	if out := run(s.caFile); !strings.Contains(out, "trylater (3)") {
		t.Errorf("stale statuses:\n%s", out)
	}
}

func TestGnuTLSReadsStatus(t *testing.T) {
	s := newTestServer(t, "p256")
	leaf, ref := s.issue(t)
	leafFile := revtest.PEMFile(t, leaf)
	run := func(args ...string) string {
		out, _ := revtest.Tool(t, "ocsptool", append([]string{"--ask=" + s.url + "/ocsp", "--load-cert", leafFile, "--load-issuer", s.caFile,
			"--load-trust", s.chainFile}, args...)...)
		return out
	}
	for _, nonce := range []string{"--no-nonce", "--nonce"} {
		if out := run(nonce); !strings.Contains(out, "Certificate Status: good") || !strings.Contains(out, "Verifying OCSP Response: Success") {
			t.Errorf("ocsptool %s before the revocation:\n%s", nonce, out)
		}
	}
	s.revoke(t, ref, pki.CessationOfOperation)
	if out := run("--nonce"); !strings.Contains(out, "Certificate Status: revoked") {
		t.Errorf("ocsptool after the revocation:\n%s", out)
	}
	s.methods.want(t, "ocsptool", "POST")
}

func TestOpenSSLChecksThePublishedCRL(t *testing.T) {
	s := newTestServer(t, "p256")
	leaf, ref := s.issue(t)
	good, _ := s.issue(t)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.updater.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	s.revoke(t, ref, pki.PrivilegeWithdrawn)
	url := s.url + "/crl/" + s.ca.ID().Short() + ".crl"
	var der []byte
	for {
		if w := s.get(t, strings.TrimPrefix(url, s.url)); w.Code == http.StatusOK {
			list, err := x509.ParseRevocationList(w.Body.Bytes())
			if err != nil {
				t.Fatal(err)
			}
			if len(list.RevokedCertificateEntries) > 0 {
				der = fetch(t, url)
				break
			}
		}
		time.Sleep(10 * time.Millisecond)
	}
	crlFile := revtest.File(t, "crl.pem", pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der}))
	verify := func(leaf *x509.Certificate) (string, int) {
		return revtest.Tool(t, "openssl", "verify", "-crl_check", "-CAfile", s.chainFile, "-CRLfile", crlFile, revtest.PEMFile(t, leaf))
	}
	if out, code := verify(leaf); code != 2 || !strings.Contains(out, "error 23 at 0 depth lookup: certificate revoked") {
		t.Errorf("openssl verify of a revoked certificate exits %d:\n%s", code, out)
	}
	if out, code := verify(good); code != 0 {
		t.Errorf("openssl verify of a good certificate exits %d:\n%s", code, out)
	}
	if ca := fetch(t, s.url+"/ca/"+s.ca.ID().Short()+".cer"); !bytes.Equal(ca, s.ca.Certificate.Raw) {
		t.Error("the published CA certificate is not that of the CA")
	}
}
