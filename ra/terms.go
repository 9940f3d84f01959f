package ra

import (
	"context"
	"slices"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/pki"
)

// applyTerms refuses a request that the terms of the identity's enrollment do not allow. inHardware is true if it is
// proven that the key is in hardware. If the request names no lifetime, and the terms allow less than the default of
// the profile, applyTerms sets the lifetime to their maximum.
func applyTerms(t pki.Terms, p *ca.Profile, inHardware bool, req *ca.Request) error {
	if len(t.Keys) > 0 {
		if kind, err := ca.TypeOf(req.Key); err != nil || !slices.Contains(t.Keys, kind) {
			return pki.Refuse(pki.RuleKeyType, "use one of "+pki.JoinKeyTypes(t.Keys),
				"the rule with which %s enrolled does not allow this key", req.Identity)
		}
	}
	if t.HardwareKey && !inHardware {
		return pki.Refuse(pki.RuleHardwareKey, "make the key in the TPM and send evidence of it, or renew with the same key",
			"the rule with which %s enrolled requires a key in hardware, which is not proven", req.Identity)
	}
	switch {
	case t.MaxLifetime == 0:
	case req.Lifetime == 0 && p.Lifetime() > t.MaxLifetime:
		req.Lifetime = t.MaxLifetime
	case req.Lifetime > t.MaxLifetime:
		return pki.Refuse(pki.RuleLifetime, "request at most "+pki.FormatDuration(t.MaxLifetime),
			"the rule with which %s enrolled allows %s, and the request asks for %s", req.Identity, pki.FormatDuration(t.MaxLifetime), pki.FormatDuration(req.Lifetime))
	}
	return nil
}

// provesHardware reports whether one of the claims proves that the key of the request is in hardware.
func (c Claims) provesHardware() bool {
	return slices.ContainsFunc(c, func(k KindClaim) bool { return k.HardwareKey })
}

// proveHardware returns the claims that prove that the key of a renewal is in hardware, if the terms of the enrollment
// require that. They are nil if the terms do not, if the key is that of the predecessor, whose key was proven before,
// or if the request has no evidence. proveHardware refuses evidence of another device than the identity is tied to.
func (r *Registrar) proveHardware(
	ctx context.Context, rev Revision, st IssuanceState, n RenewRequest, key pki.KeyHash,
) (Claims, error) {
	if !st.Identity.Terms.HardwareKey || st.Predecessor.SameKey || n.Evidence.Kind == 0 {
		return nil, nil
	}
	e := EnrollRequest{RequestID: n.RequestID, Evidence: []pki.Evidence{n.Evidence}, From: n.From}
	claims, err := rev.identify(ctx, e, key, r.clock())
	if err != nil {
		return nil, err
	}
	if claims[0].Subject.IsZero() || claims[0].Subject != st.Identity.Subject {
		return nil, st.Identity.ID.EvidenceConflict()
	}
	return claims, nil
}
