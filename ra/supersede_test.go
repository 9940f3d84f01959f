package ra_test

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"testing"

	"google.golang.org/grpc/codes"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/enroll"
	"github.com/brevet-pki/brevet/pki"
	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
	"github.com/brevet-pki/brevet/server/servertest"
	"github.com/brevet-pki/brevet/translog"
)

// revoking configures the profiles of devices and operators so that a renewal revokes the predecessor.
var revoking = servertest.Options{Profile: func(name string, c *ca.ProfileConfig) {
	c.RenewalRevokes = name == "device" || name == "operator"
}}

// renewed renews the certificate of h, and returns the new certificate in DER.
func renewed(t *testing.T, h *servertest.Holder, req *brevetv1.RenewRequest) []byte {
	t.Helper()
	return servertest.Must(h.Renew(t.Context(), req))(t).GetCredential().GetCertificate()
}

// checkRefused checks that each renewal request of h is refused with the given rule, and that no certificate is issued.
func checkRefused(t *testing.T, w *servertest.World, h *servertest.Holder, requests map[*brevetv1.RenewRequest]pki.Rule) {
	t.Helper()
	before := rows(t, w, "certificates")
	for req, rule := range requests {
		_, err := h.Renew(t.Context(), req)
		servertest.Refused(t, err, codes.PermissionDenied, rule)
	}
	if n := rows(t, w, "certificates"); n != before {
		t.Errorf("%d certificates were added", n-before)
	}
}

func TestRenewalRevokesPredecessor(t *testing.T) {
	t.Parallel()
	w := servertest.New(t, ground, revoking)
	first := w.Enrolled(t, "device", "device/1")
	w.Status(t, first.Certificate, "good")
	seen := len(w.Entries(t, 0))
	second := w.Renewed(t, first, servertest.Key(t))
	w.Status(t, first.Certificate, "superseded")
	w.Status(t, second.Certificate, "good")
	entries := w.Entries(t, seen)
	issued := servertest.Find(entries, translog.CertificateIssued, first.ID)
	if len(entries) != 1 || len(issued) != 1 || len(issued[0].Changes) != 2 || issued[0].Changes[1].Status.Reason != pki.Superseded {
		t.Errorf("the log has %+v, want one entry with both certificates", entries)
	}
	third := w.Renewed(t, second, second.Key) // with the same key
	w.Status(t, second.Certificate, "superseded")
	w.Status(t, third.Certificate, "good")

	workload := w.Enrolled(t, "workload", "workload/1") // a profile whose renewals revoke nothing
	w.Renewed(t, workload, servertest.Key(t))
	w.Status(t, workload.Certificate, "good")

	// On an open connection, all RPCs except Renew are refused once the certificate is superseded.
	old := w.NewOperator(t, "bob")
	servertest.Must(old.ListCRLs(t.Context(), &brevetv1.ListCRLsRequest{}))(t)
	now := w.Renewed(t, old, servertest.Key(t))
	_, err := old.ListCRLs(t.Context(), &brevetv1.ListCRLsRequest{})
	servertest.Refused(t, err, codes.PermissionDenied, pki.RuleRevoked)
	servertest.Must(now.ListCRLs(t.Context(), &brevetv1.ListCRLsRequest{}))(t)
}

// If the response to a renewal is lost, the device has only a superseded certificate. A repeat of the same request returns the
// new certificate, before and after a restart. Any other request is refused.
func TestLostResponseIsRepeated(t *testing.T) {
	t.Parallel()
	w := servertest.New(t, ground, revoking)
	first, key := w.Enrolled(t, "device", "device/1"), servertest.Key(t)
	req := servertest.Renewal(t, key)
	der := renewed(t, first, req)
	if !bytes.Equal(renewed(t, first, req), der) {
		t.Error("a repeated request returned another certificate")
	}
	another := servertest.Renewal(t, servertest.Key(t))
	another.RequestId = req.GetRequestId()
	others := map[*brevetv1.RenewRequest]pki.Rule{
		servertest.Renewal(t, key):               pki.RuleRevoked,            // another request ID
		servertest.Renewal(t, servertest.Key(t)): pki.RuleRenewalKeyConflict, // another key, as from a clone
		servertest.Renewal(t, first.Key):         pki.RuleRenewalKeyConflict, // the old key
		another:                                  pki.RuleRenewalKeyConflict, // the same request ID with another key
	}
	checkRefused(t, w, first, others)

	w.Restart(t, revoking)
	first = w.Holder(t, first.Certificate.Raw, first.Key)
	if !bytes.Equal(renewed(t, first, req), der) {
		t.Error("after a restart, a repeated request returned another certificate")
	}
	checkRefused(t, w, first, others)

	// The new certificate can be renewed as usual. The first certificate still gets only its own renewal, even if the second
	// renewal has the same key.
	second := w.Holder(t, der, key)
	next := servertest.Renewal(t, key)
	third := renewed(t, second, next)
	if !bytes.Equal(renewed(t, second, next), third) || !bytes.Equal(renewed(t, first, req), der) {
		t.Error("after the second renewal, a repeated request returned another certificate")
	}
	others[next] = pki.RuleRevoked
	checkRefused(t, w, first, others)
	checkRefused(t, w, second, map[*brevetv1.RenewRequest]pki.Rule{req: pki.RuleRevoked, servertest.Renewal(t, key): pki.RuleRevoked})
}

