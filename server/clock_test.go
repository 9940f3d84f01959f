package server_test

import (
	"crypto/x509"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ocsp"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/brevet-pki/brevet/pki"
	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
	"github.com/brevet-pki/brevet/server/servertest"
	"github.com/brevet-pki/brevet/store/retention"
)

// awaitReady waits until the server is ready after the clock was set.
func awaitReady(t *testing.T, w *servertest.World) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		if code, body := getOperations(t, w, "/readyz"); code == http.StatusOK {
			break
		} else if time.Now().After(deadline) {
			t.Fatalf("not ready after the clock was set: %s", body)
		}
	}
}

// awaitCRL waits until the number of the issuing CA's CRL is greater than over, and returns that CRL.
func awaitCRL(t *testing.T, w *servertest.World, over *big.Int) *x509.RevocationList {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		resp := servertest.Must(http.Get("http://" + w.HTTP + "/crl/" + pki.IssuerOf(w.Issuing).Short() + ".crl"))(t)
		der := servertest.Must(io.ReadAll(resp.Body))(t)
		servertest.Must(0, resp.Body.Close())(t)
		if list, err := x509.ParseRevocationList(der); err == nil && list.Number.Cmp(over) > 0 {
			return list
		} else if time.Now().After(deadline) {
			t.Fatalf("no CRL with a number above %v: %v", over, err)
		}
	}
}

// listsCertificate reports whether a CRL contains a certificate.
func listsCertificate(list *x509.RevocationList, c *x509.Certificate) bool {
	for _, e := range list.RevokedCertificateEntries {
		if e.SerialNumber.Cmp(c.SerialNumber) == 0 {
			return true
		}
	}
	return false
}

// The server's clock is an hour ahead for a while. Revoked certificates never become good, and no serial number or CRL
// number is used twice. Refusals because of the time mention the clock. When the clock is right again, everything
// works.
func TestTheServersClockIsSet(t *testing.T) {
	t.Parallel()
	// The clock that is right in this test is an hour behind the machine's. The clock that is ahead is then at the
	// machine's time, which GnuTLS uses.
	w := servertest.New(t, ground, servertest.Options{Ahead: -time.Hour - time.Second})
	nobody := w.Caller(t, nil)
	before, revoked := w.Enrolled(t, "device", "device/before"), w.Enrolled(t, "device", "device/revoked")
	w.Revoke(t, revoked.Certificate, "keyCompromise")
	token := w.Token(t, w.Register(t, "device", "device/token"), false) // valid for an hour
	first := awaitCRL(t, w, big.NewInt(0))

	w.Clock.Advance(time.Hour + time.Second)
	awaitReady(t, w)
	_, err := nobody.Enroll(t.Context(), servertest.Enrollment(t, token, servertest.Key(t)))
	servertest.Refused(t, err, codes.Unauthenticated, pki.RuleToken)
	ahead := w.Enrolled(t, "device", "device/ahead")
	early := w.Enrolled(t, "device", "device/early")
	w.Revoke(t, early.Certificate, "superseded") // the revocation date is in the future when the clock is right again
	made := w.Token(t, w.Register(t, "device", "device/made"), false)
	renewed := w.Renewed(t, before, servertest.Key(t))
	w.Status(t, revoked.Certificate, "keyCompromise")
	w.Status(t, ahead.Certificate, "good")
	during := awaitCRL(t, w, first.Number)
	for !listsCertificate(during, early.Certificate) {
		during = awaitCRL(t, w, during.Number)
	}

	w.Clock.Advance(-time.Hour - time.Second)
	awaitReady(t, w)
	for _, h := range []*servertest.Holder{ahead, renewed} {
		_, err = h.Renew(t.Context(), servertest.Renewal(t, servertest.Key(t)))
		servertest.Refused(t, err, codes.Unauthenticated, pki.RuleExpired)
		if !strings.Contains(err.Error(), "look at the server's clock") {
			t.Errorf("the refusal does not mention the clock: %v", err)
		}
	}
	w.Status(t, revoked.Certificate, "keyCompromise")
	w.Status(t, early.Certificate, "superseded")
	w.Status(t, before.Certificate, "good")
	after := w.Enroll(t, made, servertest.Key(t))
	w.Renewed(t, after, servertest.Key(t))
	w.Revoke(t, after.Certificate, "superseded")
	list := awaitCRL(t, w, during.Number)
	for !listsCertificate(list, after.Certificate) {
		list = awaitCRL(t, w, list.Number)
	}
	if !listsCertificate(list, early.Certificate) || !listsCertificate(list, revoked.Certificate) || list.ThisUpdate.After(w.Clock.Now()) {
		t.Errorf("the CRL of %s lacks a revoked certificate", list.ThisUpdate)
	}
	w.Enroll(t, token, servertest.Key(t)) // it is valid again
	w.Clock.Advance(time.Hour + time.Second)
	awaitReady(t, w)
	w.Renewed(t, ahead, servertest.Key(t))
	w.Renewed(t, renewed, servertest.Key(t))
	w.Status(t, early.Certificate, "superseded")
	for i, step := range []time.Duration{-time.Hour, 30 * time.Minute, -15 * time.Minute, 45 * time.Minute} { // back and forth
		w.Clock.Advance(step)
		awaitReady(t, w)
		w.Status(t, early.Certificate, "superseded")
		w.Status(t, revoked.Certificate, "keyCompromise")
		h := w.Renewed(t, w.Enrolled(t, "device", fmt.Sprintf("device/%d", i)), servertest.Key(t))
		w.Status(t, h.Certificate, "good")
		w.Revoke(t, h.Certificate, "superseded")
		w.Status(t, h.Certificate, "superseded")
		for !listsCertificate(list, h.Certificate) {
			list = awaitCRL(t, w, list.Number)
		}
	}
	seen := map[pki.Serial]bool{}
	for _, c := range w.Inventory(t) {
		if seen[c.Ref.Serial] {
			t.Errorf("serial number %s is used twice", c.Ref.Serial)
		}
		seen[c.Ref.Serial] = true
	}
}

