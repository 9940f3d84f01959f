package server_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mholt/acmez/v3"
	"github.com/mholt/acmez/v3/acme"
	"golang.org/x/net/dns/dnsmessage"
	"google.golang.org/protobuf/types/known/durationpb"

	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
	"github.com/brevet-pki/brevet/server/acme/validation"
	"github.com/brevet-pki/brevet/server/acme/validation/validationtest"
	"github.com/brevet-pki/brevet/server/servertest"
)

const acmePolicy = `
acme:
  binding: required
rules:
  - name: tokens
    evidence: [token]
  - name: web
    evidence: [acme]
    when: acme.name.endsWith(".web.fleet.example") || acme.name == "127.0.0.1"
    identity: web/{acme.name}
    register: true
    kind: workload
  - name: named
    evidence: [acme]
    wildcards: true
`

// acmeWorld is a World whose server can validate challenges: it has a DNS server, and a web server that responds to
// http-01.
type acmeWorld struct {
	*servertest.World
	zone *validationtest.Zone
	http *http.Client

	mu        sync.Mutex
	responses map[string]string // of the web server, by path
}

func newACMEWorld(t *testing.T, edit func(*servertest.Options)) *acmeWorld {
	t.Helper()
	w := &acmeWorld{zone: validationtest.NewZone(t), responses: map[string]string{}}
	web := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		w.mu.Lock()
		defer w.mu.Unlock()
		_, _ = io.WriteString(rw, w.responses[r.URL.Path])
	}))
	t.Cleanup(web.Close)
	o := servertest.Options{Policy: []byte(acmePolicy), Challenges: validation.Config{
		Resolvers: []netip.AddrPort{w.zone.Addr}, Networks: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")},
		HTTPPort: netip.MustParseAddrPort(web.Listener.Addr().String()).Port(), TLSPort: 1,
	}}
	if edit != nil {
		edit(&o)
	}
	w.World = servertest.New(t, ground, o)
	roots := x509.NewCertPool()
	roots.AddCert(w.Root)
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS13}}
	t.Cleanup(transport.CloseIdleConnections)
	w.http = &http.Client{Transport: transport}
	return w
}

func (w *acmeWorld) directory(t *testing.T) string {
	t.Helper()
	_, port, err := net.SplitHostPort(w.HTTPS)
	if err != nil {
		t.Fatal(err)
	}
	return "https://localhost:" + port + "/acme/directory"
}

// Present implements acmez.Solver for all challenges.
func (w *acmeWorld) Present(_ context.Context, c acme.Challenge) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.responses[c.HTTP01ResourcePath()] = c.KeyAuthorization
	return nil
}

// CleanUp implements acmez.Solver.
func (*acmeWorld) CleanUp(context.Context, acme.Challenge) error { return nil }

// dnsSolver responds to dns-01.
type dnsSolver struct {
	t *testing.T
	*acmeWorld
}

// Present implements acmez.Solver.
func (s dnsSolver) Present(_ context.Context, c acme.Challenge) error {
	s.zone.Add(s.t, strings.TrimSuffix(c.DNS01TXTRecordName(), "."), &dnsmessage.TXTResource{TXT: []string{c.DNS01KeyAuthorization()}})
	return nil
}

// acmeClient is an ACME client with an account.
type acmeClient struct {
	w       *acmeWorld
	c       acmez.Client
	account acme.Account
}

// newClient returns a client without an account.
func (w *acmeWorld) newClient(t *testing.T) *acmeClient {
	t.Helper()
	return &acmeClient{w: w, c: acmez.Client{
		Client:           &acme.Client{Directory: w.directory(t), HTTPClient: w.http, PollInterval: 10 * time.Millisecond, Logger: slog.New(slog.DiscardHandler)},
		ChallengeSolvers: map[string]acmez.Solver{acme.ChallengeTypeHTTP01: w, acme.ChallengeTypeDNS01: dnsSolver{t, w}},
	}, account: acme.Account{PrivateKey: servertest.Must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(t), Contact: []string{"mailto:admin@fleet.example"}}}
}

