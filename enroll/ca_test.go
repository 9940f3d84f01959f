package enroll

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"log/slog"
	"maps"
	"math/big"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/brevet-pki/brevet/pki"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const testDomain = "fleet.example"

// The test CA sends a renewal window that lasts from renewStart to renewEnd, as parts of a certificate's lifetime.
const renewStart, renewEnd = 0.60, 0.7333

// testCA is a small CA that applies Brevet's rules to repeated requests. It accepts a token or a JWT with only one
// request ID and key, a challenge only once, and renews a certificate with only one key. It returns the same response for
// the same request ID.
type testCA struct {
	root, issuer       *x509.Certificate
	rootKey, issuerKey crypto.Signer

	mu       sync.Mutex
	roots    []*x509.Certificate // the trust bundle; nil for root alone
	lifetime time.Duration
	backdate time.Duration
	tokens   map[pki.TokenID]pki.SPIFFEID
	bound    map[string]string // request ID and key, keyed by the token or the predecessor that they were used with
	issued   map[pki.RequestID]Credential
	revoked  map[string]bool // keyed by serial number
	// challenges holds the request that each challenge is for. An enrollment removes it.
	challenges map[string]pki.RequestID
	// handle calls before, lets the request take effect, and calls after. If one of the two returns an error, the
	// request fails with it. Both may be nil.
	before, after func() error
	calls         []time.Time
	// info returns renewal windows. If it is nil, the CA is an old one that lacks the RPC.
	info  func(*Pair) (RenewalInfo, error)
	polls []time.Time
}

func newTestCA(t testing.TB) *testCA {
	t.Helper()
	ca := &testCA{
		lifetime: time.Hour, tokens: map[pki.TokenID]pki.SPIFFEID{}, bound: map[string]string{},
		issued: map[pki.RequestID]Credential{}, revoked: map[string]bool{}, challenges: map[string]pki.RequestID{},
	}
	ca.rootKey, ca.issuerKey = testKey(t), testKey(t)
	ca.root = testSign(t, caTemplate("root"), nil, ca.rootKey.Public(), ca.rootKey)
	ca.issuer = testSign(t, caTemplate("issuer"), ca.root, ca.issuerKey.Public(), ca.rootKey)
	return ca
}

func caTemplate(name string) *x509.Certificate {
	return &x509.Certificate{
		Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
		NotBefore: time.Date(1990, 1, 1, 0, 0, 0, 0, time.UTC), NotAfter: time.Date(2200, 1, 1, 0, 0, 0, 0, time.UTC),
	}
}

func leafTemplate(id string, from, until time.Time) *x509.Certificate {
	uri, err := url.Parse(id)
	if err != nil {
		panic(err)
	}
	return &x509.Certificate{
		URIs: []*url.URL{uri}, NotBefore: from, NotAfter: until, KeyUsage: x509.KeyUsageDigitalSignature, BasicConstraintsValid: true,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}
}