// With a clock before the CA's validity the server is not ready. It recovers when the clock is right.
func TestTheServersClockIsFarBehind(t *testing.T) {
	t.Parallel()
	w := servertest.New(t, ground, servertest.Options{})
	device := w.Enrolled(t, "device", "device/1")
	enrollment := servertest.Enrollment(t, w.Token(t, w.Register(t, "device", "device/2"), false), servertest.Key(t))
	w.Clock.Advance(-2 * time.Hour) // an hour before the issuing CA's notBefore
	_, err := w.Caller(t, nil).Enroll(t.Context(), enrollment)
	checkUnavailable(t, err)
	if !strings.Contains(w.Log.String(), "check the server's clock") {
		t.Error("the log does not mention the clock")
	}
	_, err = device.Renew(t.Context(), servertest.Renewal(t, servertest.Key(t)))
	servertest.Refused(t, err, codes.Unauthenticated, pki.RuleExpired)
	_, err = w.Operator.ListIdentities(t.Context(), &brevetv1.ListIdentitiesRequest{})
	servertest.Refused(t, err, codes.Unauthenticated, pki.RuleExpired)
	if !strings.Contains(status.Convert(err).Message(), "clock") {
		t.Errorf("the refusal does not mention the clock: %v", err)
	}
	w.Clock.Advance(2 * time.Hour)
	awaitReady(t, w)
	w.Status(t, device.Certificate, "good")
	servertest.Must(w.Caller(t, nil).Enroll(t.Context(), enrollment))(t)
	servertest.Must(device.Renew(t.Context(), servertest.Renewal(t, servertest.Key(t))))(t)
}

