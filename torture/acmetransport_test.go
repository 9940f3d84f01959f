package torture

import (
	"bytes"
	"context"
	crand "crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/big"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// acmeTransport sends the requests of ACME clients to a server that is running. It knows which process issued a nonce, and at
// random sends a request twice, the second time to any server. A request with a nonce that was used must fail, and so must
// one with a nonce of another process, unless the servers share their nonces.
type acmeTransport struct {
	clients *clients
	faultf  func(format string, args ...any)
	stale   atomic.Int64 // requests that were refused because an earlier process had issued their nonce
	shared  bool         // whether each server accepts the nonces of the others
	crashes atomic.Int64 // begins and ends of crashes of the database, in which it forgets the nonces that were used

	mu     sync.Mutex
	bases  map[*process]*http.Transport // by process: connects to it
	nonces map[string]*process
}

func newACMETransport(c *clients, faultf func(string, ...any)) *acmeTransport {
	return &acmeTransport{clients: c, faultf: faultf, bases: map[*process]*http.Transport{}, nonces: map[string]*process{}}
}

// to returns a transport that connects to a process.
func (a *acmeTransport) to(p *process) *http.Transport {
	a.mu.Lock()
	defer a.mu.Unlock()
	if base := a.bases[p]; base != nil {
		return base
	}
	running := a.clients.running()
	for other, base := range a.bases {
		if !slices.Contains(running, other) {
			base.CloseIdleConnections()
			delete(a.bases, other)
		}
	}
	roots := x509.NewCertPool()
	roots.AddCert(a.clients.testCA.root)
	base := &http.Transport{
		TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: roots, ServerName: "localhost"},
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, network, p.https)
		},
	}
	a.bases[p] = base
	return base
}

// RoundTrip implements [http.RoundTripper].
func (a *acmeTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	p, err := a.clients.waitForServer(r.Context())
	if err != nil {
		return nil, err
	}
	var body []byte
	if r.Body != nil {
		body, err = io.ReadAll(r.Body)
		if err := errors.Join(err, r.Body.Close()); err != nil {
			return nil, err
		}
	}
	nonce := nonceIn(body)
	issuer, crashes := a.spend(nonce), a.crashes.Load()
	resp, err := a.send(r, p, body)
	if err != nil {
		return nil, err
	}
	if nonce != "" && issuer != p && !a.shared {
		a.check(r, resp, "the nonce of an earlier server")
		a.stale.Add(1)
	}
	isUsed, err := spendsNonce(resp)
	if err != nil {
		return nil, err
	}
	if nonce != "" && rand.IntN(20) == 0 {
		if all := a.clients.running(); len(all) > 0 {
			p = all[rand.IntN(len(all))]
		}
		if again, err := a.send(r, p, body); err == nil {
			if isUsed && crashes%2 == 0 && crashes == a.crashes.Load() {
				a.check(r, again, "a nonce that was used")
			}
			_ = again.Body.Close() // not read
		}
	}
	return resp, nil
}

// spendsNonce reports whether a server has recorded the nonce of a request, by its response. A server whose clock is fast
// refuses the nonce of another one as expired, and does not record it. A server that fails may not have recorded it.
func spendsNonce(resp *http.Response) (bool, error) {
	if resp.StatusCode < http.StatusBadRequest || resp.StatusCode >= http.StatusInternalServerError {
		return resp.StatusCode < http.StatusBadRequest, nil
	}
	problem, err := io.ReadAll(resp.Body)
	if err := errors.Join(err, resp.Body.Close()); err != nil {
		return false, err
	}
	resp.Body = io.NopCloser(bytes.NewReader(problem))
	return !bytes.Contains(problem, []byte("urn:ietf:params:acme:error:badNonce")), nil
}

// check records a fault if a request with a nonce that is not valid succeeded.
func (a *acmeTransport) check(r *http.Request, resp *http.Response, nonce string) {
	if resp.StatusCode < http.StatusBadRequest {
		a.faultf("%s succeeded with %s: %s", r.URL.Path, nonce, resp.Status)
	}
}

func (a *acmeTransport) send(r *http.Request, p *process, body []byte) (*http.Response, error) {
	sent := r.Clone(r.Context())
	sent.Body, sent.GetBody = io.NopCloser(bytes.NewReader(body)), nil // without GetBody, the transport repeats nothing
	if len(body) == 0 {
		sent.Body = http.NoBody
	}
	resp, err := a.to(p).RoundTrip(sent)
	if err == nil {
		a.mu.Lock()
		a.nonces[resp.Header.Get("Replay-Nonce")] = p
		a.mu.Unlock()
	}
	return resp, err
}

// spend returns the process that issued a nonce, and forgets the nonce.
func (a *acmeTransport) spend(nonce string) *process {
	a.mu.Lock()
	defer a.mu.Unlock()
	p := a.nonces[nonce]
	delete(a.nonces, nonce)
	return p
}

// nonceIn returns the nonce in a signed request, or "" if there is none.
func nonceIn(body []byte) string {
	var jws struct{ Protected string }
	var header struct{ Nonce string }
	if json.Unmarshal(body, &jws) != nil {
		return ""
	}
	text, err := base64.RawURLEncoding.DecodeString(jws.Protected)
	if err != nil || json.Unmarshal(text, &header) != nil {
		return ""
	}
	return header.Nonce
}

// TestReusedNoncesAreFound checks that acmeTransport finds a server that accepts nonces again, and those of other
// servers.
func TestReusedNoncesAreFound(t *testing.T) {
	key := newKey()
	template := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{"localhost"}, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(crand.Reader, template, template, key.Public(), key)
	must(t, err)
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Replay-Nonce", "again")
	}))
	s.TLS = &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}
	s.StartTLS()
	defer s.Close()
	clients := newClients(&testCA{root: parse(t, der)})
	clients.connect(&process{https: s.Listener.Addr().String()})
	var faults []string
	a := newACMETransport(clients, func(format string, args ...any) { faults = append(faults, fmt.Sprintf(format, args...)) })
	post := func(nonce string) {
		body := `{"protected":"` + base64.RawURLEncoding.EncodeToString([]byte(`{"nonce":"`+nonce+`"}`)) + `"}`
		resp, err := (&http.Client{Transport: a}).Post(httpsURL, "application/jose+json", strings.NewReader(body))
		must(t, err)
		must(t, resp.Body.Close())
	}
	post("foreign")
	if len(faults) == 0 || !strings.Contains(faults[0], "the nonce of an earlier server") || a.stale.Load() != 1 {
		t.Errorf("a nonce of another server: %q", faults)
	}
	for faults = nil; len(faults) == 0; {
		post("again") // at random, it is sent twice
	}
	if !strings.Contains(faults[0], "a nonce that was used") {
		t.Errorf("a nonce that was used: %q", faults)
	}
}
