package server_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/fieldmaskpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/brevet-pki/brevet/pki"
	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
	"github.com/brevet-pki/brevet/ra/acme"
	"github.com/brevet-pki/brevet/ra/policy"
	"github.com/brevet-pki/brevet/server/servertest"
)

// isPlain reports whether a text is printable ASCII with less than 1200 bytes.
func isPlain(text string) bool {
	return len(text) < 1200 && !strings.ContainsFunc(text, func(c rune) bool { return c < 0x20 || c > 0x7e })
}

// deceiving are texts that every text field must refuse: with control characters, invisible characters, or characters
// that look like others.
var deceiving = []string{
	"\x00", "device/1\x00", "\x1b[2J", "a\r\nb", "x\x7f", "x\u0085", "x\u00a0y", "\u202e1/ecived", "\u2066a\u2069", "\u2028",
	"\u200b", "\ufeffdevice/1", "\U000e0041", strings.Repeat("\u202e", 60_000), "a\u0300",
}

// lookalikes are texts with letters that look like ASCII letters. Only comments and labels, which people write, may
// contain such letters.
var lookalikes = []string{"dev\u0456ce/1", "br\u0435vet/server", "\uff42revet/server", "\u017fuperseded"}

// isFreeText reports whether a field is a comment or part of a label.
func isFreeText(field string) bool {
	return strings.HasSuffix(field, ".comment") || strings.Contains(field, "label") || strings.HasPrefix(field, "brevet.v1.Label.")
}

// message is a request and the RPC to which it is sent.
type message struct {
	rpc string
	req proto.Message
}

