package ra

import (
	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/pki"
)

// maxDecisions is how often a request is decided, if the identity changes each time before the certificate is recorded. Each
// decision may cost a signature, whose certificate is recorded as revoked and not delivered.
const maxDecisions = 3

// repeatStale calls issue, and again if the identity changed during the call. Requests for one identity wait for each other
// only on one server, and an operator may change an identity at any time. The caller has done nothing wrong in either case.
func repeatStale(issue func() (ca.Certificate, error)) (ca.Certificate, error) {
	for n := 1; ; n++ {
		cert, err := issue()
		if refusal, _ := pki.AsRefusal(err); n == maxDecisions || refusal == nil || refusal.Rule != pki.RuleIdentityStale {
			return cert, err
		}
	}
}
