package ra

import (
	"slices"
	"time"

	"github.com/brevet-pki/brevet/pki"
)

// checkUsed refuses a token that another request has used to enroll the identity. The other party may be a thief, so the
// hint is not to replace the certificates at once.
func (c Claims) checkUsed(id Identity) error {
	if id.State != pki.Enrolled || !slices.ContainsFunc(c, func(k KindClaim) bool { return k.Used }) {
		return nil
	}
	return pki.Refuse(pki.RuleTokenBound, "another machine has used this token, or this one before it lost its files: find out which "+
		"(brevet log list), before you create one with --replace", "the enrollment token was presented before, with another request or key")
}

// minEvidenceLife is the minimum time for which evidence that replaces certificates must still be valid, so that it
// does not expire between the revocation of the old certificates and the record of the new one.
const minEvidenceLife = 10 * time.Second

// checkReplaces refuses to replace the certificates of an enrolled identity, unless the grant allows it, the evidence
// is that of the device that the identity is tied to, and the evidence is valid for long enough.
func checkReplaces(id Identity, g Grant, claims Claims, at time.Time) error {
	if id.State != pki.Enrolled {
		return nil
	}
	if !g.Replace && !claims.recovers() {
		hint := "create a token with --replace, which revokes the certificates it has"
		if !claims.haveToken() {
			hint = "set replace: true in rule " + g.Rule + ", or give the agent a token made with --replace alone " +
				"(brevet-agent enroll --directory DIR --token-file FILE)"
		}
		return pki.Refuse(pki.RuleAlreadyEnrolled, hint, "%s is already enrolled", id.ID)
	}
	// The evidence of a recovery is about no subject, and the identity stays tied to its own.
	same := id.Subject == g.Subject || claims.recovers() && g.Subject.IsZero()
	if !claims.replaces() && !same {
		return id.ID.EvidenceConflict() // an identity that is tied to no device needs the operator's word
	}
	for _, k := range claims {
		for _, end := range []time.Time{k.ExpiresAt, k.Nonce.ExpiresAt} {
			if left := end.Sub(at); !end.IsZero() && left > 0 && left < minEvidenceLife {
				return pki.Refuse(pki.RuleEvidenceExpired, "get a new challenge, or a new token, and send new evidence",
					"the evidence expires in %s, and to replace certificates it must be valid for %s", left, minEvidenceLife)
			}
		}
	}
	return nil
}
