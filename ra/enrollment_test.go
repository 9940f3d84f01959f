package ra_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"database/sql"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	_ "github.com/mattn/go-sqlite3" // counts rows without the store
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/brevet-pki/brevet/pki"
	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
	"github.com/brevet-pki/brevet/server/servertest"
	"github.com/brevet-pki/brevet/translog"
)

// rows returns the number of rows in a table. It reads the database file, not the store.
func rows(t *testing.T, w *servertest.World, table string) int {
	t.Helper()
	db := servertest.Must(sql.Open("sqlite3", "file:"+w.Dir+"/store.db?mode=ro"))(t)
	defer db.Close()
	var n int
	if err := db.QueryRowContext(t.Context(), "SELECT count(*) FROM "+table).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

// together calls f concurrently from n goroutines, and returns the results.
func together[T any](n int, f func(i int) T) []T {
	results := make([]T, n)
	start := make(chan struct{})
	var group sync.WaitGroup
	for i := range n {
		group.Go(func() {
			<-start
			results[i] = f(i)
		})
	}
	close(start)
	group.Wait()
	return results
}

// answer is the response to a request for a certificate, or its error.
type answer struct {
	der []byte
	err error
}

func TestEnrollIssuesGrantedNames(t *testing.T) {
	t.Parallel()
	w := servertest.New(t, ground, servertest.Options{})
	id := w.Register(t, "device", "device/pump-1", func(r *brevetv1.CreateIdentityRequest) {
		r.Spec.Names = servertest.Names([]string{"Pump-1.Fleet.Example", "a.fleet.example"}, []string{"192.0.2.7", "2001:db8::7"})
		r.Spec.Labels = map[string]string{"site": "north"}
	})
	key := servertest.Key(t)
	req := servertest.Enrollment(t, w.Token(t, id, false), key)
	req.Lifetime = durationpb.New(48 * time.Hour)
	resp := servertest.Must(w.Caller(t, nil).Enroll(t.Context(), req))(t).GetCredential()
	chain, roots := resp.GetChain().GetCertificates(), resp.GetTrustBundle().GetRoots()
	if len(chain) != 1 || !bytes.Equal(chain[0], w.Issuing.Raw) || len(roots) != 1 || !bytes.Equal(roots[0], w.Root.Raw) {
		t.Error("the chain is not exactly the issuing CA, or the roots are not exactly the root")
	}
	c := servertest.Must(x509.ParseCertificate(resp.GetCertificate()))(t)
	if !key.PublicKey.Equal(c.PublicKey) || subjectOf(t, c) != "UID = device/pump-1" || len(c.URIs) != 1 || c.URIs[0].String() != id {
		t.Errorf("the certificate has the subject %s and URIs %v, or another key", c.Subject, c.URIs)
	}
	if !slices.Equal(c.DNSNames, []string{"a.fleet.example", "pump-1.fleet.example"}) || fmt.Sprint(c.IPAddresses) != "[192.0.2.7 2001:db8::7]" || c.EmailAddresses != nil {
		t.Errorf("the certificate has the DNS names %v, IP addresses %v and email addresses %v", c.DNSNames, c.IPAddresses, c.EmailAddresses)
	}
	if c.IsCA || c.KeyUsage != x509.KeyUsageDigitalSignature || !slices.Equal(c.ExtKeyUsage, []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}) {
		t.Errorf("the certificate has the key usage %v, extended key usage %v, CA %v", c.KeyUsage, c.ExtKeyUsage, c.IsCA)
	}
	if life := c.NotAfter.Sub(c.NotBefore); life != 48*time.Hour+time.Minute {
		t.Errorf("the certificate is valid for %v, want the requested 48 h and 1 min of backdating", life)
	}
	w.Status(t, c, "good")
	got := servertest.Must(w.Operator.GetIdentity(t.Context(), &brevetv1.GetIdentityRequest{Id: id}))(t).GetIdentity()
	if got.GetState() != brevetv1.IdentityState_IDENTITY_STATE_ENROLLED || got.GetLabels()["site"] != "north" {
		t.Errorf("the identity is %v", got)
	}
}

func TestEnrollWithEveryKindOfKey(t *testing.T) {
	t.Parallel()
	w := servertest.New(t, ground, servertest.Options{})
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for name, key := range map[string]crypto.Signer{
		"P-256": servertest.Key(t), "P-384": servertest.Must(ecdsa.GenerateKey(elliptic.P384(), rand.Reader))(t),
		"Ed25519": ed, "RSA-3072": servertest.Must(rsa.GenerateKey(rand.Reader, 3072))(t),
	} {
		h := w.Enroll(t, w.Token(t, w.Register(t, "device", "device/"+name), false), key)
		if public := key.Public().(interface{ Equal(crypto.PublicKey) bool }); !public.Equal(h.Certificate.PublicKey) {
			t.Errorf("%s: the certificate has another key", name)
		}
		w.Renewed(t, h, servertest.Key(t)) // the key works in TLS
	}
}