// A server that starts with a clock a year ahead removes no records, although its log entries have that time. When the
// clock is right again, all records are there.
func TestClockAYearAheadExpiresNothing(t *testing.T) {
	t.Parallel()
	w := servertest.New(t, ground, servertest.Options{})
	device := w.Enrolled(t, "device", "device/1")
	swept := func() {
		t.Helper()
		for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(5 * time.Millisecond) {
			if _, text := getOperations(t, w, "/metrics"); metric(t, text, "brevet_retention_last_run_timestamp_seconds") > 0 {
				return
			}
			if time.Now().After(deadline) {
				t.Fatal("the sweeper does not run")
			}
		}
	}
	swept()
	number := awaitCRL(t, w, big.NewInt(0)).Number
	year := 365 * 24 * time.Hour
	w.StopServer(t)
	w.Clock.Advance(year)
	for range 2 { // at the second start, the log contains entries whose time is a year ahead
		w.Serve(t, servertest.Options{})
		swept()
		number = awaitCRL(t, w, number).Number
		w.StopServer(t)
	}
	w.Clock.Advance(-year)
	w.Serve(t, servertest.Options{})
	for list := awaitCRL(t, w, number); list.ThisUpdate.After(w.Clock.Now()); {
		list = awaitCRL(t, w, list.Number) // the earlier CRLs are not valid yet
	}
	w.Status(t, device.Certificate, "good")
	stats := servertest.Must(w.Operator.GetStats(t.Context(), &brevetv1.GetStatsRequest{}))(t)
	if c := stats.GetCertificates(); c.GetGood().GetValue() < 3 || c.GetRemovable().GetValue() != 0 || stats.GetRetention().GetRemovedCertificates() != 0 {
		t.Errorf("GetStats returns %v", stats)
	}
	if len(stats.GetFiles()) == 0 || stats.GetIdentities().GetEnrolled().GetValue() < 3 || stats.GetRetention().GetRetention().AsDuration() != retention.Default {
		t.Errorf("GetStats returns %v", stats)
	}
}

