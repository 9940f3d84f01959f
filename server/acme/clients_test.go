package acme_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mholt/acmez/v3"
	zacme "github.com/mholt/acmez/v3/acme"
	xacme "golang.org/x/crypto/acme"
)

// solver responds to http-01 with the web server of a world.
type solver struct{ w *world }

func (s solver) Present(_ context.Context, c zacme.Challenge) error {
	s.w.set(c.HTTP01ResourcePath(), c.KeyAuthorization)
	return nil
}

func (s solver) CleanUp(context.Context, zacme.Challenge) error { return nil }

// spoiled replaces the first nonces in responses, so that the client gets badNonce, and counts these refusals.
type spoiled struct {
	base    http.RoundTripper
	left    atomic.Int32
	refused atomic.Int32
}

func (s *spoiled) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := s.base.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode == http.StatusBadRequest {
		s.refused.Add(1)
	}
	if nonce := resp.Header.Get("Replay-Nonce"); nonce != "" && s.left.Add(-1) >= 0 {
		resp.Header.Set("Replay-Nonce", strings.ToLower(nonce))
	}
	return resp, nil
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// TestACMEz does with acmez what Caddy does: it registers with an external key, gets a certificate with a profile, reads
// its renewal information, replaces it, changes its key, and revokes.
func TestACMEz(t *testing.T) {
	w, ctx := newWorld(t), t.Context()
	spoil := &spoiled{base: w.http.Transport}
	spoil.left.Store(1)
	low := &zacme.Client{Directory: w.url + "/acme/directory", HTTPClient: &http.Client{Transport: spoil}}
	c := acmez.Client{Client: low, ChallengeSolvers: map[string]acmez.Solver{zacme.ChallengeTypeHTTP01: solver{w}}}

	account := zacme.Account{Contact: []string{"mailto:admin@fleet.example"}, PrivateKey: newKey(t)}
	secret := base64URL(w.authority.secrets["kid-1"])
	if err := account.SetExternalAccountBinding(ctx, low, zacme.EAB{KeyID: "kid-1", MACKey: secret}); err != nil {
		t.Fatal(err)
	}
	account, err := c.NewAccount(ctx, account)
	if err != nil {
		t.Fatal(err)
	}
	if spoil.refused.Load() != 1 {
		t.Errorf("%d requests were refused, want one for its nonce", spoil.refused.Load())
	}
	obtain := func(replaces *x509.Certificate) *x509.Certificate {
		t.Helper()
		key := newKey(t)
		csr, err := acmez.NewCSR(key, []string{"127.0.0.1"})
		if err != nil {
			t.Fatal(err)
		}
		params, err := acmez.OrderParametersFromCSR(account, csr)
		if err != nil {
			t.Fatal(err)
		}
		params.Profile, params.Replaces = "acme", replaces
		chains, err := c.ObtainCertificate(ctx, params)
		if err != nil {
			t.Fatal(err)
		}
		leaf, err := x509.ParseCertificate(decodePEM(t, chains[0].ChainPEM))
		if err != nil {
			t.Fatal(err)
		}
		return leaf
	}
	first := obtain(nil)
	info, err := low.GetRenewalInfo(ctx, first)
	if err != nil || !info.HasWindow() || info.SuggestedWindow.Start.Before(time.Now()) {
		t.Errorf("the renewal information is %+v, %v", info, err)
	}
	second := obtain(first)
	if first.SerialNumber.Cmp(second.SerialNumber) == 0 {
		t.Error("both certificates are the same")
	}
	if account, err = c.AccountKeyRollover(ctx, account, newKey(t)); err != nil {
		t.Fatal(err)
	}
	if err := c.RevokeCertificate(ctx, account, second, nil, zacme.ReasonSuperseded); err != nil {
		t.Fatal(err)
	}
	account.Status = zacme.StatusDeactivated
	if account, err = c.UpdateAccount(ctx, account); err != nil || account.Status != zacme.StatusDeactivated {
		t.Errorf("the account is %s, %v", account.Status, err)
	}
}

// TestGoACME does the same with golang.org/x/crypto/acme, which autocert is made of.
func TestGoACME(t *testing.T) {
	w, ctx := newWorld(t), t.Context()
	spoil := &spoiled{base: w.http.Transport}
	spoil.left.Store(1)
	c := &xacme.Client{Key: newKey(t), DirectoryURL: w.url + "/acme/directory", HTTPClient: &http.Client{Transport: spoil}}
	account := &xacme.Account{ExternalAccountBinding: &xacme.ExternalAccountBinding{KID: "kid-1", Key: w.authority.secrets["kid-1"]}}
	if _, err := c.Register(ctx, account, xacme.AcceptTOS); err != nil {
		t.Fatal(err)
	}
	if got, err := c.GetReg(ctx, ""); err != nil || got.Status != xacme.StatusValid {
		t.Errorf("the account is %+v, %v", got, err)
	}
	o, err := c.AuthorizeOrder(ctx, []xacme.AuthzID{{Type: "ip", Value: "127.0.0.1"}})
	if err != nil {
		t.Fatal(err)
	}
	for _, url := range o.AuthzURLs {
		z, err := c.GetAuthorization(ctx, url)
		if err != nil {
			t.Fatal(err)
		}
		for _, ch := range z.Challenges {
			if ch.Type != "http-01" {
				continue
			}
			response, err := c.HTTP01ChallengeResponse(ch.Token)
			if err != nil {
				t.Fatal(err)
			}
			w.set(c.HTTP01ChallengePath(ch.Token), response)
			if _, err := c.Accept(ctx, ch); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := c.WaitAuthorization(ctx, url); err != nil {
			t.Fatal(err)
		}
	}
	if o, err = c.WaitOrder(ctx, o.URI); err != nil {
		t.Fatal(err)
	}
	key := newKey(t)
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}, key)
	if err != nil {
		t.Fatal(err)
	}
	chain, url, err := c.CreateOrderCert(ctx, o.FinalizeURL, csr, true)
	if err != nil || len(chain) != 2 || !strings.HasPrefix(url, w.url) {
		t.Fatalf("%d certificates at %q, %v", len(chain), url, err)
	}
	if err := c.AccountKeyRollover(ctx, newKey(t)); err != nil {
		t.Fatal(err)
	}
	if err := c.RevokeCert(ctx, key, chain[0], xacme.CRLReasonKeyCompromise); err != nil {
		t.Fatal(err)
	}
	if err := c.RevokeCert(ctx, nil, chain[0], xacme.CRLReasonUnspecified); err != nil {
		t.Errorf("the revocation of a revoked certificate: %v", err) // the client takes alreadyRevoked as success
	}
	if err := c.DeactivateReg(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := c.AuthorizeOrder(ctx, []xacme.AuthzID{{Type: "ip", Value: "127.0.0.1"}}); err == nil || !strings.Contains(fmt.Sprint(err), "401") {
		t.Errorf("an order of a deactivated account: %v", err)
	}
}
