package rules_test

import (
	"testing"
	"time"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/store/rules"
)

// TestNewestCertificateWithASuccessor checks a state in which the retention has removed the successor of the newest
// certificate. The predecessor of the newest certificate cannot recover then.
func TestNewestCertificateWithASuccessor(t *testing.T) {
	at := time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)
	certificate := func(last byte) rules.RecoveryCertificate {
		serial, err := pki.SerialFromBytes(append(make([]byte, 19), last))
		if err != nil {
			t.Fatal(err)
		}
		return rules.RecoveryCertificate{Ref: pki.CertRef{Serial: serial}, NotAfter: at.Add(-time.Minute), Status: pki.Status{State: pki.Good}}
	}
	r := rules.Recovery{State: pki.Enrolled, Proven: certificate(1), Newest: certificate(2), Precedes: true}
	want := pki.Recovery{Certificate: r.Proven.Ref, Grace: time.Hour, Times: 1}
	if refusal := r.Check(pki.SPIFFEID{}, want, at); refusal != nil {
		t.Errorf("without a successor: %v", refusal)
	}
	r.Newest.Renewed = true
	if refusal := r.Check(pki.SPIFFEID{}, want, at); refusal == nil || refusal.Rule != pki.RuleRecoveryNewest {
		t.Errorf("with a successor: %v, want %s", refusal, pki.RuleRecoveryNewest)
	}
}
