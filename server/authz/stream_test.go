package authz

import (
	"context"
	"crypto/ed25519"
	"crypto/x509"
	"math/big"
	"net/url"
	"testing"
	"time"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra"
)

// records holds the status and identity of the only caller.
type records struct {
	status     pki.Status
	identity   pki.IdentityState
	roles      pki.Roles
	identities int // number of calls of Identity
}

// Status implements Statuses.
func (r *records) Status(pki.CertRef) (pki.Status, bool) { return r.status, true }

// IsStale implements Statuses.
func (*records) IsStale() bool { return false }

// Identity implements Identities.
func (r *records) Identity(_ context.Context, id pki.SPIFFEID) (ra.Identity, error) {
	r.identities++
	return ra.Identity{ID: id, State: r.identity, Roles: r.roles}, nil
}

// operator returns an Authorizer with one operator on record, and the operator's client certificate.
func operator(t *testing.T, r *records) (*Authorizer, *Client) {
	t.Helper()
	root, key := newCA(t, 1)
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(2), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		URIs:        []*url.URL{{Scheme: "spiffe", Host: "fleet.example", Path: "/brevet/operator/alice"}},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(nil, leaf, root, key.Public().(ed25519.PublicKey), key)
	if err != nil {
		t.Fatal(err)
	}
	client, err := NewClient(der)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(root)
	return New(Config{
		TrustDomain: "fleet.example", Roots: roots, Intermediates: x509.NewCertPool(), Statuses: r, Identities: r, Clock: time.Now,
	}), client
}

func refused(t *testing.T, when string, err error, want pki.Rule) {
	t.Helper()
	if r, ok := pki.AsRefusal(err); !ok || r.Rule != want {
		t.Errorf("%s: %v, want %s", when, err, want)
	}
}

// A caller that reads a long stream is authorized when its message arrives, and again after every authorizedEach
// messages of the server.
func TestStreamAuthorizesReadersRepeatedly(t *testing.T) {
	r := &records{status: pki.Status{State: pki.Good}, identity: pki.Enrolled, roles: pki.RolesOf(pki.RoleAuditor)}
	a, client := operator(t, r)
	s := a.NewStream(ListEntries, client, false)
	if err := s.Received(t.Context()); err != nil || r.identities != 1 {
		t.Fatalf("the message: %v, after %d reads of the identity", err, r.identities)
	}
	for n := range 2 * authorizedEach {
		if err := s.Sent(t.Context()); err != nil {
			t.Fatalf("message %d: %v", n, err)
		}
	}
	if r.identities != 3 {
		t.Errorf("for %d messages the identity was read %d times, want 3", 2*authorizedEach, r.identities)
	}
	if err := s.Recheck(t.Context()); err != nil || r.identities != 4 {
		t.Errorf("a check while nothing is sent: %v, after %d reads of the identity", err, r.identities)
	}
	r.roles = pki.RolesOf(pki.RoleRegistrar)
	refused(t, "an operator that is no auditor any more", s.Recheck(t.Context()), pki.RuleAccess)
	r.identity = pki.Suspended
	refused(t, "an operator that is suspended, while nothing is sent", s.Recheck(t.Context()), pki.RuleIdentityState)
	for range authorizedEach - 1 {
		if err := s.Sent(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	refused(t, "an operator that is suspended", s.Sent(t.Context()), pki.RuleIdentityState)
}

// A caller that sends many messages is authorized at the first, and authenticated at each of the others without reading
// the store.
func TestStreamAuthenticatesWritersAtEachMessage(t *testing.T) {
	r := &records{status: pki.Status{State: pki.Good}, identity: pki.Enrolled, roles: pki.RolesOf(pki.RoleAuditor)}
	a, client := operator(t, r)
	refused(t, "an auditor", a.NewStream(IssueCertificates, client, true).Received(t.Context()), pki.RuleAccess)
	r.roles = pki.RolesOf(pki.RoleRegistrar)
	s := a.NewStream(IssueCertificates, client, true)
	for range 3 {
		if err := s.Received(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	r.status = pki.Status{State: pki.Revoked, Reason: pki.KeyCompromise}
	refused(t, "a revoked certificate", s.Received(t.Context()), pki.RuleRevoked)
	for range 2 * authorizedEach {
		if err := s.Sent(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if r.identities != 2 {
		t.Errorf("the identity was read %d times, want once for each stream", r.identities)
	}
}
