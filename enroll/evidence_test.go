package enroll

import (
	"testing"

	"github.com/brevet-pki/brevet/pki"
)

func TestClientSendsEveryKindOfEvidence(t *testing.T) {
	for _, kind := range pki.EvidenceKinds() {
		value := pki.X5CEvidence{}.Encode() // most kinds are sent unread
		if kind == pki.EvidenceRecovery {
			value = pki.RecoveryEvidence{}.Encode()
		}
		if wire, err := wireEvidence([]pki.Evidence{{Kind: kind, Value: value}}); err != nil || len(wire) != 1 || wire[0].GetKind() == nil {
			t.Errorf("evidence of the kind %s is sent as %v, %v: add a case to wireEvidence", kind, wire, err)
		}
	}
}