func TestRepeatedRequestReturnsSameCertificate(t *testing.T) {
	t.Parallel()
	w := servertest.New(t, ground, servertest.Options{})
	id := w.Register(t, "device", "device/1")
	req := servertest.Enrollment(t, w.Token(t, id, false), servertest.Key(t))
	ask := func() []byte {
		return servertest.Must(w.Caller(t, nil).Enroll(t.Context(), req))(t).GetCredential().GetCertificate()
	}
	first := ask()
	if !bytes.Equal(ask(), first) {
		t.Error("a repeated request returned another certificate")
	}
	w.Restart(t, servertest.Options{})
	if !bytes.Equal(ask(), first) {
		t.Error("after a restart, a repeated request returned another certificate")
	}
	if n := rows(t, w, "certificates WHERE identity = (SELECT id FROM identities WHERE spiffe_id = '"+id+"')"); n != 1 {
		t.Errorf("%d certificates are on record, want 1", n)
	}
	w.Clock.Advance(time.Hour + time.Minute) // the token expires
	_, err := w.Caller(t, nil).Enroll(t.Context(), req)
	servertest.Refused(t, err, codes.Unauthenticated, pki.RuleToken)
}

func TestTokenIsBoundToOneRequestAndKey(t *testing.T) {
	t.Parallel()
	w := servertest.New(t, ground, servertest.Options{})
	for i, c := range []struct {
		again func(*brevetv1.EnrollRequest)
		code  codes.Code
		rule  pki.Rule
	}{
		{func(r *brevetv1.EnrollRequest) { r.RequestId = servertest.RequestID() }, codes.PermissionDenied, pki.RuleTokenBound},
		{func(r *brevetv1.EnrollRequest) {
			r.RequestId, r.Csr = servertest.RequestID(), servertest.CSR(t, servertest.Key(t))
		}, codes.PermissionDenied, pki.RuleTokenBound},
		{func(r *brevetv1.EnrollRequest) { r.Csr = servertest.CSR(t, servertest.Key(t)) }, codes.FailedPrecondition, pki.RuleRequestIDReused},
	} {
		// The token allows replacing, so that only its binding prevents a second use.
		token := w.Token(t, w.Register(t, "device", fmt.Sprintf("device/%d", i)), true)
		req := servertest.Enrollment(t, token, servertest.Key(t))
		der := servertest.Must(w.Caller(t, nil).Enroll(t.Context(), req))(t).GetCredential().GetCertificate()
		c.again(req)
		_, err := w.Caller(t, nil).Enroll(t.Context(), req)
		servertest.Refused(t, err, c.code, c.rule)
		w.Status(t, servertest.Must(x509.ParseCertificate(der))(t), "good") // the second use did not revoke it
	}
}

// TestUsedTokenOfAnEnrolledIdentity presents a used token with another key. The identity is enrolled, but the hint is not
// to replace its certificates at once, because one of the two parties may be a thief.
func TestUsedTokenOfAnEnrolledIdentity(t *testing.T) {
	t.Parallel()
	w := servertest.New(t, ground, servertest.Options{})
	token := w.Token(t, w.Register(t, "device", "device/1"), false)
	device := w.Enroll(t, token, servertest.Key(t))
	_, err := w.Caller(t, nil).Enroll(t.Context(), servertest.Enrollment(t, token, servertest.Key(t)))
	servertest.Refused(t, err, codes.PermissionDenied, pki.RuleTokenBound)
	if !strings.Contains(servertest.HintOf(err), "find out which (brevet log list)") {
		t.Errorf("the hint is %q", servertest.HintOf(err))
	}
	w.Status(t, device.Certificate, "good")
}

// A token is bound before a certificate is signed, so that it stays bound to its request if signing fails.
func TestTokenIsBoundEvenIfIssuingFails(t *testing.T) {
	t.Parallel()
	journal := &servertest.Faulty{}
	w := servertest.New(t, ground, servertest.Options{Wrap: journal.Wrap})
	req := servertest.Enrollment(t, w.Token(t, w.Register(t, "device", "device/1"), false), servertest.Key(t))
	journal.FailWrites(1)
	_, err := w.Caller(t, nil).Enroll(t.Context(), req)
	servertest.Refused(t, err, codes.Unavailable, "")
	_, err = w.Caller(t, nil).Enroll(t.Context(), servertest.Enrollment(t, req.GetEvidence()[0].GetToken().GetSecret(), servertest.Key(t)))
	servertest.Refused(t, err, codes.PermissionDenied, pki.RuleTokenBound)
	servertest.Must(w.Caller(t, nil).Enroll(t.Context(), req))(t)
}

