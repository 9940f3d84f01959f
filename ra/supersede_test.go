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

// revoking is a world in which renewals revoke what they renew, of devices and operators.
var revoking = servertest.Options{Profile: func(name string, c *ca.ProfileConfig) {
	c.RenewalRevokes = name == "device" || name == "operator"
}}

// renewed sends a renewal as the holder of a certificate, and returns the certificate it is answered with.
func renewed(t *testing.T, h *servertest.Holder, req *brevetv1.RenewRequest) []byte {
	t.Helper()
	return servertest.Must(h.Renew(t.Context(), req))(t).GetCredential().GetCertificate()
}

// keptOut checks that a holder is answered with nothing, whatever it repeats or asks anew, and that nothing is issued.
func keptOut(t *testing.T, w *servertest.World, h *servertest.Holder, requests map[*brevetv1.RenewRequest]pki.Rule) {
	t.Helper()
	before := rows(t, w, "certificates")
	for req, rule := range requests {
		_, err := h.Renew(t.Context(), req)
		servertest.Refused(t, err, codes.PermissionDenied, rule)
	}
	if n := rows(t, w, "certificates"); n != before {
		t.Errorf("%d certificates more are on record", n-before)
	}
}

func TestARenewalRevokesItsPredecessor(t *testing.T) {
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
	third := w.Renewed(t, second, second.Key) // with the key it has
	w.Status(t, second.Certificate, "superseded")
	w.Status(t, third.Certificate, "good")

	workload := w.Enrolled(t, "workload", "workload/1") // of another profile
	w.Renewed(t, workload, servertest.Key(t))
	w.Status(t, workload.Certificate, "good")

	// Calls on connections that are open are refused too, but for the renewal.
	old := w.NewOperator(t, "bob")
	servertest.Must(old.ListCRLs(t.Context(), &brevetv1.ListCRLsRequest{}))(t)
	now := w.Renewed(t, old, servertest.Key(t))
	_, err := old.ListCRLs(t.Context(), &brevetv1.ListCRLsRequest{})
	servertest.Refused(t, err, codes.PermissionDenied, pki.RuleRevoked)
	servertest.Must(now.ListCRLs(t.Context(), &brevetv1.ListCRLsRequest{}))(t)
}

// A device that has not heard the answer to its renewal has a superseded certificate alone. It is told again, before and after
// a restart, and nobody else is.
func TestALostAnswerIsRepeated(t *testing.T) {
	t.Parallel()
	w := servertest.New(t, ground, revoking)
	first, key := w.Enrolled(t, "device", "device/1"), servertest.Key(t)
	req := servertest.Renewal(t, key)
	der := renewed(t, first, req)
	if !bytes.Equal(renewed(t, first, req), der) {
		t.Error("the same request was given another certificate")
	}
	another := servertest.Renewal(t, servertest.Key(t))
	another.RequestId = req.GetRequestId()
	others := map[*brevetv1.RenewRequest]pki.Rule{
		servertest.Renewal(t, key):               pki.RuleRevoked,            // another request ID
		servertest.Renewal(t, servertest.Key(t)): pki.RuleRenewalKeyConflict, // of somebody else with a copy
		servertest.Renewal(t, first.Key):         pki.RuleRenewalKeyConflict, // the key it has
		another:                                  pki.RuleRenewalKeyConflict, // the same request ID, for another key
	}
	keptOut(t, w, first, others)

	w.Restart(t, revoking)
	first = w.Holder(t, first.Certificate.Raw, first.Key)
	if !bytes.Equal(renewed(t, first, req), der) {
		t.Error("after a restart the same request was given another certificate")
	}
	keptOut(t, w, first, others)

	// What came of it renews as ever, and the first hears of its own renewal alone, be it with the same key.
	second := w.Holder(t, der, key)
	next := servertest.Renewal(t, key)
	third := renewed(t, second, next)
	if !bytes.Equal(renewed(t, second, next), third) || !bytes.Equal(renewed(t, first, req), der) {
		t.Error("after the second renewal, a repeated request was given another certificate")
	}
	others[next] = pki.RuleRevoked
	keptOut(t, w, first, others)
	keptOut(t, w, second, map[*brevetv1.RenewRequest]pki.Rule{req: pki.RuleRevoked, servertest.Renewal(t, key): pki.RuleRevoked})
}

// The client gives up, and the server stops, while the certificate is signed and not yet on record: whatever became of it, the same
// request gets one certificate.
func TestAnAnswerThatIsLostWithTheServer(t *testing.T) {
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
	w.Status(t, first.Certificate, "good") // as long as nothing is on record
	giveUp()
	servertest.Refused(t, <-gaveUp, codes.Canceled, "")
	release()
	w.Restart(t, revoking) // which records what is signed, and stops
	w.Status(t, first.Certificate, "superseded")
	der := renewed(t, w.Holder(t, first.Certificate.Raw, first.Key), req)
	w.Status(t, w.Holder(t, der, key).Certificate, "good")
	if n := rows(t, w, "certificates WHERE der IS NOT NULL AND identity = (SELECT id FROM identities WHERE spiffe_id = '"+first.ID+"')"); n != 2 {
		t.Errorf("%d certificates of the device were released, want its first and its second", n)
	}
}

