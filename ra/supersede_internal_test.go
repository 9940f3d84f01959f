package ra

import (
	"testing"
	"time"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/pki"
)

// repeatSuperseded decides by the status in the records, because it may have changed since the caller was authenticated.
func TestRepeatSuperseded(t *testing.T) {
	t.Parallel()
	key, other := pki.HashSPKI([]byte{1}), pki.HashSPKI([]byte{2})
	answer := &PriorIssuance{Certificate: ca.Certificate{DER: []byte("renewed")}, Key: key, Supersedes: true}
	revoked := func(why pki.Reason) pki.Status { return pki.Status{State: pki.Revoked, Reason: why} }
	for name, c := range map[string]struct {
		old    Predecessor
		answer *PriorIssuance
		key    pki.KeyHash
		want   pki.Rule // empty if the certificate is returned
	}{
		"its renewal's request":        {Predecessor{revoked(pki.Superseded), "", key, time.Time{}, time.Time{}, true, false}, answer, key, ""},
		"another request":              {Predecessor{revoked(pki.Superseded), "", key, time.Time{}, time.Time{}, true, false}, nil, key, pki.RuleRevoked},
		"renewal of another one":       {Predecessor{revoked(pki.Superseded), "", key, time.Time{}, time.Time{}, true, false}, &PriorIssuance{Key: key}, key, pki.RuleRevoked},
		"another key":                  {Predecessor{revoked(pki.Superseded), "", key, time.Time{}, time.Time{}, true, false}, answer, other, pki.RuleRenewalKeyConflict},
		"compromised since":            {Predecessor{revoked(pki.KeyCompromise), "", key, time.Time{}, time.Time{}, true, false}, answer, key, pki.RuleRevoked},
		"superseded by an operator":    {Predecessor{revoked(pki.Superseded), "", key, time.Time{}, time.Time{}, false, false}, answer, key, pki.RuleRevoked},
		"by an operator, another key":  {Predecessor{revoked(pki.Superseded), "", key, time.Time{}, time.Time{}, false, false}, answer, other, pki.RuleRevoked},
		"on hold, and answered before": {Predecessor{pki.Status{State: pki.Hold, Reason: pki.CertificateHold}, "", key, time.Time{}, time.Time{}, false, false}, answer, key, pki.RuleRevoked},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cert, err := repeatSuperseded(IssuanceState{Predecessor: c.old, Prior: c.answer}, c.key, pki.CertRef{})
			refusal, refused := pki.AsRefusal(err)
			switch {
			case c.want == "" && (err != nil || string(cert.DER) != "renewed"):
				t.Errorf("got %q, %v, want the certificate", cert.DER, err)
			case c.want != "" && (!refused || refusal.Rule != c.want || cert.DER != nil):
				t.Errorf("got %q, %v, want a refusal with the rule %s", cert.DER, err, c.want)
			}
		})
	}
}