// While the clock is an hour ahead, operators revoke certificates in bulk and a key's holder reports its compromise.
// These revocations stay in effect when the clock is set back, before and after they are applied to the records.
func TestBulkRevocationsWhileTheClockIsSet(t *testing.T) {
	t.Parallel()
	proceed := make(chan struct{})
	options := withSlowBulk(proceed)
	options.Ahead = -time.Hour - time.Second
	w := servertest.New(t, ground, options)
	batch := func(label string) *brevetv1.CertificateSelection {
		return &brevetv1.CertificateSelection{Label: &brevetv1.Label{Name: "batch", Value: label}}
	}
	old := w.Enrolled(t, "device", "device/old", labelled("batch", "1"))
	lost := w.Enrolled(t, "device", "device/lost")
	kept := w.Enrolled(t, "device", "device/kept", labelled("batch", "2"))

	w.Clock.Advance(time.Hour + time.Second)
	awaitReady(t, w)
	early := w.Enrolled(t, "device", "device/early", labelled("batch", "1"))
	bulk := bulkRevoke(t, w, batch("1"), "privilegeWithdrawn")
	if bulk.GetTotal() != 2 {
		t.Errorf("the bulk revocation is %v, want both of the batch", bulk)
	}
	servertest.Must(w.Caller(t, nil).RevokeCompromisedKey(t.Context(), statementOf(t, lost.Key, servertest.TrustDomain)))(t)
	checkStatuses := func(rules map[*servertest.Holder]pki.Rule) {
		t.Helper()
		w.Status(t, old.Certificate, "privilegeWithdrawn")
		w.Status(t, early.Certificate, "privilegeWithdrawn")
		w.Status(t, lost.Certificate, "keyCompromise")
		w.Status(t, kept.Certificate, "good")
		for h, rule := range rules {
			_, err := h.Renew(t.Context(), servertest.Renewal(t, servertest.Key(t)))
			if got := servertest.RuleOf(err); got != rule {
				t.Errorf("%s: %v, want %s", h.ID, err, rule)
			}
		}
	}
	all := map[*servertest.Holder]pki.Rule{old: pki.RuleRevoked, early: pki.RuleRevoked, lost: pki.RuleRevoked}
	checkStatuses(all)

	w.Clock.Advance(-time.Hour - time.Second)
	awaitReady(t, w)
	back := map[*servertest.Holder]pki.Rule{old: pki.RuleRevoked, early: pki.RuleExpired, lost: pki.RuleRevoked}
	checkStatuses(back)
	_, err := w.Operator.CreateBulkRevocation(t.Context(), &brevetv1.CreateBulkRevocationRequest{
		Selection: batch("2"), InvalidityTime: timestamppb.New(w.Clock.Now().Add(time.Hour)), // as if the client's clock were ahead
	})
	servertest.Refused(t, err, codes.InvalidArgument, pki.RuleRequest)
	if !strings.Contains(err.Error(), "server time is "+w.Clock.Now().UTC().Format("2006")) {
		t.Errorf("the refusal does not contain the server's time: %v", err)
	}
	later := bulkRevoke(t, w, &brevetv1.CertificateSelection{Profile: "device", Label: &brevetv1.Label{Name: "batch", Value: "1"}}, "keyCompromise")
	if later.GetTotal() != 2 { // keyCompromise replaces another reason of certificates that are revoked already
		t.Errorf("the later bulk revocation is %v", later)
	}
	close(proceed)
	awaitApplied(t, w, bulk.GetId())
	awaitApplied(t, w, later.GetId())
	w.Status(t, old.Certificate, "keyCompromise")
	w.Status(t, early.Certificate, "keyCompromise")
	w.Status(t, kept.Certificate, "good")

	w.Clock.Advance(time.Hour + time.Second)
	awaitReady(t, w)
	list := awaitCRL(t, w, big.NewInt(0))
	for !listsCertificate(list, old.Certificate) || !listsCertificate(list, early.Certificate) || !listsCertificate(list, lost.Certificate) {
		list = awaitCRL(t, w, list.Number)
	}
	if listsCertificate(list, kept.Certificate) {
		t.Error("the CRL lists a certificate that was not revoked")
	}
	w.Renewed(t, kept, servertest.Key(t))
}

