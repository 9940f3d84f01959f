package operator

import (
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
)

// The messages of suspend and resume depend on the remaining lifetimes of the identity's certificates.
func TestSuspensionsSayHowLongTheyCanBeUndone(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	with := func(state brevetv1.CertificateState, life, left time.Duration) *brevetv1.Certificate {
		end := now.Add(left)
		return &brevetv1.Certificate{State: state, NotBefore: timestamppb.New(end.Add(-life)), NotAfter: timestamppb.New(end)}
	}
	const hold, good, revoked = brevetv1.CertificateState_CERTIFICATE_STATE_HOLD, brevetv1.CertificateState_CERTIFICATE_STATE_GOOD,
		brevetv1.CertificateState_CERTIFICATE_STATE_REVOKED
	for name, c := range map[string]struct {
		certificates  []*brevetv1.Certificate
		held, resumed string
	}{
		"expired on hold": {
			[]*brevetv1.Certificate{with(hold, time.Hour, -time.Second), with(revoked, time.Hour, time.Minute)},
			"id has no certificate that is valid: once resumed, it needs a new token", "All certificates of id expired or were revoked: it needs a new token",
		},
		"near their end": {
			[]*brevetv1.Certificate{with(hold, 24*time.Hour, 59*time.Minute), with(good, 24*time.Hour, 61*time.Minute), with(hold, time.Hour, 14*time.Minute)},
			"3 certificates on hold, 2 about to expire. The last expires at 2026-01-01T01:01:00Z: ", "3 certificates good again, 2 about to expire. The last expires at 2026-01-01T01:01:00Z: ",
		},
	} {
		var v validity
		for _, certificate := range c.certificates {
			v.add(certificate, now)
		}
		var held, resumed strings.Builder
		explainSuspension(&held, "id", v)
		explainResumption(&resumed, "id", v)
		if !strings.HasPrefix(held.String(), c.held) || !strings.HasPrefix(resumed.String(), c.resumed) {
			t.Errorf("%s: %s%s", name, &held, &resumed)
		}
		for _, text := range []string{held.String(), resumed.String()} {
			if !strings.Contains(text, "brevet token create id --replace") {
				t.Errorf("%s: %s", name, text)
			}
		}
	}
}