// The client cancels its request, and the server stops, after the certificate is signed and before it is recorded. A repeat of
// the request returns one certificate.
func TestResponseLostInRestart(t *testing.T) {
	t.Parallel()
	store := &servertest.Faulty{}
	faulty := revoking
	faulty.Wrap = store.Wrap
	w := servertest.New(t, ground, faulty)
	first, key := w.Enrolled(t, "device", "device/1"), servertest.Key(t)
	req := servertest.Renewal(t, key)
	arrived, release := store.HoldRecords()
	ctx, giveUp := context.WithCancel(t.Context())
	gaveUp := make(chan error, 1)
	go func() {
		_, err := first.Renew(ctx, req)
		gaveUp <- err
	}()
	<-arrived
	w.Status(t, first.Certificate, "good") // the renewal is not recorded yet
	giveUp()
	servertest.Refused(t, <-gaveUp, codes.Canceled, "")
	release()
	w.Restart(t, revoking) // records the signed certificate, and stops
	w.Status(t, first.Certificate, "superseded")
	der := renewed(t, w.Holder(t, first.Certificate.Raw, first.Key), req)
	w.Status(t, w.Holder(t, der, key).Certificate, "good")
	if n := rows(t, w, "certificates WHERE der IS NOT NULL AND identity = (SELECT id FROM identities WHERE spiffe_id = '"+first.ID+"')"); n != 2 {
		t.Errorf("%d certificates of the device were delivered, want 2", n)
	}
}

func TestConcurrentSupersedingRenewals(t *testing.T) {
	t.Parallel()
	w := servertest.New(t, ground, revoking)
	device, req := w.Enrolled(t, "device", "device/1"), servertest.Renewal(t, servertest.Key(t))
	answers := together(8, func(int) answer {
		resp, err := device.Renew(t.Context(), req)
		return answer{resp.GetCredential().GetCertificate(), err}
	})
	w.Status(t, sameForAll(t, answers), "good")
	winners := 0
	device = w.Enrolled(t, "device", "device/2")
	for _, err := range together(8, func(int) error {
		_, err := device.Renew(t.Context(), servertest.Renewal(t, servertest.Key(t)))
		return err
	}) {
		if err == nil {
			winners++
			continue
		}
		servertest.Refused(t, err, codes.PermissionDenied, pki.RuleRenewalKeyConflict)
	}
	if winners != 1 {
		t.Errorf("renewals with %d of 8 keys succeeded, want 1", winners)
	}
}

// If an operator revoked the certificate, every renewal is refused, even if the reason is superseded or the request has a
// prior certificate.
func TestRenewalAfterOperatorRevoked(t *testing.T) {
	t.Parallel()
	w := servertest.New(t, ground, revoking)
	fresh := func() *brevetv1.RenewRequest { return servertest.Renewal(t, servertest.Key(t)) }
	out := func(h *servertest.Holder, requests ...*brevetv1.RenewRequest) {
		t.Helper()
		all := map[*brevetv1.RenewRequest]pki.Rule{}
		for _, r := range requests {
			all[r] = pki.RuleRevoked
		}
		checkRefused(t, w, h, all)
	}

	never := w.Enrolled(t, "device", "device/never-renewed")
	w.Revoke(t, never.Certificate, "superseded")
	out(never, fresh())

	workload, req := w.Enrolled(t, "workload", "workload/1"), fresh() // its renewals revoke nothing
	renewed(t, workload, req)
	w.Revoke(t, workload.Certificate, "superseded")
	out(workload, req)

	replaced := w.Enrolled(t, "workload", "workload/replaced")
	req = fresh()
	renewed(t, replaced, req)
	w.Enroll(t, w.Token(t, replaced.ID, true), servertest.Key(t))
	out(replaced, req, fresh()) // no key conflict: the replacing token revoked it

	compromised, req := w.Enrolled(t, "device", "device/compromised"), fresh()
	renewed(t, compromised, req)
	w.Revoke(t, compromised.Certificate, "keyCompromise") // after superseded
	out(compromised, req, fresh())

	// A suspended device gets the certificate of its repeated request, which is on hold, and no new certificate.
	held, req := w.Enrolled(t, "device", "device/held"), fresh()
	der := renewed(t, held, req)
	w.Suspend(t, held.ID)
	before := rows(t, w, "certificates")
	if !bytes.Equal(renewed(t, held, req), der) || rows(t, w, "certificates") != before {
		t.Error("a suspended device was issued a certificate")
	}
}

