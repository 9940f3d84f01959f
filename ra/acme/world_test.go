package acme_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra"
	"github.com/brevet-pki/brevet/ra/acme"
	"github.com/brevet-pki/brevet/ra/revisions"
	"github.com/brevet-pki/brevet/revocation"
	"github.com/brevet-pki/brevet/store/memory"
)

// document is the policy of the tests. The rule named is for accounts whose external key names an identity.
const document = `
acme: {}
profiles:
  web: {kinds: [device, workload], lifetime: 24h, max_lifetime: 24h, keys: [P-256], key_usage: [digitalSignature],
    extended_key_usage: [serverAuth], dns_names: allowed, renewals: [], max_unexpired: 1}
rules:
- name: named
  evidence: [acme]
  when: acme.domain.matches("^(.*\\.)?fleet\\.example$")
  wildcards: true
  profiles: [acme, web]
- name: shop
  evidence: [acme]
  when: acme.identity == "shop/7" && acme.name == "shop-7.example"
- name: web
  evidence: [acme]
  when: acme.name.endsWith(".web.example")
  identity: web/{acme.name}
  register: true
- name: dns
  evidence: [acme]
  when: acme.name.endsWith(".dns.example") && "dns-01" in acme.challenges
  identity: dns/{acme.name}
  register: true
`

// world is an Authority with a registrar, an issuing CA with a key in memory, and a store in memory.
type world struct {
	*acme.Authority
	store     *memory.Store
	policy    *revisions.Revisions
	registrar *ra.Registrar
	root      *x509.Certificate
	mu        sync.Mutex
	now       time.Time
}

// clock returns the time of the test.
func (w *world) clock() time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.now
}

// advance sets the time of the test forward.
func (w *world) advance(d time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.now = w.now.Add(d)
}

