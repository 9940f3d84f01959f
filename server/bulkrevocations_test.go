package server_test

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"fmt"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/brevet-pki/brevet/pki"
	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
	"github.com/brevet-pki/brevet/revocation"
	"github.com/brevet-pki/brevet/server"
	"github.com/brevet-pki/brevet/server/servertest"
)

// slowRecords is a store that applies a bulk revocation only to two records for each value that it receives from
// proceed. Once proceed is closed, it applies bulk revocations without waiting.
type slowRecords struct {
	revocation.Store
	proceed <-chan struct{}
}

func (s slowRecords) ApplyBulk(ctx context.Context, id int64, _ int, at time.Time) ([]pki.StatusChange, revocation.BulkRevocation, error) {
	select {
	case <-s.proceed:
		return s.Store.ApplyBulk(ctx, id, 2, at) // two records, so that a small bulk revocation takes several steps
	case <-ctx.Done():
		return nil, revocation.BulkRevocation{}, ctx.Err()
	}
}

// withSlowBulk returns options for a world with slowRecords.
func withSlowBulk(proceed <-chan struct{}) servertest.Options {
	return servertest.Options{Wrap: func(s server.Stores) server.Stores {
		s.Revocation = slowRecords{s.Revocation, proceed}
		return s
	}}
}

// labelled returns an edit that sets the only label of an identity to be registered.
func labelled(name, value string) func(*brevetv1.CreateIdentityRequest) {
	return func(r *brevetv1.CreateIdentityRequest) { r.Spec.Labels = map[string]string{name: value} }
}

// bulkRevoke creates a bulk revocation after a dry run, and checks that both have the same total.
func bulkRevoke(t *testing.T, w *servertest.World, s *brevetv1.CertificateSelection, reason string) *brevetv1.BulkRevocation {
	t.Helper()
	req := &brevetv1.CreateBulkRevocationRequest{Selection: s, Reason: servertest.Reason(reason), Comment: "stolen", DryRun: true}
	counted := servertest.Must(w.Operator.CreateBulkRevocation(t.Context(), req))(t).GetBulkRevocation()
	req.DryRun = false
	bulk := servertest.Must(w.Operator.CreateBulkRevocation(t.Context(), req))(t).GetBulkRevocation()
	if counted.GetTotal() != bulk.GetTotal() || counted.GetId() != "" || bulk.GetId() == "" {
		t.Errorf("the dry run counted %v, and the bulk revocation is %v", counted, bulk)
	}
	return bulk
}

