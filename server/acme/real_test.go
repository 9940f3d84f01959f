package acme_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/go-jose/go-jose/v4"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/hsm"
	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
	racme "github.com/brevet-pki/brevet/ra/acme"
	"github.com/brevet-pki/brevet/server"
	"github.com/brevet-pki/brevet/server/acme/validation"
	"github.com/brevet-pki/brevet/server/admission"
	"github.com/brevet-pki/brevet/server/servertest"
	"github.com/brevet-pki/brevet/store/sqlite"
	"github.com/brevet-pki/brevet/store/tables"
	"github.com/brevet-pki/brevet/translog"
)

// anyName is a policy that gives every account a certificate for every name.
const anyName = `
acme:
  binding: optional
rules:
  - name: tokens
    evidence: [token]
  - name: any
    evidence: [acme]
    identity: web/{acme.name}
    register: true
    kind: workload
`

// realWorld is a complete server, with a web server that responds to http-01.
type realWorld struct {
	target
	*web
	*servertest.World
}

// newServer returns a complete server with the policy anyName.
func newServer(t *testing.T) *realWorld {
	t.Helper()
	return newServerWith(t, anyName, validation.Config{})
}

// newServerWith returns a complete server with a policy, which validates challenges as c says. If c has no port for
// http-01, it is that of the web server.
func newServerWith(t *testing.T, policy string, c validation.Config) *realWorld {
	t.Helper()
	s := newServerOn(t, newGround(t), servertest.Options{Policy: []byte(policy), Challenges: c})
	s.open(s.url + "/acme/directory")
	return s
}

// newServerOn returns a complete server with keys that it may share with others. Its directory is not read yet.
func newServerOn(t *testing.T, g servertest.Ground, o servertest.Options) *realWorld {
	t.Helper()
	responder := newWeb(t)
	o.Challenges.Networks = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
	if o.Challenges.HTTPPort == 0 {
		o.Challenges.HTTPPort = responder.port
	}
	w := servertest.New(t, g, o)
	roots := x509.NewCertPool()
	roots.AddCert(w.Root)
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS13}}
	t.Cleanup(transport.CloseIdleConnections)
	_, port, err := net.SplitHostPort(w.HTTPS)
	if err != nil {
		t.Fatal(err)
	}
	return &realWorld{target{t: t, url: "https://localhost:" + port, http: &http.Client{Transport: transport}}, responder, w}
}

// newGround returns keys in a new SoftHSM token, and SQLite stores.
func newGround(t *testing.T) servertest.Ground {
	t.Helper()
	module, err := hsm.FindSoftHSM()
	if err != nil {
		t.Fatalf("%v: run deploy/setup.sh --test", err)
	}
	t.Setenv(hsm.SoftHSMConfEnv, servertest.Must(hsm.WriteSoftHSM(filepath.Join(t.TempDir(), "softhsm")))(t))
	pin := servertest.Must(hsm.NewPIN([]byte("user-246810")))(t)
	servertest.Must(hsm.Init(t.Context(), module, "test", pin, pin))(t)
	token := servertest.Must(hsm.Open(t.Context(), hsm.Config{Module: module, Label: "test"}, pin))(t)
	t.Cleanup(func() {
		if err := token.Close(); err != nil {
			t.Error(err)
		}
	})
	root := servertest.Must(token.Generate(t.Context(), "root", hsm.P256))(t)
	issuing := servertest.Must(token.Generate(t.Context(), "issuing", hsm.P256))(t)
	return servertest.Ground{Root: root, Issuing: issuing, Token: hsm.Watched{HSM: token, Keys: []*hsm.Key{issuing}}, Open: openStore}
}

// store is a [servertest.Store] on SQLite.
type store struct{ *tables.DB }

func openStore(ctx context.Context, path string) (servertest.Store, error) {
	db, err := sqlite.Open(ctx, path)
	return store{db}, err
}

// Stores implements servertest.Store.
func (s store) Stores() server.Stores {
	return server.Stores{CA: s.CA(), RA: s.RA(), Policies: s.RA(), Nonces: s.RA(), ACME: s.ACME(), Audit: s.RA(), Retention: s.RA(), Revocation: s.Revocation(), Rotations: s.Rotations(), CRLs: s.Revocation(), Feed: s.Revocation(), Log: s.Log()}
}

// Installations implements servertest.Store.
func (s store) Installations() ca.Installations { return s.CA() }

