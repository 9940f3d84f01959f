package jwt_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/brevet-pki/brevet/audit"
	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/ca/ceremony"
	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra"
	"github.com/brevet-pki/brevet/ra/jwt"
	"github.com/brevet-pki/brevet/ra/policy"
	"github.com/brevet-pki/brevet/revocation"
	"github.com/brevet-pki/brevet/store/memory"
)

// podPolicy gives each service account of one namespace an identity.
const podPolicy = `rules:
  - name: pods
    evidence: [jwt]
    when: jwt.source == "cluster" && jwt.kubernetes.namespace == "prod"
    identity: workload/{jwt.kubernetes.namespace}/{jwt.kubernetes.service_account}
    register: true
    kind: workload
`

// fleet is a registration authority for the pods of a cluster, over records in memory and an issuing key in software.
type fleet struct {
	*ra.Registrar
	*world
	signer
	store *memory.Store
}

// publicURL replaces {public_url} in the profiles.
const publicURL = "http://ca.example"

func newFleet(t *testing.T) *fleet {
	t.Helper()
	s := newSigner(t, "cluster-key")
	source := sourceOf(t, s)
	source.Name, source.Issuer, source.Kubernetes = "cluster", "https://kubernetes.default.svc", &jwt.Kubernetes{}
	f := &fleet{world: newWorld(t, source), signer: s, store: &memory.Store{}}
	log := slog.New(slog.NewTextHandler(&f.log, nil))
	authority := must(ca.New(t.Context(), ca.Config{
		TrustDomain: "fleet.example", IssuingCAs: []ca.IssuingCA{issuing(t)}, Partitions: 1, Journal: f.store,
		Observer: ignoring{}, Meter: ignoring{}, Clock: f.clock, Log: log,
	}))(t)
	rules := must(policy.Compile([]byte(podPolicy), 1, policy.Environment{
		TrustDomain: "fleet.example", PublicURL: publicURL, Kinds: []policy.Kind{policy.KindOf(pki.EvidenceJWT,
			f.Authenticator, nil)},
		Prepare: func(all *ca.Profiles) (*ca.Profiles, error) { return authority.Prepare(all, nil) },
	}))(t)
	auditor := audit.New(f.store, f.clock, log)
	f.Registrar = ra.New(ra.Config{
		TrustDomain: "fleet.example", Store: f.store, CA: authority, Superseder: f,
		Revision: func() ra.Revision {
			return ra.Revision{Authenticators: map[pki.EvidenceKind]ra.Authenticator{pki.EvidenceJWT: f.Authenticator},
				Policy: rules, Profiles: rules.Profiles()}
		},
		Clock: f.clock, Auditor: auditor,
	})
	t.Cleanup(func() {
		auditor.Close(context.Background())
		check(t, authority.Close(context.Background()))
	})
	return f
}

// Supersede implements ra.Superseder.
func (f *fleet) Supersede(ctx context.Context, id pki.SPIFFEID, by pki.Actor) error {
	_, err := f.store.Apply(ctx, revocation.Change{
		Action: revocation.Revoke, Reason: pki.Superseded, Identity: id, Actor: by, At: f.clock(),
	})
	return err
}

// ignoring is an Observer and a Meter.
type ignoring struct{}

func (ignoring) Apply(...pki.StatusChange)                                {}
func (ignoring) Begin(context.Context, ca.Step, pki.IssuerID) func(error) { return func(error) {} }
func (ignoring) Issued(string)                                            {}

// issuing makes a root and an issuing CA.
func issuing(t *testing.T) ca.IssuingCA {
	t.Helper()
	const year = 365 * 24 * time.Hour
	rootKey, key := newSigner(t, "").key, newSigner(t, "").key
	start := now.Add(-time.Hour)
	root := must(x509.ParseCertificate(must(ceremony.Root(rootKey, ceremony.RootSpec{
		Subject: must(ceremony.ParseSubject("CN=Root G1"))(t), Lifetime: 2 * year, PathLength: 1, Now: start,
	}))(t)))(t)
	request := must(ceremony.Request(key,
		ceremony.RequestSpec{Subject: must(ceremony.ParseSubject("CN=Issuing G1"))(t)}))(t)
	spec := ceremony.SignSpec{Lifetime: year, TrustDomain: "fleet.example", Now: start}
	issued := must(x509.ParseCertificate(must(ceremony.Sign(root, rootKey, request, spec))(t)))(t)
	return must(ca.NewIssuingCA(issued, key, []*x509.Certificate{root}))(t)
}