func newWorld(t testing.TB, document string) *world {
	t.Helper()
	w := &world{store: new(memory.Store), now: time.Now().Truncate(time.Second)}
	root, rootKey := w.authority(t, "Root", nil, nil)
	w.root = root
	issuing, key := w.authority(t, "Issuing CA", root, rootKey)
	issuer := must(ca.NewIssuingCA(issuing, key, []*x509.Certificate{root}))(t)
	log := slog.New(slog.DiscardHandler)
	authority := must(ca.New(t.Context(), ca.Config{
		TrustDomain: "fleet.example", IssuingCAs: []ca.IssuingCA{issuer}, Partitions: 1, Journal: w.store,
		Observer: pki.StatusObserverFunc(func([]pki.StatusChange) {}), Meter: noMeter{}, Clock: w.clock, Log: log,
	}))(t)
	t.Cleanup(func() {
		if err := authority.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	w.policy = must(revisions.New(t.Context(), revisions.Config{
		Compiler: revisions.Compiler{
			TrustDomain: "fleet.example", PublicURL: "http://pki.example", Issuer: issuerOf{authority}, Tokens: w.store, Certificates: w.store,
			Orders: w.store.ACME(), Retention: time.Hour, Files: revisions.NewFiles(t.TempDir(), log), Clock: w.clock, Log: log,
		},
		Store: w.store, Identities: w.store, First: []byte(document), Clock: w.clock, Log: log,
	}))(t)
	t.Cleanup(w.policy.Close)
	w.registrar = ra.New(ra.Config{
		TrustDomain: "fleet.example", Store: w.store, CA: authority, Superseder: noSuperseder{}, Revision: w.policy.Current, Clock: w.clock,
		Auditor: noAuditor{},
	})
	w.Authority = acme.New(acme.Config{
		Store: w.store.ACME(), Registrar: w.registrar, Certificates: w.store, Chains: authority, Revoker: revoker{w},
		Sealer: must(acme.NewSealer([32]byte{1}))(t), OwnNames: named("ca.fleet.example", "192.0.2.9"), Revision: w.policy.Current, Clock: w.clock,
	})
	return w
}

// authority makes a CA certificate. Without a parent, it is a root.
func (w *world) authority(t testing.TB, name string, parent *x509.Certificate, parentKey crypto.Signer) (*x509.Certificate, crypto.Signer) {
	t.Helper()
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(t)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotBefore: w.now.Add(-time.Hour), NotAfter: w.now.Add(1000 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	if parent == nil {
		parent, parentKey = template, key
	}
	return must(x509.ParseCertificate(must(x509.CreateCertificate(rand.Reader, template, parent, key.Public(), parentKey))(t)))(t), key
}

// issuerOf prepares the profiles of a revision, as the server does.
type issuerOf struct{ authority *ca.Authority }

func (i issuerOf) Prepare(all, before *ca.Profiles) (*ca.Profiles, error) {
	return i.authority.Prepare(all, before)
}
func (issuerOf) Activate(context.Context, *ca.Profiles) error { return nil }

// revoker revokes certificates in the store.
type revoker struct{ w *world }

func (r revoker) Revoke(ctx context.Context, v acme.Revocation) error {
	_, err := r.w.store.Apply(ctx, revocation.Change{
		Action: revocation.Revoke, Reason: v.Reason, Certificate: v.Certificate, Key: v.Key, Actor: v.By, Comment: v.Comment, At: r.w.clock(),
	})
	return err
}

type noMeter struct{}

func (noMeter) Begin(context.Context, ca.Step, pki.IssuerID) func(error) { return func(error) {} }
func (noMeter) Issued(string)                                            {}

type noSuperseder struct{}

func (noSuperseder) Supersede(context.Context, pki.SPIFFEID, pki.Actor) error {
	panic("an order supersedes certificates")
}

type noAuditor struct{}

func (noAuditor) Record(_ context.Context, _ pki.Actor, _ pki.SPIFFEID, err error) error { return err }
func (noAuditor) RecordEvidence(_ context.Context, _ pki.Actor, _ pki.SPIFFEID, _ pki.EvidenceRecord, err error) error {
	return err
}
func (noAuditor) RecordOnce(_ context.Context, _ pki.Actor, _ pki.SPIFFEID, _ pki.Serial, err error) error {
	return err
}

var operator = pki.ActorCommand("test")

// register registers a device.
func (w *world) register(t testing.TB, path string) pki.SPIFFEID {
	t.Helper()
	id := must(pki.SPIFFEIDIn("fleet.example", path))(t)
	_, err := w.store.CreateIdentity(t.Context(), ra.Registration{Identity: ra.Identity{ID: id, Kind: pki.Device, Profile: "device"}}, operator)
	must(id, err)(t)
	return id
}

// newKey returns the SubjectPublicKeyInfo of a new key, and a value that stands for its thumbprint.
func newKey(t testing.TB) (spki []byte, thumbprint [32]byte) {
	t.Helper()
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(t)
	spki = must(x509.MarshalPKIXPublicKey(key.Public()))(t)
	return spki, sha256.Sum256(spki)
}

// account creates an account with an external key for an identity, or for a rule.
func (w *world) account(t testing.TB, n acme.NewExternalKey) acme.Account {
	t.Helper()
	n.By = operator
	k, hmacKey, err := w.CreateExternalKey(t.Context(), n)
	if err != nil {
		t.Fatal(err)
	}
	spki, thumbprint := newKey(t)
	a, created, err := w.NewAccount(t.Context(), acme.NewAccount{Key: spki, Thumbprint: thumbprint, Binding: &acme.Binding{
		KeyID: k.ID.String(), Verify: func(have []byte) bool { return string(have) == string(hmacKey) },
	}})
	if err != nil || !created {
		t.Fatalf("the account was created: %t, %v", created, err)
	}
	return a
}

// named returns identifiers of the type dns, or of the type ip for addresses.
func named(names ...string) []acme.Identifier {
	var all []acme.Identifier
	for _, n := range names {
		kind := acme.DNS
		if net.ParseIP(n) != nil {
			kind = acme.IP
		}
		all = append(all, acme.Identifier{Type: kind, Value: n})
	}
	return all
}

// ready creates an order, and validates its names with a type of challenge.
func (w *world) ready(t testing.TB, account acme.ID, kind acme.ChallengeType, names ...string) acme.Order {
	t.Helper()
	o := must(w.NewOrder(t.Context(), account, acme.NewOrder{Identifiers: named(names...)}))(t)
	w.validate(t, o, kind)
	o = must(w.Order(t.Context(), account, o.ID))(t)
	if o.Status != acme.StatusReady {
		t.Fatalf("the order is %+v", o)
	}
	return o
}

// validate validates the names of an order with a type of challenge.
func (w *world) validate(t testing.TB, o acme.Order, kind acme.ChallengeType) {
	t.Helper()
	for _, id := range o.Authorizations {
		if _, starts, err := w.BeginValidation(t.Context(), o.Account, id, kind); err != nil || !starts {
			t.Fatalf("the validation starts: %t, %v", starts, err)
		}
		if _, err := w.EndValidation(t.Context(), id, kind, nil); err != nil {
			t.Fatal(err)
		}
	}
}

// csr returns a CSR for a new key.
func csr(t testing.TB, request x509.CertificateRequest) []byte {
	t.Helper()
	return must(x509.CreateCertificateRequest(rand.Reader, &request, must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(t)))(t)
}

// issue orders a certificate and returns it.
func (w *world) issue(t testing.TB, account acme.ID, names ...string) *x509.Certificate {
	t.Helper()
	o := w.ready(t, account, acme.DNS01, names...)
	return w.certificate(t, must(w.Finalize(t.Context(), account, o.ID, csr(t, x509.CertificateRequest{DNSNames: names})))(t))
}

// certificate returns the certificate of a valid order.
func (w *world) certificate(t testing.TB, o acme.Order) *x509.Certificate {
	t.Helper()
	if o.Status != acme.StatusValid {
		t.Fatalf("the order is %+v", o)
	}
	ders := must(w.Certificate(t.Context(), o.Account, o.Certificate))(t)
	if len(ders) != 2 {
		t.Errorf("the chain has %d certificates", len(ders))
	}
	return must(x509.ParseCertificate(ders[0]))(t)
}

func must[T any](value T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return value
	}
}

// refused checks that err is a refusal by a rule, with a detail and a hint.
func refused(t testing.TB, what string, err error, rule pki.Rule) {
	t.Helper()
	refusal, ok := pki.AsRefusal(err)
	if !ok || refusal.Rule != rule || refusal.Detail == "" || refusal.Hint == "" {
		t.Errorf("%s: %v, want a refusal by %s", what, fmt.Sprint(err), rule)
	}
}