// awaitApplied waits until a bulk revocation is applied to all records, and returns it.
func awaitApplied(t *testing.T, w *servertest.World, id string) *brevetv1.BulkRevocation {
	t.Helper()
	for {
		bulk := servertest.Must(w.Operator.GetBulkRevocation(t.Context(), &brevetv1.GetBulkRevocationRequest{Id: id}))(t).GetBulkRevocation()
		if bulk.GetState() == brevetv1.BulkRevocationState_BULK_REVOCATION_STATE_DONE {
			return bulk
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// When CreateBulkRevocation returns, all selected certificates are revoked, although no record is changed yet. They are
// also revoked after a restart.
func TestBulkRevocationIsInEffectAtOnce(t *testing.T) {
	t.Parallel()
	proceed := make(chan struct{})
	w := servertest.New(t, ground, withSlowBulk(proceed))
	var stolen []*servertest.Holder
	for i := range 5 {
		stolen = append(stolen, w.Enrolled(t, "device", fmt.Sprintf("device/%d", i), labelled("batch", "7")))
	}
	w.Suspend(t, stolen[0].ID) // the bulk revocation must also revoke a certificate that is on hold
	other := w.Enrolled(t, "device", "device/other", labelled("batch", "8"))
	bulk := bulkRevoke(t, w, &brevetv1.CertificateSelection{Label: &brevetv1.Label{Name: "batch", Value: "7"}}, "privilegeWithdrawn")
	if bulk.GetTotal() != 5 || bulk.GetApplied() != 0 || bulk.GetState() != brevetv1.BulkRevocationState_BULK_REVOCATION_STATE_APPLYING {
		t.Errorf("the bulk revocation is %v", bulk)
	}
	checkStatuses := func() {
		t.Helper()
		for _, h := range stolen {
			w.Status(t, h.Certificate, "privilegeWithdrawn")
			_, err := h.Renew(t.Context(), servertest.Renewal(t, servertest.Key(t)))
			servertest.Refused(t, err, codes.PermissionDenied, pki.RuleRevoked)
			c := servertest.Must(w.Operator.GetCertificate(t.Context(), &brevetv1.GetCertificateRequest{Serial: servertest.SerialBytes(h.Certificate)}))(t)
			if c.GetCertificate().GetReason() != servertest.Reason("privilegeWithdrawn") {
				t.Errorf("the record is %v", c)
			}
		}
		w.Status(t, other.Certificate, "good")
	}
	checkStatuses()
	_, err := w.Operator.RevokeCertificate(t.Context(), &brevetv1.RevokeCertificateRequest{Serial: servertest.SerialBytes(stolen[1].Certificate), Reason: servertest.Reason("superseded")})
	servertest.Refused(t, err, codes.FailedPrecondition, pki.RuleAlreadyRevoked)
	_, err = w.Operator.ResumeIdentity(t.Context(), &brevetv1.ResumeIdentityRequest{Id: stolen[0].ID})
	servertest.Refused(t, err, codes.OK, "") // the identity is enrolled again, but its certificate stays revoked
	later := w.Enrolled(t, "device", "device/later", labelled("batch", "7"))
	w.Status(t, later.Certificate, "good")

	w.Restart(t, withSlowBulk(proceed))
	w.Operator = w.Holder(t, w.Operator.Certificate.Raw, w.Operator.Key)
	for i, h := range stolen {
		stolen[i] = w.Holder(t, h.Certificate.Raw, h.Key)
	}
	checkStatuses()
	w.Status(t, later.Certificate, "good")
	close(proceed)
	if bulk := awaitApplied(t, w, bulk.GetId()); bulk.GetApplied() != 5 || bulk.GetTotal() != 5 {
		t.Errorf("the bulk revocation is %v", bulk)
	}
	checkStatuses()
}

func TestSelections(t *testing.T) {
	t.Parallel()
	w := servertest.New(t, ground, servertest.Options{})
	all := func() (n int64) {
		t.Helper()
		for _, c := range w.Inventory(t) {
			if c.Status.State == pki.Good {
				n++
			}
		}
		return n
	}
	begin := time.Now()
	a := w.Enrolled(t, "device", "device/a", labelled("site", "north"))
	b := w.Enrolled(t, "workload", "workload/b", labelled("site", "north"))
	renewed := w.Renewed(t, a, servertest.Key(t))
	hash := servertest.Must(pki.HashKey(b.Key.Public()))(t).Bytes()
	end := time.Now().Add(time.Millisecond)
	for name, c := range map[string]struct {
		selection *brevetv1.CertificateSelection
		want      int64
	}{
		"label":                   {&brevetv1.CertificateSelection{Label: &brevetv1.Label{Name: "site", Value: "north"}}, 3},
		"label without matches":   {&brevetv1.CertificateSelection{Label: &brevetv1.Label{Name: "site", Value: "south"}}, 0},
		"label and profile":       {&brevetv1.CertificateSelection{Label: &brevetv1.Label{Name: "site", Value: "north"}, Profile: "workload"}, 1},
		"identity":                {&brevetv1.CertificateSelection{Identity: "device/a"}, 2},
		"lineage":                 {&brevetv1.CertificateSelection{LineageSerial: servertest.SerialBytes(a.Certificate)}, 2},
		"lineage, last member":    {&brevetv1.CertificateSelection{LineageSerial: servertest.SerialBytes(renewed.Certificate)}, 1},
		"key":                     {&brevetv1.CertificateSelection{KeyHash: hash}, 1},
		"key of another identity": {&brevetv1.CertificateSelection{KeyHash: hash, Identity: "device/a"}, 0},
		"profile":                 {&brevetv1.CertificateSelection{Profile: "device"}, 2},
		"time of issue":           {&brevetv1.CertificateSelection{IssueStartTime: timestamppb.New(begin), IssueEndTime: timestamppb.New(end)}, 3},
		"before that time":        {&brevetv1.CertificateSelection{IssueEndTime: timestamppb.New(begin), Profile: "device"}, 0},
		"issuer":                  {&brevetv1.CertificateSelection{IssuerId: pki.IssuerOf(w.Issuing).Bytes()}, all()},
		"issuer and profile":      {&brevetv1.CertificateSelection{IssuerId: pki.IssuerOf(w.Issuing).Bytes(), Profile: "workload"}, 1},
	} {
		bulk := servertest.Must(w.Operator.CreateBulkRevocation(t.Context(), &brevetv1.CreateBulkRevocationRequest{Selection: c.selection, DryRun: true}))(t).GetBulkRevocation()
		if bulk.GetTotal() != c.want {
			t.Errorf("%s: %d certificates, want %d", name, bulk.GetTotal(), c.want)
		}
	}
	if logged := len(w.Entries(t, 0)); logged == 0 {
		t.Error("the log is empty")
	}
	for name, c := range map[string]struct {
		req  *brevetv1.CreateBulkRevocationRequest
		code codes.Code
		rule pki.Rule
	}{
		"nothing":      {&brevetv1.CreateBulkRevocationRequest{}, codes.InvalidArgument, pki.RuleRequest},
		"hold":         {&brevetv1.CreateBulkRevocationRequest{Selection: &brevetv1.CertificateSelection{Profile: "device"}, Reason: servertest.Reason("certificateHold")}, codes.InvalidArgument, pki.RuleReason},
		"no reason":    {&brevetv1.CreateBulkRevocationRequest{Selection: &brevetv1.CertificateSelection{Profile: "device"}, Reason: servertest.Reason("tired")}, codes.InvalidArgument, pki.RuleReason},
		"a future":     {&brevetv1.CreateBulkRevocationRequest{Selection: &brevetv1.CertificateSelection{Profile: "device"}, InvalidityTime: timestamppb.New(end.Add(time.Hour))}, codes.InvalidArgument, pki.RuleRequest},
		"a comment":    {&brevetv1.CreateBulkRevocationRequest{Selection: &brevetv1.CertificateSelection{Profile: "device"}, Comment: "\x1b[2J"}, codes.InvalidArgument, pki.RuleRequest},
		"long comment": {&brevetv1.CreateBulkRevocationRequest{Selection: &brevetv1.CertificateSelection{Profile: "device"}, Comment: fmt.Sprintf("%257d", 1)}, codes.InvalidArgument, pki.RuleRequest},
		"no time":      {&brevetv1.CreateBulkRevocationRequest{Selection: &brevetv1.CertificateSelection{IssueStartTime: timestamppb.New(end), IssueEndTime: timestamppb.New(begin)}}, codes.InvalidArgument, pki.RuleRequest},
		"no issuer":    {&brevetv1.CreateBulkRevocationRequest{Selection: &brevetv1.CertificateSelection{IssuerId: hash}}, codes.NotFound, pki.RuleNotFound},
		"half issuer":  {&brevetv1.CreateBulkRevocationRequest{Selection: &brevetv1.CertificateSelection{IssuerId: hash[:16]}}, codes.InvalidArgument, pki.RuleRequest},
		"no identity":  {&brevetv1.CreateBulkRevocationRequest{Selection: &brevetv1.CertificateSelection{Identity: "device/none"}}, codes.NotFound, pki.RuleIdentity},
		"no serial":    {&brevetv1.CreateBulkRevocationRequest{Selection: &brevetv1.CertificateSelection{LineageSerial: append(make([]byte, 19), 1)}}, codes.NotFound, pki.RuleNotFound},
		"no key":       {&brevetv1.CreateBulkRevocationRequest{Selection: &brevetv1.CertificateSelection{KeyHash: append(make([]byte, 31), 1)}}, codes.NotFound, pki.RuleNotFound},
		"value alone":  {&brevetv1.CreateBulkRevocationRequest{Selection: &brevetv1.CertificateSelection{Label: &brevetv1.Label{Value: "north"}}}, codes.InvalidArgument, pki.RuleRequest},
		"a long label": {&brevetv1.CreateBulkRevocationRequest{Selection: &brevetv1.CertificateSelection{Label: &brevetv1.Label{Name: fmt.Sprintf("%257d", 1), Value: ""}}}, codes.InvalidArgument, pki.RuleRequest},
	} {
		for _, c.req.DryRun = range []bool{true, false} {
			_, err := w.Operator.CreateBulkRevocation(t.Context(), c.req)
			if servertest.RuleOf(err) != c.rule {
				t.Errorf("%s: %v", name, err)
			}
			servertest.Refused(t, err, c.code, c.rule)
		}
	}
	_, err := w.Operator.GetBulkRevocation(t.Context(), &brevetv1.GetBulkRevocationRequest{Id: "77"})
	servertest.Refused(t, err, codes.NotFound, pki.RuleNotFound)
	w.Status(t, a.Certificate, "good")
}

// A bulk revocation revokes all certificates that were renewed from a given one. The log has its comment and its
// invalidity date.
func TestRevokeLineage(t *testing.T) {
	t.Parallel()
	w := servertest.New(t, ground, servertest.Options{})
	first := w.Enrolled(t, "device", "device/1")
	second := w.Renewed(t, first, servertest.Key(t))
	third := w.Renewed(t, second, servertest.Key(t))
	since := timestamppb.New(time.Now().Add(-time.Hour).Truncate(time.Second))
	bulk := servertest.Must(w.Operator.CreateBulkRevocation(t.Context(), &brevetv1.CreateBulkRevocationRequest{
		Selection: &brevetv1.CertificateSelection{LineageSerial: servertest.SerialBytes(second.Certificate)},
		Reason:    servertest.Reason("keyCompromise"), InvalidityTime: since, Comment: "copied from a backup",
	}))(t).GetBulkRevocation()
	if bulk.GetState() != brevetv1.BulkRevocationState_BULK_REVOCATION_STATE_DONE || bulk.GetTotal() != 2 || bulk.GetCreatedBy() != w.Operator.ID || bulk.GetComment() != "copied from a backup" {
		t.Errorf("the bulk revocation is %v", bulk)
	}
	w.Status(t, first.Certificate, "good")
	w.Status(t, second.Certificate, "keyCompromise")
	w.Status(t, third.Certificate, "keyCompromise")
	c := servertest.Must(w.Operator.GetCertificate(t.Context(), &brevetv1.GetCertificateRequest{Serial: servertest.SerialBytes(third.Certificate)}))(t).GetCertificate()
	if !c.GetInvalidityTime().AsTime().Equal(since.AsTime()) {
		t.Errorf("the recorded invalidity date is %v", c.GetInvalidityTime())
	}
	entries := w.Entries(t, 0)
	created, changed := entries[len(entries)-2], entries[len(entries)-1]
	if created.Facts()["comment"] != "copied from a backup" || servertest.Must(pki.ParseSerial(created.Facts()["lineage_of"]))(t).Int().Cmp(second.Certificate.SerialNumber) != 0 ||
		created.Facts()["invalid_since"] != since.AsTime().Format(time.RFC3339) || len(changed.Changes) != 2 || changed.Facts()["bulk_revocation"] != created.Facts()["bulk_revocation"] {
		t.Errorf("the log has %+v and %+v", created, changed)
	}
}

// A bulk revocation of all certificates of an issuing CA includes the certificate of the operator that requests it, but
// not certificates that are issued later.
func TestRevokeIssuer(t *testing.T) {
	t.Parallel()
	w := servertest.New(t, ground, servertest.Options{})
	device := w.Enrolled(t, "device", "device/1")
	bulk := bulkRevoke(t, w, &brevetv1.CertificateSelection{IssuerId: pki.IssuerOf(w.Issuing).Bytes()}, "cACompromise")
	if bulk.GetTotal() < 4 { // the device, the operator, the server and its OCSP delegate
		t.Errorf("the bulk revocation is %v", bulk)
	}
	w.Status(t, device.Certificate, "cACompromise")
	w.Status(t, w.Operator.Certificate, "cACompromise")
	_, err := w.Operator.GetBulkRevocation(t.Context(), &brevetv1.GetBulkRevocationRequest{Id: bulk.GetId()})
	servertest.Refused(t, err, codes.PermissionDenied, pki.RuleRevoked)
	w.Operator = w.NewOperator(t, "bob")
	awaitApplied(t, w, bulk.GetId())
	w.Status(t, w.Operator.Certificate, "good") // issued later
}

// statementOf returns a request in which the holder of a P-256 key reports that the key is compromised.
func statementOf(t testing.TB, key crypto.Signer, trustDomain string) *brevetv1.RevokeCompromisedKeyRequest {
	t.Helper()
	spki := servertest.Must(x509.MarshalPKIXPublicKey(key.Public()))(t)
	digest := sha256.Sum256(pki.CompromiseStatement(trustDomain, pki.HashSPKI(spki)))
	return &brevetv1.RevokeCompromisedKeyRequest{PublicKey: spki, Signature: servertest.Must(key.Sign(rand.Reader, digest[:], crypto.SHA256))(t)}
}

func TestRevokeCompromisedKey(t *testing.T) {
	t.Parallel()
	w := servertest.New(t, ground, servertest.Options{})
	device := w.Enrolled(t, "device", "device/1")
	again := w.Renewed(t, device, device.Key)
	another := w.Renewed(t, again, device.Key)
	other := w.Enrolled(t, "device", "device/2")
	nobody := w.Caller(t, nil)
	right := statementOf(t, device.Key, servertest.TrustDomain)
	logged := len(w.Entries(t, 0))
	csr := servertest.CSR(t, device.Key)
	request := servertest.Must(x509.ParseCertificateRequest(csr))(t)
	for name, c := range map[string]struct {
		key, signature []byte
		code           codes.Code
		rule           pki.Rule
	}{
		"another key's signature": {right.GetPublicKey(), statementOf(t, other.Key, servertest.TrustDomain).GetSignature(), codes.Unauthenticated, pki.RuleKeyPossession},
		"another trust domain":    {right.GetPublicKey(), statementOf(t, device.Key, "other.example").GetSignature(), codes.Unauthenticated, pki.RuleKeyPossession},
		"a request's signature":   {right.GetPublicKey(), request.Signature, codes.Unauthenticated, pki.RuleKeyPossession},
		"no signature":            {right.GetPublicKey(), nil, codes.InvalidArgument, pki.RuleRequest},
		"no key":                  {nil, right.GetSignature(), codes.InvalidArgument, pki.RuleRequest},
		"more than a key":         {append([]byte(nil), append(right.GetPublicKey(), 0)...), right.GetSignature(), codes.InvalidArgument, pki.RuleRequest},
		"a large key":             {make([]byte, 3<<10), right.GetSignature(), codes.InvalidArgument, pki.RuleRequest},
		"a large signature":       {right.GetPublicKey(), make([]byte, 3<<10), codes.InvalidArgument, pki.RuleRequest},
	} {
		_, err := nobody.RevokeCompromisedKey(t.Context(), &brevetv1.RevokeCompromisedKeyRequest{PublicKey: c.key, Signature: c.signature})
		if servertest.RuleOf(err) != c.rule {
			t.Errorf("%s: %v", name, err)
		}
		servertest.Refused(t, err, c.code, c.rule)
	}
	_, err := nobody.RevokeCompromisedKey(t.Context(), statementOf(t, servertest.Key(t), servertest.TrustDomain))
	servertest.Refused(t, err, codes.NotFound, pki.RuleNotFound)
	_, err = nobody.RevokeCompromisedKey(t.Context(), statementOf(t, ground.Issuing, servertest.TrustDomain))
	servertest.Refused(t, err, codes.NotFound, pki.RuleNotFound)
	w.Status(t, device.Certificate, "good")
	if n := len(w.Entries(t, 0)); n != logged {
		t.Errorf("refused requests left %d entries in the log", n-logged)
	}
	for _, want := range []int64{3, 0} { // the second request changes nothing
		resp := servertest.Must(nobody.RevokeCompromisedKey(t.Context(), right))(t)
		if resp.GetAffected().GetValid() != want || string(resp.GetKeyHash()) != string(pki.HashSPKI(right.GetPublicKey()).Bytes()) {
			t.Errorf("the response is %v", resp)
		}
	}
	for _, h := range []*servertest.Holder{device, again, another} {
		w.Status(t, h.Certificate, "keyCompromise")
	}
	w.Status(t, other.Certificate, "good")
	entries := w.Entries(t, logged)
	if len(entries) == 0 || entries[0].Actor != pki.ActorKey(pki.HashSPKI(right.GetPublicKey())) || len(entries[0].Changes) != 3 {
		t.Errorf("the log has %+v", entries)
	}
	_, err = nobody.Enroll(t.Context(), servertest.Enrollment(t, w.Token(t, device.ID, true), device.Key))
	servertest.Refused(t, err, codes.PermissionDenied, pki.RuleKeyCompromised)
}