var errLost = errors.New("connection reset by peer")

// lossyClient is a client that loses the responses to its first renewals.
type lossyClient struct {
	*enroll.Client
	loses int
}

func (d *lossyClient) Renew(ctx context.Context, r enroll.RenewRequest) (enroll.Credential, error) {
	c, err := d.Client.Renew(ctx, r)
	if d.loses--; err == nil && d.loses >= 0 {
		return enroll.Credential{}, errLost
	}
	return c, err
}

// forgetRenewalWindow removes the time of delivery and the renewal window from an agent's credential, so that a new
// agent computes the time of renewal from the certificate.
func forgetRenewalWindow(t *testing.T, directory string) {
	t.Helper()
	path := filepath.Join(directory, "current", "origin.json")
	origin := servertest.Must(os.ReadFile(path))(t)
	times := regexp.MustCompile(`,\s*"(obtained":\s*"[^"]*"|renewal_window":\s*\{[^}]*\})`)
	if err := os.WriteFile(path, times.ReplaceAll(origin, nil), 0o600); err != nil {
		t.Fatal(err)
	}
}

// An agent that loses two responses obtains its new certificate, and only one is issued.
func TestAgentLosesResponse(t *testing.T) {
	t.Parallel()
	w := servertest.New(t, ground, servertest.Options{Profile: func(name string, c *ca.ProfileConfig) {
		if name == "device" { // backdated, so that the agent renews immediately
			c.RenewalRevokes, c.Lifetime, c.MaxLifetime, c.Backdate = true, "10m", "10m", "55m"
		}
	}})
	resp := servertest.Must(w.Operator.CreateToken(t.Context(), &brevetv1.CreateTokenRequest{Identity: w.Register(t, "device", "device/1")}))(t)
	w.Secret(t, resp.GetToken())
	authority := &lossyClient{servertest.Must(enroll.NewClient(w.GRPC))(t), 2}
	path, log := t.TempDir(), slog.New(slog.DiscardHandler)
	// run starts the agent, calls work and stops the agent, like a device that wakes up briefly.
	run := func(work func(*enroll.Agent) error) *x509.Certificate {
		t.Helper()
		dir := servertest.Must(enroll.OpenDirectory(path, log))(t)
		agent := servertest.Must(enroll.NewAgent(enroll.Config{Directory: dir, Authority: authority, Log: log}))(t)
		if err := errors.Join(work(agent), dir.Close()); err != nil {
			t.Fatal(err)
		}
		return agent.Pair().Certificate
	}
	first := run(func(a *enroll.Agent) error {
		return a.Enroll(t.Context(), servertest.Must(enroll.ParseToken(resp.GetToken()))(t))
	})
	forgetRenewalWindow(t, path)
	for range 2 {
		if now := run(func(a *enroll.Agent) error {
			if err := a.Refresh(t.Context()); !errors.Is(err, errLost) {
				return fmt.Errorf("the error of an agent that lost a response: %w", err)
			}
			return nil
		}); !now.Equal(first) {
			t.Error("the agent has a certificate although the response was lost")
		}
		w.Status(t, first, "superseded")
	}
	second := run(func(a *enroll.Agent) error { return a.Refresh(t.Context()) })
	if second.Equal(first) {
		t.Error("the agent still has the old certificate")
	}
	w.Status(t, second, "good")
	if n := rows(t, w, "certificates WHERE profile = 'device'"); n != 2 {
		t.Errorf("%d certificates are on record after an enrollment and a renewal, want 2", n)
	}
}
