package enroll

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"net/url"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/brevet-pki/brevet/pki"
)

func TestWatchersDoNotDelayEachOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := newTestCA(t)
		pairs := []*Pair{ca.pairFor(t, "device/1"), ca.pairFor(t, "device/1"), ca.pairFor(t, "device/1"), ca.pairFor(t, "device/1")}
		var h holder
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		var fast, slow, late []*Pair
		proceed := make(chan struct{})
		go h.Watch(ctx, func(p *Pair) { fast = append(fast, p) })
		go h.Watch(ctx, func(p *Pair) { slow = append(slow, p); <-proceed })
		synctest.Wait()
		if len(fast)+len(slow) != 0 {
			t.Fatal("a watcher was called before there was a pair")
		}
		for _, p := range pairs[:3] {
			h.use(p)
			synctest.Wait()
		}
		go h.Watch(ctx, func(p *Pair) { late = append(late, p) })
		close(proceed)
		synctest.Wait()
		h.use(pairs[3])
		synctest.Wait()
		for name, c := range map[string]struct{ got, want []*Pair }{
			"a fast watcher gets every pair":                  {fast, pairs},
			"a slow watcher gets the last of those it missed": {slow, []*Pair{pairs[0], pairs[2], pairs[3]}},
			"a late watcher gets the pair in use":             {late, pairs[2:]},
		} {
			if !samePairs(c.got, c.want) {
				t.Errorf("%s: got %d, want %d", name, len(c.got), len(c.want))
			}
		}
		cancel()
		synctest.Wait() // fails the test if a watcher is still running
	})
}

func samePairs(a, b []*Pair) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i] != b[i] {
			return false
		}
	}
	return true
}

func TestPeersVerifyEachOther(t *testing.T) {
	ca, other := newTestCA(t), newTestCA(t)
	server := ca.pairFor(t, "workload/server")
	anyone := func(pki.SPIFFEID) error { return nil }
	only := func(path string) func(pki.SPIFFEID) error {
		return func(id pki.SPIFFEID) error {
			if id.Path() != path {
				return errors.New("not authorized: " + id.Path())
			}
			return nil
		}
	}
	client := ca.pairFor(t, "workload/client")
	custom := func(change func(*x509.Certificate)) tls.Certificate {
		template := leafTemplate("spiffe://"+client.ID().TrustDomain()+"/workload/client", time.Now().Add(-time.Hour), time.Now().Add(time.Hour))
		template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
		change(template)
		return ca.serverCertificate(t, template)
	}
	for _, c := range []struct {
		name      string
		present   *tls.Certificate // certificate that the client presents, or nil
		authorize func(pki.SPIFFEID) error
		want      string // text in the server's error; empty if the handshake succeeds
	}{
		{"an authorized member", client.TLS(), only("workload/client"), ""},
		{"a member that is not authorized", client.TLS(), only("workload/other"), "not authorized: workload/client"},
		{"no function authorizes", client.TLS(), nil, "no function authorizes"},
		{"a certificate of another CA", other.pairFor(t, "workload/client").TLS(), anyone, "verify the peer's certificate"},
		{"no certificate", nil, anyone, "certificate"},
		{"an expired certificate", ptr(custom(func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) })), anyone, "expired"},
		{"a certificate for servers only", ptr(custom(func(c *x509.Certificate) {
			c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
		})), anyone, "usage"},
		{"two identities", ptr(custom(func(c *x509.Certificate) {
			c.URIs = append(c.URIs, &url.URL{Scheme: "spiffe", Host: client.ID().TrustDomain(), Path: "/workload/second"})
		})), anyone, "it has 2 URIs"},
		{"another trust domain under the same root", ptr(custom(func(c *x509.Certificate) {
			c.URIs = []*url.URL{{Scheme: "spiffe", Host: "elsewhere.example", Path: "/workload/client"}}
		})), anyone, "not a member of the trust domain"},
	} {
		t.Run(c.name, func(t *testing.T) {
			config := PeerClientTLS(func() *Pair { return client }, anyone)
			config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
				if c.present == nil {
					return &tls.Certificate{}, nil
				}
				return c.present, nil
			}
			serverErr, _ := handshake(t, PeerServerTLS(func() *Pair { return server }, c.authorize), config)
			if c.want == "" && serverErr != nil || c.want != "" && (serverErr == nil || !strings.Contains(serverErr.Error(), c.want)) {
				t.Errorf("the server's handshake ended with %v, want %q", serverErr, c.want)
			}
		})
	}
	_, clientErr := handshake(t, PeerServerTLS(func() *Pair { return server }, anyone), PeerClientTLS(func() *Pair { return client }, only("workload/other")))
	if clientErr == nil || !strings.Contains(clientErr.Error(), "not authorized: workload/server") {
		t.Errorf("the client's handshake ended with %v", clientErr)
	}
	none := func() *Pair { return nil }
	if serverErr, _ := handshake(t, PeerServerTLS(none, anyone), PeerClientTLS(func() *Pair { return client }, anyone)); !errors.Is(serverErr, ErrNoCredential) {
		t.Errorf("without a credential the server's handshake ended with %v", serverErr)
	}
}

// handshake performs one TLS handshake and returns the error of each side.
func handshake(t *testing.T, server, client *tls.Config) (serverErr, clientErr error) {
	t.Helper()
	a, b := net.Pipe()
	done := make(chan error, 1)
	go func() {
		s := tls.Server(a, server)
		done <- s.HandshakeContext(t.Context())
		_ = s.Close()
	}()
	c := tls.Client(b, client)
	clientErr = c.HandshakeContext(t.Context())
	if clientErr == nil {
		_, _ = c.Read(make([]byte, 1)) // waits until the server has closed the connection or sent an alert
	}
	_ = b.Close()
	return <-done, clientErr
}

func ptr[T any](v T) *T { return &v }

func TestSPIFFESources(t *testing.T) {
	ca := newTestCA(t)
	var h holder
	if _, err := h.GetX509SVID(); !errors.Is(err, ErrNoCredential) {
		t.Errorf("GetX509SVID without a credential: %v", err)
	}
	pair := ca.pairFor(t, "device/1")
	h.use(pair)
	svid, err := h.GetX509SVID()
	if err != nil {
		t.Fatal(err)
	}
	id, _, err := x509svid.Verify(svid.Certificates, &h) // go-spiffe verifies the chain against the source's bundle
	if err != nil || id.String() != pair.ID().String() || svid.ID != id {
		t.Errorf("go-spiffe read %s, %v", id, err)
	}
	if _, err := h.GetX509BundleForTrustDomain(spiffeid.RequireTrustDomainFromString("elsewhere.example")); err == nil {
		t.Error("there are roots for another trust domain")
	}
}