// wholeMessages returns requests. Each is valid if the test has sent those before it. Together they contain every text
// field of the RPCs.
func wholeMessages(t *testing.T, w *servertest.World) []message {
	t.Helper()
	labels := map[string]string{"site": "north"}
	device := w.Enrolled(t, "device", "device/old", func(r *brevetv1.CreateIdentityRequest) { r.Spec.Labels = labels })
	other := w.Enrolled(t, "device", "device/other")
	held := w.Enrolled(t, "device", "device/held")
	issuer := pki.IssuerOf(w.Issuing).Bytes()
	registration := &brevetv1.IdentitySpec{Kind: brevetv1.IdentityKind_IDENTITY_KIND_DEVICE, Profile: "device", Labels: labels, Names: servertest.Names([]string{"a.example"}, []string{"192.0.2.1"})}
	issue := servertest.Order(t, "device/issued", servertest.Key(t))
	issue.Registration = registration
	named := servertest.Enrollment(t, w.Token(t, w.Register(t, "device", "device/named"), false), servertest.Key(t))
	named.Identity = "device/named"
	externalKey := servertest.Must(brevetv1.NewACMEServiceClient(w.Operator.Conn).CreateExternalKey(t.Context(), &brevetv1.CreateExternalKeyRequest{Rule: "web"}))(t)
	account := acme.Account{ID: acme.NewID(), Key: []byte("key"), Thumbprint: [32]byte{1}, Status: acme.AccountValid, CreatedAt: time.Now()}
	if _, _, err := w.Stores.ACME.CreateAccount(t.Context(), account); err != nil {
		t.Fatal(err)
	}
	return []message{
		{"ACMEService.ListAccounts", &brevetv1.ListAccountsRequest{}},
		{"ACMEService.RevokeAccount", &brevetv1.RevokeAccountRequest{Id: account.ID.String(), Comment: "stolen"}},
		{"ACMEService.CreateExternalKey", &brevetv1.CreateExternalKeyRequest{Rule: "web"}},
		{"ACMEService.ListExternalKeys", &brevetv1.ListExternalKeysRequest{}},
		{"ACMEService.RevokeExternalKey", &brevetv1.RevokeExternalKeyRequest{Id: externalKey.GetKey().GetId(), Comment: "lost"}},
		{"CertificateService.IssueCertificates", issue},
		{"RotationService.StartRotation", &brevetv1.StartRotationRequest{Over: durationpb.New(time.Hour), Confirm: 1, Comment: "new CA", Selection: &brevetv1.CertificateSelection{IssuerId: issuer, Identity: device.ID, Profile: "device", Label: &brevetv1.Label{Name: "site", Value: "north"}}}},
		{"RotationService.ListRotations", &brevetv1.ListRotationsRequest{}},
		{"RotationService.GetRotation", &brevetv1.GetRotationRequest{Id: "1"}},
		{"RotationService.StopRotation", &brevetv1.StopRotationRequest{Id: "1"}},
		{"IdentityService.CreateIdentity", &brevetv1.CreateIdentityRequest{Id: "device/new", Spec: registration}},
		{"IdentityService.CreateIdentity", &brevetv1.CreateIdentityRequest{Id: "bob", Spec: &brevetv1.IdentitySpec{Kind: brevetv1.IdentityKind_IDENTITY_KIND_OPERATOR, Profile: "operator", Labels: labels, Roles: []brevetv1.OperatorRole{brevetv1.OperatorRole_OPERATOR_ROLE_AUDITOR}}}},
		{"IdentityService.GetIdentity", &brevetv1.GetIdentityRequest{Id: device.ID}},
		{"IdentityService.ListIdentities", &brevetv1.ListIdentitiesRequest{Profile: "device", Label: &brevetv1.Label{Name: "site", Value: "north"}}},
		{"IdentityService.UpdateIdentity", &brevetv1.UpdateIdentityRequest{Id: device.ID, Spec: registration, UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"profile", "labels", "names", "evidence_subject"}}, Revision: 2}},
		{"IdentityService.SuspendIdentity", &brevetv1.SuspendIdentityRequest{Id: device.ID, Comment: "lost"}},
		{"IdentityService.ResumeIdentity", &brevetv1.ResumeIdentityRequest{Id: device.ID, Comment: "found"}},
		{"TokenService.CreateToken", &brevetv1.CreateTokenRequest{Identity: device.ID, Replace: true}},
		{"TokenService.CreateToken", &brevetv1.CreateTokenRequest{
			Pattern: "sensor/S[0-9]{6}", Networks: []string{"10.2.0.0/16"},
			Spec: &brevetv1.IdentitySpec{Kind: brevetv1.IdentityKind_IDENTITY_KIND_DEVICE, Profile: "device", Labels: labels},
		}},
		{"EnrollmentService.Enroll", named},
		{"TokenService.ListTokens", &brevetv1.ListTokensRequest{CreatedBy: w.Operator.ID, Identity: device.ID, States: []brevetv1.TokenState{brevetv1.TokenState_TOKEN_STATE_OPEN}}},
		{"TokenService.RevokeToken", &brevetv1.RevokeTokenRequest{Tokens: &brevetv1.RevokeTokenRequest_CreatedBy{CreatedBy: w.Operator.ID}, Comment: "lost"}},
		{"CertificateService.ListCertificates", &brevetv1.ListCertificatesRequest{Selection: &brevetv1.CertificateSelection{Identity: device.ID, Profile: "device", Label: &brevetv1.Label{Name: "site", Value: "north"}}}},
		{"RevocationService.RevokeCertificate", &brevetv1.RevokeCertificateRequest{
			Serial: servertest.SerialBytes(other.Certificate), IssuerId: issuer, Reason: servertest.Reason("superseded"), Comment: "broken", InvalidityTime: timestamppb.New(other.Certificate.NotBefore),
		}},
		{"RevocationService.HoldCertificate", &brevetv1.HoldCertificateRequest{Serial: servertest.SerialBytes(held.Certificate), IssuerId: issuer, Comment: "lost"}},
		{"RevocationService.UnholdCertificate", &brevetv1.UnholdCertificateRequest{Serial: servertest.SerialBytes(held.Certificate), IssuerId: issuer, Comment: "found"}},
		{"RevocationService.ListBulkRevocations", &brevetv1.ListBulkRevocationsRequest{}},
		{"RevocationService.CreateBulkRevocation", &brevetv1.CreateBulkRevocationRequest{Reason: servertest.Reason("superseded"), Comment: "broken", Selection: &brevetv1.CertificateSelection{IssuerId: issuer, Identity: device.ID, LineageSerial: servertest.SerialBytes(device.Certificate), Profile: "device", Label: &brevetv1.Label{Name: "site", Value: "north"}, KeyHash: servertest.Must(pki.HashKey(device.Key.Public()))(t).Bytes()}}},
		{"RevocationService.GetBulkRevocation", &brevetv1.GetBulkRevocationRequest{Id: "1"}},
		{"CRLService.ListCRLs", &brevetv1.ListCRLsRequest{IssuerId: issuer}},
		{"PolicyService.ExplainPolicy", &brevetv1.ExplainPolicyRequest{Request: refusedRequest(t, w)}},
		{"PolicyService.ApplyPolicy", &brevetv1.ApplyPolicyRequest{Document: policy.Default(), BasedRevision: 1, Comment: "as before"}},
		{"PolicyService.ListPolicies", &brevetv1.ListPoliciesRequest{}},
		{"IdentityService.RetireIdentity", &brevetv1.RetireIdentityRequest{Id: device.ID, Comment: "over"}},
	}
}

// refusedRequest sends an enrollment that no rule grants, and returns its actor.
func refusedRequest(t *testing.T, w *servertest.World) string {
	t.Helper()
	token := w.Token(t, w.Register(t, "device", "device/unwanted"), false)
	_, err := w.Caller(t, nil).Enroll(t.Context(), servertest.Enrollment(t, token, servertest.Key(t)))
	servertest.Refused(t, err, codes.PermissionDenied, pki.RulePolicy)
	return pki.ActorToken(servertest.Must(pki.TokenSecretFromBytes(token))(t).ID()).String()
}