// An order leads to one certificate, however often it is finalized, and with a CSR for its names alone.
func TestFinalize(t *testing.T) {
	w := newServer(t)
	c := w.registered()
	o := w.ready(c)
	address := []net.IP{net.IPv4(127, 0, 0, 1)}
	finalize := func(template *x509.CertificateRequest) response {
		text, _ := csr(t, template)
		return c.post(o.text("finalize"), `{"csr":"`+text+`"}`)
	}
	for what, template := range map[string]*x509.CertificateRequest{
		"no names":         {},
		"another name":     {DNSNames: []string{"host.fleet.example"}},
		"an extra name":    {DNSNames: []string{"host.fleet.example"}, IPAddresses: address},
		"an extra address": {IPAddresses: append(address[:1:1], net.IPv4(127, 0, 0, 2))},
		"a mail address":   {IPAddresses: address, EmailAddresses: []string{"admin@fleet.example"}},
	} {
		want(t, what, finalize(template), http.StatusBadRequest, "badCSR")
	}
	const connections = 8
	text, _ := csr(t, &x509.CertificateRequest{IPAddresses: address})
	results := make(chan response, connections)
	for range connections {
		own := &http.Transport{TLSClientConfig: w.http.Transport.(*http.Transport).TLSClientConfig.Clone(), DisableKeepAlives: true}
		other := &client{w: &target{t: t, url: w.url, http: &http.Client{Transport: own}, directory: w.directory}, key: c.key, alg: c.alg, kid: c.kid}
		go func() { results <- other.post(o.text("finalize"), `{"csr":"`+text+`"}`) }()
	}
	certificates := map[string]bool{}
	for range connections {
		r := <-results
		want(t, "a concurrent request", r, http.StatusOK, "")
		certificates[r.text("certificate")] = true
	}
	if len(certificates) != 1 {
		t.Errorf("the order has %d certificates", len(certificates))
	}
	again := c.post(o.text("finalize"), `{"csr":"`+text+`"}`)
	want(t, "later", again, http.StatusOK, "")
	if !certificates[again.text("certificate")] {
		t.Errorf("the order has another certificate later: %s", again.body)
	}
	want(t, "with another key", finalize(&x509.CertificateRequest{IPAddresses: address}), http.StatusForbidden, "orderNotReady")
	issued := 0
	for _, record := range w.Inventory(t) {
		if record.Profile == "acme" {
			issued++
		}
	}
	if issued != 1 {
		t.Errorf("%d certificates are on record", issued)
	}
}

// The number of open orders of an account is limited, and that of another account is not affected.
func TestOpenOrdersAreLimited(t *testing.T) {
	w := newServer(t)
	c, other := w.registered(), w.registered()
	for n := range racme.MaxOpenOrders + 1 {
		r := c.post("newOrder", names)
		if n < racme.MaxOpenOrders {
			want(t, "an order", r, http.StatusCreated, "")
		} else {
			want(t, "one order too many", r, http.StatusTooManyRequests, "rateLimited")
		}
	}
	want(t, "an order of another account", other.post("newOrder", names), http.StatusCreated, "")
}

// A response says when to repeat a request that is shed.
func TestRateLimit(t *testing.T) {
	w := newServer(t)
	limits := server.DefaultLimits()
	limits.Address = admission.Rate{PerSecond: 0.1, Burst: 5}
	if err := w.Server.SetLimits(limits); err != nil {
		t.Fatal(err)
	}
	for range 20 {
		r := w.send(http.MethodPost, w.at("newOrder"), "{}", "application/jose+json")
		if r.status == http.StatusBadRequest {
			continue
		}
		want(t, "a request over the limit", r, http.StatusTooManyRequests, "rateLimited")
		if r.header.Get("Retry-After") == "" || r.header.Get("Replay-Nonce") == "" {
			t.Errorf("the response has the headers %v", r.header)
		}
		return
	}
	t.Error("no request was refused")
}

// A refusal of an account is in the audit log under the account, with the identity of its external key.
func TestRefusalsNameTheAccount(t *testing.T) {
	w := newServer(t)
	c := w.registered()
	before := len(w.Entries(t, 0))
	want(t, "an order", c.post("newOrder", `{"identifiers":[{"type":"dns","value":"host"},{"type":"mail","value":"a@b"}]}`),
		http.StatusBadRequest, "unsupportedIdentifier")
	entries := w.Entries(t, before)
	account := "acme:" + c.kid[strings.LastIndex(c.kid, "/")+1:]
	if len(entries) != 1 || entries[0].Action != translog.RequestRefused || entries[0].Actor.String() != account {
		t.Fatalf("the log has %+v, want a refusal of %s", entries, account)
	}
}

// An address can create few accounts without an external key, and an account can change its key rarely. Accounts that exist
// are found as often as the client likes.
func TestAccountsAreLimited(t *testing.T) {
	w := newServer(t)
	c := w.registered()
	for range 9 {
		w.registered()
	}
	r := w.client().post("newAccount", `{}`)
	want(t, "one account more", r, http.StatusTooManyRequests, "rateLimited")
	if delay, err := strconv.Atoi(r.header.Get("Retry-After")); err != nil || delay < 300 || delay > 400 {
		t.Errorf("the delay is %q seconds, want about six minutes", r.header.Get("Retry-After"))
	}
	known := &client{w: c.w, key: c.key, alg: c.alg}
	want(t, "an account that exists", known.post("newAccount", `{}`), http.StatusOK, "")
	for range 10 {
		next := w.client()
		want(t, "a change of the key", c.post("keyChange", c.change(next, c.kid, c.key.Public())), http.StatusOK, "")
		c.key = next.key
	}
	want(t, "one change more", c.post("keyChange", c.change(w.client(), c.kid, c.key.Public())), http.StatusTooManyRequests, "rateLimited")
}

// The HMAC key of an external key is long enough for every algorithm.
func TestBindingAlgorithms(t *testing.T) {
	w := newServer(t)
	keys := brevetv1.NewACMEServiceClient(w.Operator.Conn)
	for _, alg := range []jose.SignatureAlgorithm{jose.HS256, jose.HS384, jose.HS512} {
		k := servertest.Must(keys.CreateExternalKey(t.Context(), &brevetv1.CreateExternalKeyRequest{Rule: "any"}))(t)
		c := w.client()
		r := c.post("newAccount", c.bindWith(alg, k.GetKey().GetId(), k.GetHmacKey(), w.at("newAccount"), c.key.Public()))
		want(t, string(alg), r, http.StatusCreated, "")
	}
}
