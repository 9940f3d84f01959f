package rules

import (
	"time"

	"github.com/brevet-pki/brevet/pki"
)

// Recovery holds the records that a [pki.Recovery] depends on. It is zero for a certificate that is no recovery.
type Recovery struct {
	State pki.IdentityState
	// Proven is the certificate whose key the caller proved to hold. It is zero if it was not issued to the identity.
	Proven RecoveryCertificate
	// Newest is the certificate of the identity that was recorded last.
	Newest RecoveryCertificate
	// Precedes is true if the renewal of Proven has the key of Newest.
	Precedes bool
	// OtherGood is true if another certificate than Proven is good and has not expired.
	OtherGood bool
	// Missed is true if a bulk revocation selects Proven or Newest, but did not reach it, because the policy had a shorter
	// grace then.
	Missed bool
	// KeyKnown is true if the key of the new certificate is on record.
	KeyKnown bool
	// Count is the number of recoveries of the identity in a row.
	Count int
}

// RecoveryCertificate is the state of a certificate that a recovery depends on.
type RecoveryCertificate struct {
	Ref      pki.CertRef
	NotAfter time.Time
	// Status is the effective status, with the open bulk revocations.
	Status pki.Status
	// Superseded is true if the renewal of the certificate revoked it, and Renewed is true if it was renewed.
	Superseded, Renewed bool
	// Compromised is true if the key was revoked for keyCompromise, by itself or by an open bulk revocation.
	Compromised bool
}

const hintRecovery = "an operator creates a token (brevet token create --replace)"

// Check returns the refusal of a recovery of an identity, or nil.
func (r *Recovery) Check(id pki.SPIFFEID, want pki.Recovery, at time.Time) *pki.Refusal {
	if r.State != pki.Enrolled {
		return pki.Refuse(pki.RuleIdentityState, "ask an operator", "%s is %s", id, r.State)
	}
	if r.Proven.Ref.IsZero() {
		return NoPredecessor(want.Certificate)
	}
	for _, c := range []RecoveryCertificate{r.Proven, r.Newest} {
		if refusal := c.check(c.Ref != r.Newest.Ref); refusal != nil {
			return refusal
		}
	}
	if r.Missed {
		return pki.Refuse(pki.RuleRevoked, hintRecovery, "a bulk revocation selects certificate %s, which had expired then", r.Proven.Ref.Serial)
	}
	if r.Proven.Ref != r.Newest.Ref && (!r.Precedes || r.Newest.Renewed) {
		return pki.Refuse(pki.RuleRecoveryNewest, "recover with the key of the newest certificate; without it, "+hintRecovery,
			"certificate %s is not the newest one of %s", r.Proven.Ref.Serial, id)
	}
	return r.checkTime(id, want, at)
}

// checkTime refuses a recovery that is too early, too late, or one too many, and one without a new key.
func (r *Recovery) checkTime(id pki.SPIFFEID, want pki.Recovery, at time.Time) *pki.Refusal {
	expired := r.Proven.NotAfter
	switch {
	case !at.After(expired):
		return pki.Refuse(pki.RuleRecoveryValid, "renew it; if it has expired by the device's clock, set that clock",
			"certificate %s is valid until %s, and the server's time is %s", r.Proven.Ref.Serial,
			expired.UTC().Format(time.RFC3339), at.UTC().Format(time.RFC3339))
	case r.OtherGood:
		return pki.Refuse(pki.RuleRecoveryValid,
			"renew that certificate; if its key is lost, recover when it has expired, or have it revoked and enroll with a token",
			"%s has another certificate that is valid", id)
	case at.After(expired.Add(want.Grace)):
		return pki.Refuse(pki.RuleRecoveryGrace, hintRecovery, "certificate %s expired at %s, and the policy allows a recovery for %s",
			r.Proven.Ref.Serial, expired.UTC().Format(time.RFC3339), want.Grace)
	case r.Count >= want.Times:
		return pki.Refuse(pki.RuleRecoveryLimit, hintRecovery, "%s has recovered %d times in a row, and the policy allows %d", id, r.Count, want.Times)
	case r.KeyKnown:
		return pki.Refuse(pki.RuleKeyInUse, "generate a new key", "the key was certified before, and a recovery needs a new one")
	default:
		return nil
	}
}

// check refuses a certificate with a compromised key, and a revoked one. If older is true, it accepts a certificate that
// its renewal revoked.
func (c *RecoveryCertificate) check(older bool) *pki.Refusal {
	switch {
	case c.Compromised:
		return pki.Refuse(pki.RuleRevoked, hintRecovery, "the key of certificate %s was revoked as compromised", c.Ref.Serial)
	case c.Status.State == pki.Good, older && c.Superseded && c.Status.Reason == pki.Superseded:
		return nil
	default:
		return pki.Refuse(pki.RuleRevoked, "ask an operator: a held certificate can be taken off hold; otherwise "+hintRecovery,
			"certificate %s is %s (%s)", c.Ref.Serial, c.Status.State.Predicate(), c.Status.Reason)
	}
}

// checkRecovery checks the recovery of a guard again. The newest certificate must be the one on which the decision was based.
func (s *Issuance) checkRecovery(g *pki.Guard, at time.Time) *pki.Refusal {
	if g.Recovery.IsZero() {
		return nil
	}
	if refusal := s.Recovery.Check(g.Identity, g.Recovery, at); refusal != nil {
		return refusal
	}
	if s.Recovery.Newest.Ref != g.Predecessor {
		return pki.Refuse(pki.RuleIdentityStale, "repeat the request", "%s got a certificate while the request was in progress", g.Identity)
	}
	return nil
}

// NextRecoveries returns the number of recoveries of an identity in a row, after a certificate with this guard. before is
// the number before the certificate.
func NextRecoveries(g *pki.Guard, before int) int {
	switch {
	case !g.Recovery.IsZero():
		return before + 1
	case g.Enrolls || !g.Predecessor.IsZero():
		return 0
	default:
		return before
	}
}
