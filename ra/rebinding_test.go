package ra_test

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"sync"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	"github.com/brevet-pki/brevet/enroll"
	"github.com/brevet-pki/brevet/pki"
	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
	"github.com/brevet-pki/brevet/ra/x5c"
	"github.com/brevet-pki/brevet/server/servertest"
	"github.com/brevet-pki/brevet/translog"
)

// twins starts a server, and returns two cameras of different manufacturers with the same serial number. The policy takes
// both for one source, and gives the cameras the same identity.
func twins(t *testing.T) (w *servertest.World, first, second tls.Certificate, roots [2]*x509.Certificate) {
	t.Helper()
	rootA, first := manufacturer(t)
	rootB, second := manufacturer(t)
	document := "rules:\n" +
		"  - {name: tokens, evidence: [token]}\n" +
		"  - {name: cameras, evidence: [x5c], when: x5c.source == 'both', identity: 'device/{x5c.serial}', register: true, replace: true, profile: device}\n" +
		fmt.Sprintf("x5c:\n  both: {roots: %q}\n", string(pemOf(rootA))+string(pemOf(rootB)))
	return servertest.New(t, ground, servertest.Options{Policy: []byte(document)}), first, second, [2]*x509.Certificate{rootA, rootB}
}

// enrollCamera enrolls a camera with a new key, and returns its certificate or the rule of the refusal.
func enrollCamera(t *testing.T, w *servertest.World, camera tls.Certificate) (*x509.Certificate, pki.Rule) {
	t.Helper()
	client := servertest.Must(enroll.NewClient(""))(t)
	evidence := servertest.Must(enroll.FactoryCertificate(camera))(t)
	credential, err := client.Enroll(t.Context(), factoryRequest(t, w, servertest.CSR(t, servertest.Key(t)), evidence))
	if refusal, ok := pki.AsRefusal(err); ok {
		return nil, refusal.Rule
	}
	if err != nil {
		t.Fatal(err)
	}
	return credential.Certificate, ""
}

// An identity is tied to the first device that enrolls as it. Another device is refused until an operator rebinds the
// identity, and from then on the first device is refused.
func TestIdentityIsTiedToItsDevice(t *testing.T) {
	t.Parallel()
	w, first, second, roots := twins(t)
	old, _ := enrollCamera(t, w, first)
	w.Status(t, old, "good")
	subjects := []string{x5c.SubjectOf(first.Leaf, roots[0]).String(), x5c.SubjectOf(second.Leaf, roots[1]).String()}
	const id = "device/SN-0042"
	have := func() *brevetv1.Identity {
		return servertest.Must(w.Operator.GetIdentity(t.Context(), &brevetv1.GetIdentityRequest{Id: id}))(t).GetIdentity()
	}
	update := func(spec *brevetv1.IdentitySpec, path string) (*brevetv1.UpdateIdentityResponse, error) {
		return w.Operator.UpdateIdentity(t.Context(), &brevetv1.UpdateIdentityRequest{
			Id: id, Spec: spec, UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{path}}, Revision: have().GetRevision(),
		})
	}
	if got := have().GetEvidenceSubject(); got != subjects[0] {
		t.Errorf("the identity is tied to %s, want %s", got, subjects[0])
	}
	before := rows(t, w, "certificates")
	if _, rule := enrollCamera(t, w, second); rule != pki.RuleEvidenceConflict || rows(t, w, "certificates") != before {
		t.Errorf("the second camera was refused with the rule %q, want %s and no certificate", rule, pki.RuleEvidenceConflict)
	}
	refused := servertest.Find(w.Entries(t, 0), translog.RequestRefused, "spiffe://"+servertest.TrustDomain+"/"+id)
	if len(refused) != 1 || refused[0].Facts()["evidence_subject"] != subjects[1] {
		t.Errorf("the log has %+v, want one refusal with the subject %s", refused, subjects[1])
	}
	servertest.Must(update(&brevetv1.IdentitySpec{Labels: map[string]string{"site": "north"}}, "labels"))(t)
	if got := have().GetEvidenceSubject(); got != subjects[0] {
		t.Errorf("an update of the labels tied the identity to %q", got)
	}
	_, err := w.Operator.CreateIdentity(t.Context(), &brevetv1.CreateIdentityRequest{Id: "device/other", Spec: &brevetv1.IdentitySpec{
		Kind: brevetv1.IdentityKind_IDENTITY_KIND_DEVICE, EvidenceSubject: subjects[0],
	}})
	servertest.Refused(t, err, codes.PermissionDenied, pki.RuleEvidenceConflict)

	servertest.Must(update(&brevetv1.IdentitySpec{EvidenceSubject: subjects[1]}, "evidence_subject"))(t)
	if got := have(); got.GetEvidenceSubject() != subjects[1] || got.GetLabels()["site"] != "north" {
		t.Errorf("after the rebinding the identity is %v", got)
	}
	if _, rule := enrollCamera(t, w, first); rule != pki.RuleEvidenceConflict {
		t.Errorf("after the rebinding, the first camera was refused with the rule %q, want %s", rule, pki.RuleEvidenceConflict)
	}
	next, rule := enrollCamera(t, w, second)
	if rule != "" {
		t.Fatalf("after the rebinding, the second camera was refused with the rule %s", rule)
	}
	w.Status(t, next, "good")
	w.Status(t, old, "superseded")
	_, err = update(&brevetv1.IdentitySpec{EvidenceSubject: "token:" + subjects[0][len("x5c:"):]}, "evidence_subject")
	servertest.Refused(t, err, codes.InvalidArgument, pki.RuleRequest)
}

// Of two devices that claim one identity at the same moment, exactly one enrolls.
func TestDevicesClaimOneIdentityAtOnce(t *testing.T) {
	t.Parallel()
	w, first, second, _ := twins(t)
	certificates, rules := make([]*x509.Certificate, 2), make([]pki.Rule, 2)
	var both sync.WaitGroup
	for i, camera := range []tls.Certificate{first, second} {
		both.Go(func() { certificates[i], rules[i] = enrollCamera(t, w, camera) })
	}
	both.Wait()
	if (certificates[0] == nil) == (certificates[1] == nil) || rules[0]+rules[1] != pki.RuleEvidenceConflict {
		t.Errorf("the devices were refused with the rules %q, want one with %s", rules, pki.RuleEvidenceConflict)
	}
	for _, c := range certificates {
		if c != nil {
			w.Status(t, c, "good")
		}
	}
}

// TestUntiedIdentityIsNotTakenOver enrolls an identity with a token, so that it is tied to no device. A rule that replaces
// does not give it to a device that has its name.
func TestUntiedIdentityIsNotTakenOver(t *testing.T) {
	t.Parallel()
	w, first, _, _ := twins(t)
	device := w.Enrolled(t, "device", "device/SN-0042")
	if _, rule := enrollCamera(t, w, first); rule != pki.RuleEvidenceConflict {
		t.Errorf("a device takes the identity over: %q, want %s", rule, pki.RuleEvidenceConflict)
	}
	w.Status(t, device.Certificate, "good")
}
