package ra_test

import (
	"crypto/x509"
	"fmt"
	"strings"
	"testing"

	"google.golang.org/protobuf/types/known/fieldmaskpb"

	"github.com/brevet-pki/brevet/enroll"
	"github.com/brevet-pki/brevet/pki"
	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
	"github.com/brevet-pki/brevet/server/servertest"
	"github.com/brevet-pki/brevet/translog"
)

// limited returns a policy that registers at most total cameras of a manufacturer.
func limited(root *x509.Certificate, total int) []byte {
	return fmt.Appendf(nil, `
x5c:
  cameras:
    roots: %q
rules:
- {name: tokens, evidence: [token]}
- name: cameras
  evidence: [x5c]
  when: x5c.source == "cameras"
  identity: device/{x5c.serial}
  register: true
  replace: true
  profile: device
  limits: {total: %d}
`, pemOf(root), total)
}

// A rule registers at most its total, also if all devices enroll at once. A refused device leaves nothing, and devices that
// are registered enroll again. When an operator raises the total, more devices enroll.
func TestRuleRegistersItsTotal(t *testing.T) {
	t.Parallel()
	const total = 3
	var serials []string
	for i := range 8 {
		serials = append(serials, fmt.Sprintf("SN-%d", i))
	}
	root, cameras := cameraFactory(t, serials...)
	w := servertest.New(t, ground, servertest.Options{Policy: limited(root, total)})
	w.Register(t, "device", "device/by-an-operator")
	identities, certificates := rows(t, w, "identities"), rows(t, w, "certificates")
	client := servertest.Must(enroll.NewClient(""))(t)
	enrollAs := func(i int) error {
		evidence := servertest.Must(enroll.FactoryCertificate(cameras[i]))(t)
		_, err := client.Enroll(t.Context(), factoryRequest(t, w, servertest.CSR(t, servertest.Key(t)), evidence))
		return err
	}
	errs := together(len(cameras), enrollAs)
	var registered, refused []int
	for i, err := range errs {
		if err == nil {
			registered = append(registered, i)
			continue
		}
		refused = append(refused, i)
		if r, _ := pki.AsRefusal(err); r == nil || r.Rule != pki.RulePolicyLimit || !strings.Contains(r.Hint, "limits.total") {
			t.Errorf("camera %d: %v, want the rule %s and a hint to the key limits.total", i, err, pki.RulePolicyLimit)
		}
	}
	added := rows(t, w, "identities") - identities
	if len(registered) != total || added != total || rows(t, w, "certificates")-certificates != total {
		t.Fatalf("%d cameras enrolled, and %d identities were registered, want %d", len(registered), added, total)
	}
	if err := enrollAs(registered[0]); err != nil {
		t.Errorf("a registered camera enrolls again: %v", err)
	}
	id := "device/" + serials[registered[0]]
	if got := servertest.Must(w.Operator.GetIdentity(t.Context(), &brevetv1.GetIdentityRequest{Id: id}))(t).GetIdentity().GetRule(); got != "cameras" {
		t.Errorf("the identity was registered by the rule %q, want cameras", got)
	}
	entries := servertest.Find(w.Entries(t, 0), translog.IdentityRegistered, "spiffe://"+servertest.TrustDomain+"/"+id)
	if len(entries) != 1 || entries[0].Facts()["policy_rule"] != "cameras" {
		t.Errorf("the log has %+v, want one registration by the rule cameras", entries)
	}

	servertest.Must(brevetv1.NewPolicyServiceClient(w.Operator.Conn).ApplyPolicy(t.Context(), &brevetv1.ApplyPolicyRequest{
		Document: limited(root, total+1), BasedRevision: 1,
	}))(t)
	if err := enrollAs(refused[0]); err != nil {
		t.Errorf("a camera enrolls after the total was raised: %v", err)
	}
	err := enrollAs(refused[1])
	if r, _ := pki.AsRefusal(err); r == nil || r.Rule != pki.RulePolicyLimit {
		t.Errorf("a camera above the raised total: %v, want the rule %s", err, pki.RulePolicyLimit)
	}
}

// An operator has registered the paths of two cameras before they enroll. One has a label that the rule does not give, with
// which a registrar could act on the camera, so it is refused until the label is removed.
func TestRuleExpectsItsLabels(t *testing.T) {
	t.Parallel()
	root, cameras := cameraFactory(t, "SN-1", "SN-2")
	w := servertest.New(t, ground, servertest.Options{Policy: limited(root, 10)})
	w.Register(t, "device", "device/SN-1")
	taken := device("device/SN-2")
	taken.Spec.Labels = map[string]string{"site": "plant-7"}
	servertest.Must(w.Operator.CreateIdentity(t.Context(), taken))(t)
	client := servertest.Must(enroll.NewClient(""))(t)
	enrollAs := func(i int) error {
		evidence := servertest.Must(enroll.FactoryCertificate(cameras[i]))(t)
		_, err := client.Enroll(t.Context(), factoryRequest(t, w, servertest.CSR(t, servertest.Key(t)), evidence))
		return err
	}
	if err := enrollAs(0); err != nil {
		t.Errorf("a camera that was registered with the labels of the rule: %v", err)
	}
	err := enrollAs(1)
	if r, _ := pki.AsRefusal(err); r == nil || r.Rule != pki.RuleIdentityExists || !strings.Contains(r.Hint, "brevet identity update") {
		t.Errorf("a camera that was registered with another label: %v, want the rule %s", err, pki.RuleIdentityExists)
	}
	servertest.Must(w.Operator.UpdateIdentity(t.Context(), &brevetv1.UpdateIdentityRequest{
		Id: "device/SN-2", Spec: &brevetv1.IdentitySpec{}, UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"labels"}}, Revision: 1,
	}))(t)
	if err := enrollAs(1); err != nil {
		t.Errorf("after the label was removed: %v", err)
	}
}