// unbound creates an account without an external key.
func (w *acmeWorld) unbound(t *testing.T) *acmeClient {
	t.Helper()
	c := w.newClient(t)
	c.account = servertest.Must(c.c.NewAccount(t.Context(), c.account))(t)
	return c
}

// bind creates an account with a new external key.
func (w *acmeWorld) bind(t *testing.T, req *brevetv1.CreateExternalKeyRequest) *acmeClient {
	t.Helper()
	c := w.newClient(t)
	key := servertest.Must(brevetv1.NewACMEServiceClient(w.Operator.Conn).CreateExternalKey(t.Context(), req))(t)
	eab := acme.EAB{KeyID: key.GetKey().GetId(), MACKey: base64.RawURLEncoding.EncodeToString(key.GetHmacKey())}
	if err := c.account.SetExternalAccountBinding(t.Context(), c.c.Client, eab); err != nil {
		t.Fatal(err)
	}
	c.account = servertest.Must(c.c.NewAccount(t.Context(), c.account))(t)
	return c
}

// obtain gets a certificate for names.
func (c *acmeClient) obtain(ctx context.Context, key crypto.Signer, replaces *x509.Certificate, names ...string) (*x509.Certificate, error) {
	csr, err := acmez.NewCSR(key, names)
	if err != nil {
		return nil, err
	}
	params, err := acmez.OrderParametersFromCSR(c.account, csr)
	if err != nil {
		return nil, err
	}
	params.Profile, params.Replaces = "acme", replaces
	chains, err := c.c.ObtainCertificate(ctx, params)
	if err != nil {
		return nil, err
	}
	block, rest := pem.Decode(chains[0].ChainPEM)
	if block == nil || len(rest) == 0 {
		return nil, fmt.Errorf("the chain is %q", chains[0].ChainPEM)
	}
	return x509.ParseCertificate(block.Bytes)
}

// TestACME gets certificates with an account for a rule and one for an identity, over http-01 and dns-01, renews, changes
// the key of the account, and revokes.
func TestACME(t *testing.T) {
	t.Parallel()
	w := newACMEWorld(t, nil)
	w.zone.Address(t, "a.web.fleet.example", "127.0.0.1")
	c := w.bind(t, &brevetv1.CreateExternalKeyRequest{Rule: "web"})
	key := servertest.Key(t)
	first := servertest.Must(c.obtain(t.Context(), key, nil, "a.web.fleet.example"))(t)
	if !slices.Equal(first.DNSNames, []string{"a.web.fleet.example"}) || len(first.URIs) != 0 || first.Subject.String() != "" {
		t.Errorf("the certificate is for %v, %v and %q", first.DNSNames, first.URIs, first.Subject)
	}
	info := servertest.Must(c.c.GetRenewalInfo(t.Context(), first))(t)
	if !info.HasWindow() || !info.SuggestedWindow.Start.Before(first.NotAfter) {
		t.Errorf("the renewal information is %+v", info)
	}
	second := servertest.Must(c.obtain(t.Context(), servertest.Key(t), first, "a.web.fleet.example"))(t)
	address := servertest.Must(c.obtain(t.Context(), servertest.Key(t), nil, "127.0.0.1"))(t)
	if len(address.IPAddresses) != 1 {
		t.Errorf("the certificate is for %v", address.IPAddresses)
	}

	w.Register(t, "workload", "shop")
	shop := w.bind(t, &brevetv1.CreateExternalKeyRequest{Identity: "shop"})
	wildcard := servertest.Must(shop.obtain(t.Context(), servertest.Key(t), nil, "*.shop.fleet.example", "www.shop.fleet.example"))(t)
	if len(wildcard.DNSNames) != 2 {
		t.Errorf("the certificate is for %v", wildcard.DNSNames)
	}

	c.account = servertest.Must(c.c.AccountKeyRollover(t.Context(), c.account, servertest.Key(t)))(t)
	if err := shop.c.RevokeCertificate(t.Context(), shop.account, second, nil, acme.ReasonSuperseded); err == nil {
		t.Error("an account has revoked a certificate of another account")
	}
	if err := c.c.RevokeCertificate(t.Context(), c.account, second, nil, acme.ReasonSuperseded); err != nil {
		t.Error(err)
	}
	if err := c.c.RevokeCertificate(t.Context(), acme.Account{}, first, key, acme.ReasonKeyCompromise); err != nil {
		t.Error(err)
	}
	w.Status(t, first, "keyCompromise")
	w.Status(t, second, "superseded")
	w.Status(t, wildcard, "good")
}