// hasTexts reports whether a message, or a message of brevet.v1 in it, has text fields.
func hasTexts(d protoreflect.MessageDescriptor) bool {
	for i := range d.Fields().Len() {
		f := d.Fields().Get(i)
		if f.Kind() == protoreflect.StringKind || f.IsMap() || f.Message() != nil && f.Message().ParentFile().Package() == "brevet.v1" && hasTexts(f.Message()) {
			return true
		}
	}
	return false
}

// texts calls visit for each text field in a message and in the messages of brevet.v1 that it contains. It passes the
// field's name and a function that sets the field. Of a oneof, it visits only the member that is set.
func texts(m protoreflect.Message, visit func(field string, set func(string))) {
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		name, text := string(f.FullName()), protoreflect.ValueOfString
		ours := f.Message() != nil && f.Message().ParentFile().Package() == "brevet.v1"
		switch {
		case (f.ContainingOneof() != nil || ours) && !m.Has(f):
		case f.IsMap():
			visit(name+" key", func(s string) { m.Mutable(f).Map().Set(text(s).MapKey(), text("v")) })
			visit(name+" value", func(s string) { m.Mutable(f).Map().Set(text("k").MapKey(), text(s)) })
		case f.IsList() && f.Kind() == protoreflect.StringKind:
			visit(name, func(s string) {
				list := m.Mutable(f).List()
				list.Truncate(0)
				list.Append(text(s))
			})
		case f.Kind() == protoreflect.StringKind:
			visit(name, func(s string) { m.Set(f, text(s)) })
		case f.IsList() && ours:
			for j := range m.Get(f).List().Len() {
				texts(m.Mutable(f).List().Get(j).Message(), visit)
			}
		case ours:
			texts(m.Mutable(f).Message(), visit)
		}
	}
}

// callWith sends the request with another text in one field, and returns the error of the RPC.
func (m message) callWith(t *testing.T, w *servertest.World, field, other string) error {
	t.Helper()
	changed := proto.Clone(m.req)
	texts(changed.ProtoReflect(), func(f string, set func(string)) {
		if f == field {
			set(other)
		}
	})
	return m.call(t, w, changed)
}

func (m message) call(t *testing.T, w *servertest.World, req proto.Message) error {
	t.Helper()
	return send(t.Context(), w.Operator.Conn, "brevet.v1."+m.rpc, servertest.Must(proto.Marshal(req))(t))
}

// The server refuses deceptive characters in every text field of the RPCs. The refusal and the log entries
// do not contain these characters. The same request without them succeeds.
func TestDeceptiveTextsAreRefused(t *testing.T) {
	t.Parallel()
	w := servertest.New(t, ground, servertest.Options{
		Policy: []byte(`
acme: {}
rules:
- {name: tokens, evidence: [token], when: token.identity != "device/unwanted"}
- {name: web, evidence: [acme], identity: "web/{acme.name}", register: true}
`),
	})
	messages := wholeMessages(t, w)
	before := len(w.Entries(t, 0))
	for name, m := range listServed(t, w) {
		if name, ours := strings.CutPrefix(name, "brevet.v1."); ours {
			if hasTexts(m.Input()) != slices.ContainsFunc(messages, func(m message) bool { return m.rpc == name }) {
				t.Errorf("%s has text fields and is not in this test, or the reverse", name)
			}
		}
	}
	for _, m := range messages {
		var fields []string
		texts(m.req.ProtoReflect(), func(f string, _ func(string)) { fields = append(fields, f) })
		for _, field := range fields {
			refused := deceiving
			if !isFreeText(field) {
				refused = slices.Concat(deceiving, lookalikes)
			}
			for _, text := range refused {
				err := m.callWith(t, w, field, text)
				if servertest.RuleOf(err) == "" {
					t.Errorf("%s %.40q: %.200v", field, text, err)
				}
				servertest.Refused(t, err, status.Code(err), servertest.RuleOf(err))
				for _, d := range status.Convert(err).Details() {
					if r, ok := d.(*brevetv1.Refusal); ok && !isPlain(r.GetDetail()) {
						t.Errorf("%s %.40q: the detail is %.200q", field, text, r.GetDetail())
					}
				}
			}
		}
		servertest.Refused(t, m.call(t, w, m.req), codes.OK, "")
	}
	for _, e := range w.Entries(t, before) {
		for name, fact := range e.Facts() {
			if !isPlain(name) || !isPlain(fact) {
				t.Errorf("%s: the log has %.200q=%.200q", e.Action, name, fact)
			}
		}
	}
}