// request returns a new request for a new key.
func (f *fleet) request(t *testing.T, token string) ra.EnrollRequest {
	t.Helper()
	var random [16]byte
	_, _ = rand.Read(random[:]) // never fails
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(t)
	csr := must(x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, crypto.Signer(key)))(t)
	return ra.EnrollRequest{
		RequestID: must(pki.RequestIDFromBytes(random[:]))(t), CSR: csr,
		Evidence: []pki.Evidence{{Kind: pki.EvidenceJWT, Value: []byte(token)}},
	}
}

// TestPodEnrolls enrolls a pod with the token of its service account, and then misuses tokens.
func TestPodEnrolls(t *testing.T) {
	f := newFleet(t)
	token := f.token(t, podClaims())
	request := f.request(t, token)
	cert := must(f.Enroll(t.Context(), request))(t)
	id := must(pki.SPIFFEIDIn("fleet.example", "workload/prod/web"))(t)
	record := must(f.store.Identity(t.Context(), id))(t)
	if record.Subject != jwt.SubjectOf("https://kubernetes.default.svc",
		"system:serviceaccount:prod:web") || record.Kind != pki.Workload {
		t.Errorf("the identity is %+v", record)
	}
	if again, err := f.Enroll(t.Context(), request); err != nil || again.Ref != cert.Ref {
		t.Errorf("the request repeated: %v, %v", again.Ref, err)
	}
	end := strings.LastIndexByte(token, '.') + 1
	for what, c := range map[string]struct {
		token string
		want  pki.Rule
	}{
		"used a second time":   {token, pki.RuleAlreadyEnrolled},
		"of another namespace": {f.token(t, accountClaims("test", "web")), pki.RulePolicy},
		"for another service": {f.token(t, accountClaims("prod", "db").with(set{"aud": "other.example"})),
			pki.RuleEvidenceAudience},
		"that was changed": {token[:end] + base64url(make([]byte, 64)), pki.RuleEvidenceSignature},
	} {
		_, err := f.Enroll(t.Context(), f.request(t, c.token))
		mustRefuse(t, "a token "+what, err, c.want)
	}
	for _, path := range []string{"workload/test/web", "workload/prod/db"} {
		_, err := f.store.Identity(t.Context(), must(pki.SPIFFEIDIn("fleet.example", path))(t))
		mustRefuse(t, path, err, pki.RuleIdentity)
	}
	if log := f.log.String(); strings.Contains(log, token) || strings.Contains(log, "system:serviceaccount") {
		t.Errorf("the log contains a token or its subject: %s", log)
	}
}

// TestTokenIsUsedOnce sends two requests with one token at the same time.
func TestTokenIsUsedOnce(t *testing.T) {
	f := newFleet(t)
	token := f.token(t, podClaims())
	requests := []ra.EnrollRequest{f.request(t, token), f.request(t, token)}
	results := make(chan error)
	for _, r := range requests {
		go func() {
			_, err := f.Enroll(context.Background(), r)
			results <- err
		}()
	}
	issued := 0
	for range requests {
		if err := <-results; err == nil {
			issued++
		}
	}
	if issued != 1 {
		t.Errorf("two requests with one token got %d certificates, want 1", issued)
	}
}

// accountClaims returns the claims of a token of a service account.
func accountClaims(namespace, name string) set {
	return podClaims().with(set{
		"sub": "system:serviceaccount:" + namespace + ":" + name, "jti": namespace + name,
		"kubernetes.io": set{"namespace": namespace, "serviceaccount": set{"name": name}},
	})
}
