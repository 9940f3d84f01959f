package token_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"io"
	"log/slog"
	"testing"
	"time"

	"github.com/brevet-pki/brevet/audit"
	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/ca/ceremony"
	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra"
	"github.com/brevet-pki/brevet/ra/token"
	"github.com/brevet-pki/brevet/revocation"
	"github.com/brevet-pki/brevet/store/memory"
)

var operator = pki.ActorCommand("test")

// world is a registration authority over records in memory and an issuing key in software. Its clock stands still.
type world struct {
	*ra.Registrar
	store *memory.Store
	now   time.Time
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{store: &memory.Store{}, now: time.Now().Truncate(time.Second)}
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	authority, err := ca.New(t.Context(), ca.Config{
		TrustDomain: "fleet.example", IssuingCAs: []ca.IssuingCA{issuer(t, w.now.Add(-10*time.Minute))}, Partitions: 1, Journal: w.store,
		Observer: nobody{}, Meter: nobody{}, Clock: w.clock, Log: log,
	})
	if err != nil {
		t.Fatal(err)
	}
	profiles, err := ca.NewProfiles(nil, "http://ca.example")
	if err == nil {
		profiles, err = authority.Prepare(profiles, nil)
	}
	if err != nil {
		t.Fatal(err)
	}
	auditor := audit.New(w.store, w.clock, log)
	w.Registrar = ra.New(ra.Config{
		TrustDomain: "fleet.example", Store: w.store, CA: authority, Superseder: w,
		Revision: func() ra.Revision {
			return ra.Revision{
				Authenticators: map[pki.EvidenceKind]ra.Authenticator{pki.EvidenceToken: token.New(w.store)}, Policy: named{}, Profiles: profiles,
			}
		},
		Clock: w.clock, Auditor: auditor,
	})
	t.Cleanup(func() {
		auditor.Close(context.Background())
		if err := authority.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return w
}

func (w *world) clock() time.Time { return w.now }

// Supersede implements ra.Superseder.
func (w *world) Supersede(ctx context.Context, id pki.SPIFFEID, by pki.Actor) error {
	_, err := w.store.Apply(ctx, revocation.Change{
		Action: revocation.Revoke, Reason: pki.Superseded, Identity: id, Actor: by, At: w.now,
	})
	return err
}

// nobody is an Observer and a Meter.
type nobody struct{}

func (nobody) Apply(...pki.StatusChange)                                {}
func (nobody) Begin(context.Context, ca.Step, pki.IssuerID) func(error) { return func(error) {} }
func (nobody) Issued(string)                                            {}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// issuer makes a root and an issuing CA.
func issuer(t *testing.T, now time.Time) ca.IssuingCA {
	t.Helper()
	subject := func(text string) ceremony.Subject {
		s, err := ceremony.ParseSubject(text)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	const year = 365 * 24 * time.Hour
	rootKey, key := newKey(t), newKey(t)
	der, err := ceremony.Root(rootKey, ceremony.RootSpec{
		Subject: subject("CN=Root G1"), Lifetime: 2 * year, PathLength: 1, Now: now,
	})
	if err != nil {
		t.Fatal(err)
	}
	root := parse(t, der)
	request, err := ceremony.Request(key, ceremony.RequestSpec{Subject: subject("CN=Issuing G1")})
	if err != nil {
		t.Fatal(err)
	}
	spec := ceremony.SignSpec{Lifetime: year, TrustDomain: "fleet.example", Now: now}
	der, err = ceremony.Sign(root, rootKey, request, spec)
	if err != nil {
		t.Fatal(err)
	}
	iss, err := ca.NewIssuingCA(parse(t, der), key, []*x509.Certificate{root})
	if err != nil {
		t.Fatal(err)
	}
	return iss
}

func parse(t *testing.T, der []byte) *x509.Certificate {
	t.Helper()
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// newToken registers device/1 if it is new, and makes a token for it.
func (w *world) newToken(t *testing.T, replace bool) (pki.TokenSecret, ra.Token) {
	t.Helper()
	id, err := w.CreateIdentity(t.Context(), ra.NewIdentity{Name: "device/1", Kind: pki.Device}, operator)
	if err != nil {
		t.Fatal(err)
	}
	secret, made, err := w.CreateToken(t.Context(), ra.NewToken{Identity: id.ID, Lifetime: time.Minute, Replace: replace}, operator)
	if err != nil {
		t.Fatal(err)
	}
	return secret, made
}

// enroll enrolls a new key with a token.
func (w *world) enroll(t *testing.T, secret pki.TokenSecret) ca.Certificate {
	t.Helper()
	e := ra.EnrollRequest{RequestID: requestID(t), Evidence: []pki.Evidence{secret.Evidence()}, CSR: csr(t, newKey(t))}
	cert, err := w.Enroll(t.Context(), e)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// renewalOf asks for the successor of a certificate, with a new key.
func renewalOf(t *testing.T, id pki.SPIFFEID, ref pki.CertRef) ra.RenewRequest {
	t.Helper()
	return ra.RenewRequest{RequestID: requestID(t), Identity: id, Predecessor: ref, CSR: csr(t, newKey(t)), Door: pki.DoorGRPC}
}

func csr(t *testing.T, key crypto.Signer) []byte {
	t.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func requestID(t *testing.T) pki.RequestID {
	t.Helper()
	var random [16]byte
	_, _ = rand.Read(random[:]) // never fails
	id, err := pki.RequestIDFromBytes(random[:])
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// named is a policy that grants the identity that a token names.
type named struct{}

// Grant implements ra.Policy.
func (named) Grant(claims ra.Claims, _ string, _ time.Time) (ra.Grant, error) {
	return ra.Grant{Identity: claims[0].Identity, Replace: claims[0].Replace}, nil
}

func mustRefuse(t *testing.T, what string, err error, want pki.Rule) {
	t.Helper()
	if refusal, _ := pki.AsRefusal(err); refusal == nil || refusal.Rule != want {
		t.Errorf("%s: %v, want a refusal by %s", what, err, want)
	}
}

// TestOneTokenOneCertificate checks that a token serves one request and key, which may be repeated, until it expires.
func TestOneTokenOneCertificate(t *testing.T) {
	w := newWorld(t)
	secret, made := w.newToken(t, false)
	key := newKey(t)
	e := ra.EnrollRequest{RequestID: requestID(t), Evidence: []pki.Evidence{secret.Evidence()}, CSR: csr(t, key)}
	cert, err := w.Enroll(t.Context(), e)
	if err != nil {
		t.Fatal(err)
	}
	again, err := w.Enroll(t.Context(), e)
	if err != nil || again.Ref != cert.Ref {
		t.Errorf("the request repeated: %v, %v", again.Ref, err)
	}
	if have, err := w.store.Token(t.Context(), made.ID); err != nil || !have.Spent {
		t.Errorf("the token is %+v, %v", have, err)
	}
	other := e
	other.CSR = csr(t, newKey(t))
	_, err = w.Enroll(t.Context(), other)
	mustRefuse(t, "another key", err, pki.RuleRequestIDReused)
	unknown := e
	unknown.Evidence = []pki.Evidence{pki.TokenSecret{}.Evidence()}
	_, err = w.Enroll(t.Context(), unknown)
	mustRefuse(t, "an unknown token", err, pki.RuleToken)
	w.now = w.now.Add(time.Minute)
	_, err = w.Enroll(t.Context(), e)
	mustRefuse(t, "an expired token", err, pki.RuleToken)
}

func TestBoundAndRevokedTokens(t *testing.T) {
	w := newWorld(t)
	secret, made := w.newToken(t, false)
	authenticator := token.New(w.store)
	id, err := w.store.Identity(t.Context(), made.Identity)
	if err != nil {
		t.Fatal(err)
	}
	first := ra.Binding{Identity: id, Request: requestID(t), Key: pki.HashSPKI([]byte("first")), At: w.now}
	for _, c := range []struct {
		what string
		with ra.Binding
		want pki.Rule
	}{
		{"the first", first, ""}, {"repeated", first, ""},
		{"another request", ra.Binding{Identity: id, Request: requestID(t), Key: first.Key, At: w.now}, pki.RuleTokenBound},
		{"another key", ra.Binding{Identity: id, Request: first.Request, Key: pki.HashSPKI([]byte("other")), At: w.now}, pki.RuleTokenBound},
	} {
		err := authenticator.Bind(t.Context(), secret.Bytes(), c.with)
		if c.want == "" && err != nil {
			t.Errorf("%s: %v", c.what, err)
		} else if c.want != "" {
			mustRefuse(t, c.what, err, c.want)
		}
	}
	if n, err := w.RevokeTokens(t.Context(), ra.TokenRevocation{ID: made.ID.String(), By: operator}); n != 1 || err != nil {
		t.Fatalf("%d tokens are revoked, %v", n, err)
	}
	mustRefuse(t, "bound after a revocation", authenticator.Bind(t.Context(), secret.Bytes(), first), pki.RuleTokenRevoked)
	_, err = authenticator.Identify(t.Context(), ra.Presented{Evidence: secret.Bytes(), At: w.now})
	mustRefuse(t, "identified after a revocation", err, pki.RuleTokenRevoked)
	_, err = authenticator.Identify(t.Context(), ra.Presented{Evidence: []byte("short"), At: w.now})
	mustRefuse(t, "a secret of another length", err, pki.RuleToken)
}

// TestRenewals checks that a lost response is found again, that a clone is found out, and that nothing is issued
// while the identity is suspended.
func TestRenewals(t *testing.T) {
	w := newWorld(t)
	secret, made := w.newToken(t, false)
	cert := w.enroll(t, secret)
	renewal := renewalOf(t, made.Identity, cert.Ref)
	next, err := w.Renew(t.Context(), renewal)
	if err != nil {
		t.Fatal(err)
	}
	lost := renewal
	lost.RequestID = requestID(t)
	if again, err := w.Renew(t.Context(), lost); err != nil || again.Ref != next.Ref {
		t.Errorf("the response is lost and the request ID with it: %v, %v", again.Ref, err)
	}
	clone := lost
	clone.CSR = csr(t, newKey(t))
	_, err = w.Renew(t.Context(), clone)
	mustRefuse(t, "a clone", err, pki.RuleRenewalKeyConflict)
	suspend := revocation.Change{Action: revocation.Hold, State: pki.Suspended, Identity: made.Identity, Actor: operator, At: w.now}
	if _, err := w.store.Apply(t.Context(), suspend); err != nil {
		t.Fatal(err)
	}
	_, err = w.Renew(t.Context(), renewalOf(t, made.Identity, next.Ref))
	mustRefuse(t, "suspended", err, pki.RuleRevoked)
}

// TestReplacement checks that a token of its own replaces what an identity has, and that the old certificate is
// revoked by then.
func TestReplacement(t *testing.T) {
	w := newWorld(t)
	secret, made := w.newToken(t, false)
	old := w.enroll(t, secret)
	_, _, err := w.CreateToken(t.Context(), ra.NewToken{Identity: made.Identity, Lifetime: time.Minute}, operator)
	mustRefuse(t, "a token for an enrolled identity", err, pki.RuleAlreadyEnrolled)
	secret, _ = w.newToken(t, true)
	w.enroll(t, secret)
	have, err := w.store.Certificate(t.Context(), old.Ref)
	if err != nil || have.Status.State != pki.Revoked || have.Status.Reason != pki.Superseded {
		t.Errorf("the old certificate is %+v, %v", have.Status, err)
	}
}