// A name that no rule accepts is refused before a challenge is made, and a certificate of ACME is no credential.
func TestACMERefuses(t *testing.T) {
	t.Parallel()
	w := newACMEWorld(t, nil)
	w.zone.Address(t, "a.web.fleet.example", "127.0.0.1")
	c := w.bind(t, &brevetv1.CreateExternalKeyRequest{Rule: "web"})
	delete(c.c.ChallengeSolvers, acme.ChallengeTypeDNS01)
	for name, problem := range map[string]string{
		"other.example": acme.ProblemTypeRejectedIdentifier, "*.web.fleet.example": acme.ProblemTypeRejectedIdentifier,
		"b.web.fleet.example": acme.ProblemTypeDNS,
	} {
		_, err := c.obtain(t.Context(), servertest.Key(t), nil, name)
		if err == nil || !strings.Contains(err.Error(), problem) {
			t.Errorf("%s: got %v, want %s", name, err, problem)
		}
	}
	if n := w.zone.Count("tcp"); n > 0 {
		t.Errorf("the resolver got %d queries over TCP", n)
	}
	key := servertest.Key(t)
	certificate := servertest.Must(c.obtain(t.Context(), key, nil, "a.web.fleet.example"))(t)
	holder := w.Holder(t, certificate.Raw, key)
	if _, err := holder.GetTrustBundle(t.Context(), &brevetv1.GetTrustBundleRequest{}); err == nil {
		t.Error("a certificate of ACME is a credential for gRPC")
	}
}

// A rotation moves the window of a certificate of ACME. The client replaces it, and no other order can replace it then.
func TestACMEFollowsRotations(t *testing.T) {
	t.Parallel()
	w := newACMEWorld(t, nil)
	w.Register(t, "workload", "shop", labelled("site", "north"))
	c := w.bind(t, &brevetv1.CreateExternalKeyRequest{Identity: "shop"})
	first := servertest.Must(c.obtain(t.Context(), servertest.Key(t), nil, "www.shop.fleet.example"))(t)
	usual := servertest.Must(c.c.GetRenewalInfo(t.Context(), first))(t)
	started := servertest.Must(w.Operator.StartRotation(t.Context(), &brevetv1.StartRotationRequest{
		Selection: &brevetv1.CertificateSelection{Label: &brevetv1.Label{Name: "site", Value: "north"}},
		Over:      durationpb.New(time.Hour), Confirm: 1, RequestId: servertest.RequestID(),
	}))(t).GetRotation()
	until := started.GetStartTime().AsTime().Add(time.Hour)
	info := usual
	for deadline := time.Now().Add(10 * time.Second); info.SameWindow(usual) && time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		info = servertest.Must(c.c.GetRenewalInfo(t.Context(), first))(t)
	}
	if info.SuggestedWindow.End.After(until) || !usual.SuggestedWindow.End.After(until) {
		t.Errorf("the window is until %s, before it was until %s", info.SuggestedWindow.End, usual.SuggestedWindow.End)
	}
	second := servertest.Must(c.obtain(t.Context(), servertest.Key(t), first, "www.shop.fleet.example"))(t)
	if again := servertest.Must(c.c.GetRenewalInfo(t.Context(), second))(t); !again.SuggestedWindow.Start.After(until) {
		t.Errorf("the window of the new certificate begins at %s", again.SuggestedWindow.Start)
	}
	_, err := c.c.NewOrder(t.Context(), c.account, acme.Order{
		Identifiers: []acme.Identifier{{Type: "dns", Value: "www.shop.fleet.example"}},
		Replaces:    servertest.Must(acme.ARIUniqueIdentifier(first))(t),
	})
	if err == nil || !strings.Contains(err.Error(), "alreadyReplaced") {
		t.Errorf("another order replaces the certificate: %v", err)
	}
}