func TestOneSupersedingRenewalEightTimesAtOnce(t *testing.T) {
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
		t.Errorf("%d of eight keys followed one certificate", winners)
	}
}

// Whom an operator has taken the certificate from is told nothing, be it superseded and be there an answer.
func TestRevokedByAnOperator(t *testing.T) {
	t.Parallel()
	w := servertest.New(t, ground, revoking)
	fresh := func() *brevetv1.RenewRequest { return servertest.Renewal(t, servertest.Key(t)) }
	out := func(h *servertest.Holder, requests ...*brevetv1.RenewRequest) {
		t.Helper()
		all := map[*brevetv1.RenewRequest]pki.Rule{}
		for _, r := range requests {
			all[r] = pki.RuleRevoked
		}
		keptOut(t, w, h, all)
	}

	never := w.Enrolled(t, "device", "device/never-renewed")
	w.Revoke(t, never.Certificate, "superseded")
	out(never, fresh())

	workload, req := w.Enrolled(t, "workload", "workload/1"), fresh() // whose renewals revoke nothing
	renewed(t, workload, req)
	w.Revoke(t, workload.Certificate, "superseded")
	out(workload, req)

	replaced := w.Enrolled(t, "workload", "workload/replaced")
	req = fresh()
	renewed(t, replaced, req)
	w.Enroll(t, w.Token(t, replaced.ID, true), servertest.Key(t))
	out(replaced, req, fresh()) // which is no clone's: an operator has seen to it

	compromised, req := w.Enrolled(t, "device", "device/compromised"), fresh()
	renewed(t, compromised, req)
	w.Revoke(t, compromised.Certificate, "keyCompromise") // later than superseded
	out(compromised, req, fresh())

	// Who is suspended hears of the certificate that is on hold, and is issued nothing.
	held, req := w.Enrolled(t, "device", "device/held"), fresh()
	der := renewed(t, held, req)
	w.Suspend(t, held.ID)
	before := rows(t, w, "certificates")
	if !bytes.Equal(renewed(t, held, req), der) || rows(t, w, "certificates") != before {
		t.Error("a suspended device was issued a certificate")
	}
}

var errLost = errors.New("connection reset by peer")

// deaf is a server whose first answers to renewals are lost on the way.
type deaf struct {
	*enroll.Client
	loses int
}

func (d *deaf) Renew(ctx context.Context, r enroll.RenewRequest) (enroll.Credential, error) {
	c, err := d.Client.Renew(ctx, r)
	if d.loses--; err == nil && d.loses >= 0 {
		return enroll.Credential{}, errLost
	}
	return c, err
}

// The agent itself gets through, and is given one certificate.
func TestAnAgentThatLosesTheAnswer(t *testing.T) {
	t.Parallel()
	w := servertest.New(t, ground, servertest.Options{Profile: func(name string, c *ca.ProfileConfig) {
		if name == "device" { // with two thirds of its life behind it, so that the agent renews at once
			c.RenewalRevokes, c.Lifetime, c.MaxLifetime, c.Backdate = true, "10m", "10m", "55m"
		}
	}})
	resp := servertest.Must(w.Operator.CreateToken(t.Context(), &brevetv1.CreateTokenRequest{Identity: w.Register(t, "device", "device/1")}))(t)
	w.Secret(t, resp.GetToken())
	authority := &deaf{servertest.Must(enroll.NewClient(w.GRPC))(t), 2}
	path, log := t.TempDir(), slog.New(slog.DiscardHandler)
	// run starts the agent, has it do its work and stops it, as a device does that wakes up for a moment.
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
	// A device that does not know when its certificate arrived, nor when to renew it, goes by the certificate.
	origins := servertest.Must(filepath.Glob(filepath.Join(path, "*", "origin.json")))(t)
	origin := servertest.Must(os.ReadFile(origins[0]))(t)
	if err := os.WriteFile(origins[0], regexp.MustCompile(`,\s*"(obtained":\s*"[^"]*"|renewal_window":\s*\{[^}]*\})`).ReplaceAll(origin, nil), 0o600); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if now := run(func(a *enroll.Agent) error {
			if err := a.Refresh(t.Context()); !errors.Is(err, errLost) {
				return fmt.Errorf("the answer was lost, and the agent says %w", err)
			}
			return nil
		}); !now.Equal(first) {
			t.Error("the agent has a certificate that it was never given")
		}
		w.Status(t, first, "superseded")
	}
	second := run(func(a *enroll.Agent) error { return a.Refresh(t.Context()) })
	if second.Equal(first) {
		t.Error("the agent has the certificate that it had")
	}
	w.Status(t, second, "good")
	if n := rows(t, w, "certificates WHERE profile = 'device'"); n != 2 {
		t.Errorf("%d certificates are on record for an enrollment and a renewal", n)
	}
}