func testKey(t testing.TB) crypto.Signer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// testSign issues a certificate. If parent is nil, the certificate is self-signed.
func testSign(t testing.TB, template, parent *x509.Certificate, public crypto.PublicKey, key crypto.Signer) *x509.Certificate {
	t.Helper()
	if parent == nil {
		parent = template
	}
	serial := make([]byte, 16)
	_, _ = rand.Read(serial)
	template.SerialNumber = new(big.Int).SetBytes(serial)
	der, err := x509.CreateCertificate(rand.Reader, template, parent, public, key)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// token creates a token for an identity path such as device/42.
func (ca *testCA) token(t testing.TB, path string) Token {
	t.Helper()
	b := make([]byte, 32)
	_, _ = rand.Read(b)
	secret, err := pki.TokenSecretFromBytes(b)
	if err != nil {
		t.Fatal(err)
	}
	id, err := pki.SPIFFEIDIn(testDomain, path)
	if err != nil {
		t.Fatal(err)
	}
	ca.mu.Lock()
	defer ca.mu.Unlock()
	ca.tokens[secret.ID()] = id
	return Token{Bootstrap{RootFingerprint: sha256.Sum256(ca.root.Raw), TrustDomain: testDomain, Server: "127.0.0.1:7443"}, secret}
}

// clone returns a copy of the CA in its current state.
func (ca *testCA) clone() *testCA {
	ca.mu.Lock()
	defer ca.mu.Unlock()
	return &testCA{
		root: ca.root, roots: ca.roots, issuer: ca.issuer, rootKey: ca.rootKey, issuerKey: ca.issuerKey, lifetime: ca.lifetime, backdate: ca.backdate,
		tokens: maps.Clone(ca.tokens), bound: maps.Clone(ca.bound), issued: maps.Clone(ca.issued), revoked: maps.Clone(ca.revoked),
		challenges: maps.Clone(ca.challenges),
	}
}

func (ca *testCA) Enroll(ctx context.Context, r EnrollRequest) (Credential, error) {
	evidence, err := r.Present(ctx, ca)
	if err != nil {
		return Credential{}, err
	}
	return ca.handle(ctx, func() (Credential, error) {
		var first pki.SPIFFEID
		for i, e := range evidence {
			id, err := ca.identify(e, r)
			if err != nil {
				return Credential{}, err
			}
			if i == 0 {
				first = id
			}
		}
		return ca.issue(first, r.RequestID, r.CSR, r.Lifetime)
	})
}

// Challenge implements Challenger.
func (ca *testCA) Challenge(_ context.Context, c ChallengeRequest) ([]byte, error) {
	ca.mu.Lock()
	defer ca.mu.Unlock()
	challenge := rand.Text()
	ca.challenges[challenge] = c.RequestID
	return []byte(challenge), nil
}

// identify returns the identity that a piece of evidence proves, and binds the evidence to the request.
func (ca *testCA) identify(e pki.Evidence, r EnrollRequest) (id pki.SPIFFEID, err error) {
	switch e.Kind {
	case pki.EvidenceToken:
		secret, err := pki.TokenSecretFromBytes(e.Value)
		if err != nil {
			return id, err
		}
		id, ok := ca.tokens[secret.ID()]
		if !ok {
			return id, pki.Refuse(pki.RuleToken, "ask for a new one", "the token is unknown, expired or spent")
		}
		return id, ca.bind("token "+secret.ID().String(), r.RequestID, r.CSR, pki.RuleTokenBound)
	case pki.EvidenceJWT:
		if err := ca.bind("JWT "+string(e.Value), r.RequestID, r.CSR, pki.RuleChallengeUsed); err != nil {
			return id, err
		}
		return pki.SPIFFEIDIn(testDomain, "workload/web")
	case pki.EvidenceX5C:
		x, err := pki.ParseX5CEvidence(e.Value)
		if err != nil {
			return id, err
		}
		if ca.challenges[string(x.Challenge)] != r.RequestID {
			return id, pki.Refuse(pki.RuleChallengeUsed, "get another", "the challenge was used, or is for another request")
		}
		delete(ca.challenges, string(x.Challenge))
		return pki.SPIFFEIDIn(testDomain, "device/camera")
	default:
		return id, pki.Refuse(pki.RulePolicy, "ask the operator", "no rule is for evidence of the kind %s", e.Kind)
	}
}

func (ca *testCA) Renew(ctx context.Context, r RenewRequest) (Credential, error) {
	return ca.renew(ctx, r.Current.Certificate, r)
}

func (ca *testCA) renew(ctx context.Context, predecessor *x509.Certificate, r RenewRequest) (Credential, error) {
	return ca.handle(ctx, func() (Credential, error) {
		serial := predecessor.SerialNumber.String()
		if ca.revoked[serial] {
			return Credential{}, pki.Refuse(pki.RuleRevoked, "enroll again with a new token",
				"the certificate is revoked: keyCompromise")
		}
		if time.Now().After(predecessor.NotAfter) {
			return Credential{}, pki.Refuse(pki.RuleExpired, "enroll again with a new token",
				"the certificate has ended")
		}
		id, err := pki.ParseSPIFFEID(predecessor.URIs[0].String())
		if err != nil {
			return Credential{}, err
		}
		if err := ca.bind("certificate "+serial, r.RequestID, r.CSR, pki.RuleRenewalKeyConflict); err != nil {
			return Credential{}, err
		}
		return ca.issue(id, r.RequestID, r.CSR, r.Lifetime)
	})
}

func (ca *testCA) RenewalInfo(_ context.Context, p *Pair) (RenewalInfo, error) {
	ca.mu.Lock()
	defer ca.mu.Unlock()
	ca.polls = append(ca.polls, time.Now())
	if ca.info == nil {
		return RenewalInfo{}, pki.Refuse(pki.RuleMethod, "update the server", "this server has no such RPC")
	}
	return ca.info(p)
}

// handle records the time of a request, and calls before, do and after. If the context has ended by then, the request
// fails.
func (ca *testCA) handle(ctx context.Context, do func() (Credential, error)) (Credential, error) {
	ca.mu.Lock()
	defer ca.mu.Unlock()
	ca.calls = append(ca.calls, time.Now())
	if ca.before != nil {
		if err := ca.before(); err != nil {
			return Credential{}, err
		}
	}
	c, err := do()
	if err == nil && ca.after != nil {
		err = ca.after()
	}
	if err == nil {
		err = ctx.Err()
	}
	return c, err
}

// bind accepts what authorizes a request with one request ID and key only.
func (ca *testCA) bind(by string, request pki.RequestID, csr []byte, broken pki.Rule) error {
	parsed, err := x509.ParseCertificateRequest(csr)
	if err != nil {
		return err
	}
	key := pki.HashSPKI(parsed.RawSubjectPublicKeyInfo)
	binding := request.String() + key.String()
	if had, ok := ca.bound[by]; ok && had != binding {
		return pki.Refuse(broken, "revoke it", "%s was used with another request or key", strings.Fields(by)[0])
	}
	ca.bound[by] = binding
	return nil
}

func (ca *testCA) issue(id pki.SPIFFEID, request pki.RequestID, csr []byte, lifetime time.Duration) (Credential, error) {
	parsed, err := x509.ParseCertificateRequest(csr)
	if err != nil {
		return Credential{}, err
	}
	if err := parsed.CheckSignature(); err != nil {
		return Credential{}, err
	}
	if c, ok := ca.issued[request]; ok {
		if public := parsed.PublicKey.(interface{ Equal(crypto.PublicKey) bool }); !public.Equal(c.Certificate.PublicKey) {
			return Credential{}, pki.Refuse(pki.RuleRequestIDReused, "use a new one", "the request ID was used for another key")
		}
		return c, nil
	}
	if lifetime == 0 {
		lifetime = ca.lifetime
	}
	now := time.Now()
	template := leafTemplate(id.String(), now.Add(-ca.backdate), now.Add(lifetime))
	serial := make([]byte, 16)
	_, _ = rand.Read(serial)
	template.SerialNumber = new(big.Int).SetBytes(serial)
	der, err := x509.CreateCertificate(rand.Reader, template, ca.issuer, parsed.PublicKey, ca.issuerKey)
	if err != nil {
		return Credential{}, err
	}
	c, err := ParseCredential(der, [][]byte{ca.issuer.Raw}, [][]byte{ca.root.Raw})
	c.Roots = ca.bundle().Roots
	part := func(share float64) time.Time { return now.Add(time.Duration(share * float64(lifetime))) }
	c.Renewal, c.BundleRevision = RenewalWindow{part(renewStart), part(renewEnd)}, ca.bundle().Revision
	if err == nil {
		ca.issued[request] = c
	}
	return c, err
}

// TrustBundle implements Authority.
func (ca *testCA) TrustBundle(ctx context.Context, _ *Pair) (TrustBundle, error) {
	ca.mu.Lock()
	defer ca.mu.Unlock()
	return ca.bundle(), ctx.Err()
}

// bundle returns the trust bundle. Its revision is the number of roots.
func (ca *testCA) bundle() TrustBundle {
	if ca.roots == nil {
		return TrustBundle{[]*x509.Certificate{ca.root}, "01"}
	}
	return TrustBundle{ca.roots, fmt.Sprintf("%02x", len(ca.roots))}
}

// newRoot returns another root.
func newRoot(t testing.TB) *x509.Certificate {
	t.Helper()
	key := testKey(t)
	return testSign(t, caTemplate("new root"), nil, key.Public(), key)
}

func (ca *testCA) revoke(c *x509.Certificate) {
	ca.mu.Lock()
	defer ca.mu.Unlock()
	ca.revoked[c.SerialNumber.String()] = true
}

func (ca *testCA) set(change func()) {
	ca.mu.Lock()
	defer ca.mu.Unlock()
	change()
}

func (ca *testCA) callTimes() []time.Time {
	ca.mu.Lock()
	defer ca.mu.Unlock()
	return append([]time.Time(nil), ca.calls...)
}

// pairFor returns a pair for an identity, with a certificate that is valid for an hour.
func (ca *testCA) pairFor(t testing.TB, path string) *Pair {
	t.Helper()
	key := testKey(t)
	now := time.Now()
	leaf := testSign(t, leafTemplate("spiffe://"+testDomain+"/"+path, now.Add(-time.Minute), now.Add(time.Hour)), ca.issuer, key.Public(), ca.issuerKey)
	p, err := NewPair(Credential{Certificate: leaf, Chain: []*x509.Certificate{ca.issuer}, Roots: []*x509.Certificate{ca.root}}, key, Origin{}, now)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// serverCertificate issues a certificate for a template. Like a Brevet server, it appends the root to the chain.
func (ca *testCA) serverCertificate(t testing.TB, template *x509.Certificate) tls.Certificate {
	t.Helper()
	key := testKey(t)
	leaf := testSign(t, template, ca.issuer, key.Public(), ca.issuerKey)
	return tls.Certificate{Certificate: [][]byte{leaf.Raw, ca.issuer.Raw, ca.root.Raw}, PrivateKey: key}
}

// testLog stores the records of a logger as text.
type testLog struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *testLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *testLog) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func (l *testLog) logger() *slog.Logger { return slog.New(slog.NewTextHandler(l, nil)) }

func openTestDirectory(t testing.TB, path string, log *slog.Logger) *Directory {
	t.Helper()
	d, err := OpenDirectory(path, log)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	return d
}