func TestConcurrentEnrollmentsWithOneToken(t *testing.T) {
	t.Parallel()
	w := servertest.New(t, ground, servertest.Options{})
	id := w.Register(t, "device", "device/1")
	token := w.Token(t, id, true)
	nobody := w.Caller(t, nil)
	requests := make([]*brevetv1.EnrollRequest, 8)
	for i := range requests {
		requests[i] = servertest.Enrollment(t, token, servertest.Key(t))
	}
	winners := 0
	for _, a := range together(len(requests), func(i int) answer {
		resp, err := nobody.Enroll(t.Context(), requests[i])
		return answer{resp.GetCredential().GetCertificate(), err}
	}) {
		if a.err == nil {
			winners++
			w.Status(t, servertest.Must(x509.ParseCertificate(a.der))(t), "good")
			continue
		}
		servertest.Refused(t, a.err, codes.PermissionDenied, pki.RuleTokenBound)
	}
	if n := rows(t, w, "certificates WHERE identity = (SELECT id FROM identities WHERE spiffe_id = '"+id+"')"); winners != 1 || n != 1 {
		t.Errorf("%d callers received a certificate and %d are on record, want 1", winners, n)
	}
}

// A client that timed out repeats its request while the server still works on the first.
func TestConcurrentRepeatsOfOneEnrollment(t *testing.T) {
	t.Parallel()
	w := servertest.New(t, ground, servertest.Options{})
	nobody := w.Caller(t, nil)
	holder := w.Enrolled(t, "device", "device/2")
	for name, req := range map[string]*brevetv1.EnrollRequest{
		"first":       servertest.Enrollment(t, w.Token(t, w.Register(t, "device", "device/1"), false), servertest.Key(t)),
		"replacement": servertest.Enrollment(t, w.Token(t, holder.ID, true), servertest.Key(t)),
	} {
		t.Run(name, func(t *testing.T) {
			answers := together(8, func(int) answer {
				resp, err := nobody.Enroll(t.Context(), req)
				return answer{resp.GetCredential().GetCertificate(), err}
			})
			w.Status(t, sameForAll(t, answers), "good")
		})
	}
	w.Status(t, holder.Certificate, "superseded")
}

// sameForAll checks that all answers hold the same certificate, and returns it.
func sameForAll(t *testing.T, answers []answer) *x509.Certificate {
	t.Helper()
	for _, a := range answers {
		if a.err != nil || !bytes.Equal(a.der, answers[0].der) {
			t.Fatalf("an answer has another certificate, or the error: %v", a.err)
		}
	}
	return servertest.Must(x509.ParseCertificate(answers[0].der))(t)
}

func TestInvalidTokens(t *testing.T) {
	t.Parallel()
	w := servertest.New(t, ground, servertest.Options{})
	enroll := func(token []byte, code codes.Code, rule pki.Rule) {
		t.Helper()
		before := rows(t, w, "certificates")
		_, err := w.Caller(t, nil).Enroll(t.Context(), servertest.Enrollment(t, token, servertest.Key(t)))
		servertest.Refused(t, err, code, rule)
		if n := rows(t, w, "certificates"); n != before {
			t.Errorf("%d certificates were added", n-before)
		}
	}
	for _, token := range [][]byte{nil, make([]byte, 32), bytes.Repeat([]byte{1}, 32), bytes.Repeat([]byte{1}, 31), bytes.Repeat([]byte{1}, 33)} {
		enroll(token, codes.Unauthenticated, pki.RuleToken)
	}

	id := w.Register(t, "device", "device/suspended")
	token := w.Token(t, id, false)
	w.Suspend(t, id)
	enroll(token, codes.FailedPrecondition, pki.RuleIdentityState)
	w.Resume(t, id)
	enroll(token, codes.Unauthenticated, pki.RuleToken) // created before the suspension
	w.Enroll(t, w.Token(t, id, false), servertest.Key(t))

	id = w.Register(t, "device", "device/retired")
	token = w.Token(t, id, false)
	w.Retire(t, id)
	enroll(token, codes.FailedPrecondition, pki.RuleIdentityState)

	id = w.Register(t, "device", "device/enrolled")
	token, other := w.Token(t, id, false), w.Token(t, id, false)
	w.Enroll(t, token, servertest.Key(t))
	enroll(other, codes.FailedPrecondition, pki.RuleAlreadyEnrolled)
	_, err := w.Operator.CreateToken(t.Context(), &brevetv1.CreateTokenRequest{Identity: id})
	servertest.Refused(t, err, codes.FailedPrecondition, pki.RuleAlreadyEnrolled)

	id = w.Register(t, "device", "device/changed")
	token = w.Token(t, id, false)
	changed := servertest.Must(w.Stores.RA.Identity(t.Context(), servertest.Must(pki.ParseSPIFFEID(id))(t)))(t)
	changed.Profile = "client"
	servertest.Must(w.Stores.RA.UpdateIdentity(t.Context(), changed, pki.ActorCommand("test"), w.Clock.Now()))(t)
	enroll(token, codes.FailedPrecondition, pki.RuleIdentityStale)

	token = w.Token(t, w.Register(t, "device", "device/late"), false)
	w.Clock.Advance(time.Hour + time.Second)
	enroll(token, codes.Unauthenticated, pki.RuleToken)
	entries := servertest.Find(w.Entries(t, 0), translog.RequestRefused, "spiffe://"+servertest.TrustDomain+"/device/late")
	if len(entries) != 1 || entries[0].Facts()["rule"] != string(pki.RuleToken) || entries[0].Outcome != translog.Refused {
		t.Errorf("the log has %+v", entries)
	}
}