// While the clock is ahead, changes also affect certificates that are expired by that clock, and report them as
// expired. The changes stay in effect when the clock is right again.
func TestChangesWhileTheClockIsAhead(t *testing.T) {
	t.Parallel()
	const ahead = 14 * time.Hour
	w := servertest.New(t, ground, servertest.Options{Ahead: -ahead})
	certificates := map[string]*servertest.Holder{}
	for _, name := range []string{"retired", "suspended", "single", "compromised", "selected", "labelled", "replaced", "kept"} {
		certificates[name] = w.Enrolled(t, "workload", "workload/"+name, labelled("name", name)) // valid for an hour
	}
	boss := w.NewOperator(t, "boss") // valid for twelve hours
	idOf := func(name string) string { return certificates[name].ID }

	w.Clock.Advance(ahead)
	awaitReady(t, w)
	ctx, operator := t.Context(), w.NewOperator(t, "late")
	w.Operator = operator
	for what, changed := range map[string]*brevetv1.AffectedCertificates{
		"retire":   servertest.Must(operator.RetireIdentity(ctx, &brevetv1.RetireIdentityRequest{Id: idOf("retired")}))(t).GetAffected(),
		"operator": servertest.Must(operator.RetireIdentity(ctx, &brevetv1.RetireIdentityRequest{Id: boss.ID}))(t).GetAffected(),
		"suspend":  servertest.Must(operator.SuspendIdentity(ctx, &brevetv1.SuspendIdentityRequest{Id: idOf("suspended")}))(t).GetAffected(),
		"single": servertest.Must(operator.RevokeCertificate(ctx, &brevetv1.RevokeCertificateRequest{
			Serial: servertest.SerialBytes(certificates["single"].Certificate), Reason: servertest.Reason("superseded"),
		}))(t).GetAffected(),
		"key": servertest.Must(operator.RevokeCompromisedKey(ctx, statementOf(t, certificates["compromised"].Key, servertest.TrustDomain)))(t).GetAffected(),
	} {
		if changed.GetValid() != 0 || changed.GetExpired() != 1 {
			t.Errorf("%s: affected %v, want 1 expired", what, changed)
		}
	}
	for what, selection := range map[string]*brevetv1.CertificateSelection{"identity": {Identity: idOf("selected")}, "label": {Label: &brevetv1.Label{Name: "name", Value: "labelled"}}} {
		dry := servertest.Must(operator.CreateBulkRevocation(ctx, &brevetv1.CreateBulkRevocationRequest{Selection: selection, DryRun: true}))(t).GetBulkRevocation()
		bulk := bulkRevoke(t, w, selection, "superseded")
		if dry.GetTotal() != 1 || dry.GetExpired() != 1 || bulk.GetTotal() != 1 || bulk.GetExpired() != 1 {
			t.Errorf("%s: counted %v and affected %v, want 1 expired", what, dry, bulk)
		}
	}
	w.Enroll(t, w.Token(t, idOf("replaced"), true), servertest.Key(t))

	w.Clock.Advance(-ahead)
	awaitReady(t, w)
	for deadline := time.Now().Add(30 * time.Second); w.OCSP(t, certificates["kept"].Certificate).Status == ocsp.Unknown; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) { // the responder has dropped expired statuses, and must read them again
			t.Fatal("the responder does not know a status")
		}
	}
	for name, want := range map[string]string{
		"retired": "cessationOfOperation", "suspended": "certificateHold", "single": "superseded", "compromised": "keyCompromise",
		"selected": "superseded", "labelled": "superseded", "replaced": "superseded", "kept": "good",
	} {
		w.Status(t, certificates[name].Certificate, want)
	}
	w.Status(t, boss.Certificate, "cessationOfOperation")
	_, err := boss.CreateIdentity(ctx, &brevetv1.CreateIdentityRequest{Id: "device/1", Spec: &brevetv1.IdentitySpec{Kind: brevetv1.IdentityKind_IDENTITY_KIND_DEVICE}})
	servertest.Refused(t, err, codes.PermissionDenied, pki.RuleRevoked)
	w.Operator = w.NewOperator(t, "ann")
	resumed := servertest.Must(w.Operator.ResumeIdentity(ctx, &brevetv1.ResumeIdentityRequest{Id: idOf("suspended")}))(t).GetAffected()
	if resumed.GetValid() != 1 || resumed.GetExpired() != 0 {
		t.Errorf("resuming affected %v, want 1 valid", resumed)
	}
	w.Status(t, certificates["suspended"].Certificate, "good")
	w.Clock.Advance(ahead)
	awaitReady(t, w)
}

// A change does not affect certificates that expired before the age of the records (retention.Store).
func TestChangesSkipExpiredCertificates(t *testing.T) {
	t.Parallel()
	const past = 3 * time.Hour
	w := servertest.New(t, ground, servertest.Options{Ahead: -past})
	old := w.Enrolled(t, "workload", "workload/1")
	w.Clock.Advance(past)
	awaitReady(t, w)
	servertest.Must(w.Stores.Retention.Advance(t.Context(), past, w.Clock.Now()))(t)
	w.Enroll(t, w.Token(t, old.ID, true), servertest.Key(t))
	changed := servertest.Must(w.Operator.RetireIdentity(t.Context(), &brevetv1.RetireIdentityRequest{Id: old.ID}))(t).GetAffected()
	if changed.GetValid() != 1 || changed.GetExpired() != 0 {
		t.Errorf("retiring affected %v, want the valid certificate", changed)
	}
}
