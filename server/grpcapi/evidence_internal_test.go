package grpcapi

import (
	"slices"
	"testing"

	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/brevet-pki/brevet/pki"
	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
)

// elsewhere are the kinds of evidence that only protocols over HTTPS make. No RPC accepts them.
var elsewhere = []pki.EvidenceKind{pki.EvidenceX5CTLS, pki.EvidenceACME}

// TestEveryKindOfEvidenceIsKnown checks that the server knows each kind of evidence in the protobuf API, both in an
// enrollment and in a challenge. It also checks that the store accepts enrollments with this kind.
func TestEveryKindOfEvidenceIsKnown(t *testing.T) {
	var seen []pki.EvidenceKind
	fields := new(brevetv1.Evidence).ProtoReflect().Descriptor().Oneofs().ByName("kind").Fields()
	for i := range fields.Len() {
		field := fields.Get(i)
		message := new(brevetv1.Evidence)
		message.ProtoReflect().Set(field, message.ProtoReflect().NewField(field))
		read := evidenceIn([]*brevetv1.Evidence{message})
		kind := read[0].Kind
		if !slices.Contains(pki.EvidenceKinds(), kind) || slices.Contains(seen, kind) {
			t.Errorf("the evidence %s is read as the kind %s: add a case to evidenceIn", field.Name(), kind)
		}
		seen = append(seen, kind)
		if pki.ActorEvidence(kind, "1").NeedsAuthorization() {
			t.Errorf("a store would refuse an enrollment with evidence of the kind %s: its actor needs authorization", kind)
		}
	}
	values := brevetv1.EvidenceKind_EVIDENCE_KIND_UNSPECIFIED.Descriptor().Values()
	for i := range values.Len() {
		value := values.Get(i)
		kind, known := evidenceKinds[brevetv1.EvidenceKind(value.Number())]
		if value.Number() != protoreflect.EnumNumber(0) && (!known || !slices.Contains(seen, kind)) {
			t.Errorf("%s is the kind %s: add it to evidenceKinds, and a field to Evidence", value.Name(), kind)
		}
	}
	for _, kind := range pki.EvidenceKinds() {
		if slices.Contains(seen, kind) == slices.Contains(elsewhere, kind) {
			t.Errorf("evidence of the kind %s belongs either to the contract, or to a protocol over HTTPS", kind)
		}
	}
}