func TestReplacingTokenRevokesCertificates(t *testing.T) {
	t.Parallel()
	w := servertest.New(t, ground, servertest.Options{})
	old := w.Enrolled(t, "device", "device/1")
	newer := w.Renewed(t, old, servertest.Key(t))
	next := w.Enroll(t, w.Token(t, old.ID, true), servertest.Key(t))
	w.Status(t, old.Certificate, "superseded")
	w.Status(t, newer.Certificate, "superseded")
	w.Status(t, next.Certificate, "good")
	for _, h := range []*servertest.Holder{old, newer} {
		_, err := h.Renew(t.Context(), servertest.Renewal(t, servertest.Key(t)))
		servertest.Refused(t, err, codes.PermissionDenied, pki.RuleRevoked)
	}
	w.Renewed(t, next, servertest.Key(t))
}

// lifetimesOutside returns lifetimes that a profile with the maximum most refuses. Some are not valid durations.
func lifetimesOutside(most time.Duration) []*durationpb.Duration {
	return []*durationpb.Duration{
		durationpb.New(most + time.Second), durationpb.New(time.Second - 1), durationpb.New(0), durationpb.New(-time.Hour),
		{Seconds: 1 << 62}, {Seconds: 60, Nanos: -1},
	}
}

func TestLifetimesAreBounded(t *testing.T) {
	t.Parallel()
	w := servertest.New(t, ground, servertest.Options{})
	holder, renewal := w.Enrolled(t, "workload", "workload/2"), servertest.Renewal(t, servertest.Key(t))
	id := w.Register(t, "workload", "workload/1")
	req := servertest.Enrollment(t, w.Token(t, id, false), servertest.Key(t))
	before, refusals := len(w.Entries(t, 0)), 0
	for _, d := range lifetimesOutside(24 * time.Hour) {
		req.Lifetime, renewal.Lifetime = d, d
		_, err := w.Caller(t, nil).Enroll(t.Context(), req)
		servertest.Refused(t, err, codes.InvalidArgument, pki.RuleLifetime)
		_, err = holder.Renew(t.Context(), renewal)
		servertest.Refused(t, err, codes.InvalidArgument, pki.RuleLifetime)
		refusals++
	}
	for _, id := range [][]byte{nil, make([]byte, 16), make([]byte, 15), bytes.Repeat([]byte{1}, 17)} {
		_, err := w.Caller(t, nil).Enroll(t.Context(), &brevetv1.EnrollRequest{RequestId: id, Evidence: req.GetEvidence(), Csr: req.Csr})
		servertest.Refused(t, err, codes.InvalidArgument, pki.RuleRequest)
		_, err = holder.Renew(t.Context(), &brevetv1.RenewRequest{RequestId: id, Csr: renewal.Csr})
		servertest.Refused(t, err, codes.InvalidArgument, pki.RuleRequest)
		refusals++
	}
	for _, who := range []string{id, holder.ID} { // a refused enrollment is attributed to the identity of its token
		if n := len(servertest.Find(w.Entries(t, before), translog.RequestRefused, who)); n != refusals {
			t.Errorf("the log has %d refusals of %s, want %d", n, who, refusals)
		}
	}
	req.Lifetime, renewal.Lifetime = durationpb.New(24*time.Hour), durationpb.New(24*time.Hour)
	servertest.Must(w.Caller(t, nil).Enroll(t.Context(), req))(t)
	servertest.Must(holder.Renew(t.Context(), renewal))(t)
}
