package rules

import (
	"encoding/hex"
	"time"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra"
	"github.com/brevet-pki/brevet/revocation"
)

// Causes of the revocation of tokens by an operator.
const (
	TokenRevokedAlone  = "an operator revoked it"                        //nolint:gosec // no secret
	TokensRevokedOfAll = "an operator revoked all tokens of its creator" //nolint:gosec // no secret
)

// TokenExists returns the refusal of a new token whose ID is on record.
func TokenExists(id pki.TokenID) *pki.Refusal {
	return pki.Refuse(pki.RuleRequest, "generate a new secret", "the token %s is already on record", id)
}

// BindToken binds a token to a request and key if it is not bound yet, and reports whether it did. It refuses a revoked
// token, and a token for another key. It binds a token with a pattern also to the identity of b, whose record is have, or
// nil if it is not registered. It refuses a binding that was decided on another record.
func BindToken(t ra.Token, b ra.Binding, have *ra.Identity) (ra.Token, bool, error) {
	if err := t.CheckRevoked(); err != nil || !t.Request.IsZero() {
		return t, false, err
	}
	if err := t.CheckKey(b.Key); err != nil {
		return t, false, err
	}
	if t.Pattern != "" {
		if isNew := have == nil; isNew != (b.Register != nil) || !isNew && have.Revision != b.Identity.Revision {
			return t, false, identityChanged(b.Identity.ID)
		}
		t.Identity, t.IdentityRevision = b.Identity.ID, b.Identity.Revision
	}
	t.Request, t.Key = b.Request, b.Key
	return t, true, nil
}

// TokenState returns the state of a token at the given time, if its identity has the given revision. A token with a
// pattern has no identity before it is bound; then the revision is zero.
func TokenState(t *ra.Token, revision uint64, at time.Time) ra.TokenState {
	switch {
	case t.Spent:
		return ra.TokenSpent
	case t.RevokedBecause != "":
		return ra.TokenRevoked
	case !at.Before(t.ExpiresAt):
		return ra.TokenExpired
	case t.IdentityRevision != revision:
		return ra.TokenStale
	default:
		return ra.TokenOpen
	}
}

// RevokesToken reports whether a revocation changes a token. It does not change a spent or revoked token. It does change an
// expired token, because the clock may be ahead. The second result is true if the token could have been used.
func RevokesToken(t *ra.Token, at time.Time) (revokes, usable bool) {
	revokes = !t.Spent && t.RevokedBecause == ""
	return revokes, revokes && at.Before(t.ExpiresAt)
}

// CheckTokenRevocation refuses a revocation that does not name exactly one token or one creator.
func CheckTokenRevocation(v ra.TokenRevocation) error {
	if (v.ID == "") == v.CreatedBy.IsZero() {
		return pki.Refuse(pki.RuleRequest, "name one token, or the creator of tokens",
			"the revocation does not name exactly one of them")
	}
	return nil
}

// tokenPrefix is the number of bytes of a token's ID that its text form contains.
const tokenPrefix = 8

// TokenPrefix parses the text form of a token ID, as pki.TokenID.String formats it, and returns the first bytes of the ID.
func TokenPrefix(text string) ([]byte, error) {
	first, err := hex.DecodeString(text)
	if err != nil || len(first) != tokenPrefix {
		return nil, pki.Refuse(pki.RuleRequest, "give the 16 hexadecimal digits that brevet token list prints",
			"%.80q is not a token ID", text)
	}
	return first, nil
}

// NoTokenNamed returns the refusal of a token ID, in its text form, that is not on record.
func NoTokenNamed(text string) *pki.Refusal {
	return pki.Refuse(pki.RuleNotFound, "look for it with brevet token list", "there is no token %s", text)
}

// Distrust returns the cause for which the change o revokes all tokens that the identity has created. It returns an empty
// text if o does not revoke them.
func Distrust(o revocation.Change) string {
	switch {
	case o.Action == revocation.Hold && o.State == pki.Suspended:
		return "its creator was suspended"
	case o.Action == revocation.Revoke && o.State == pki.Retired:
		return "its creator was retired"
	case o.Action == revocation.Revoke && Distrusts(o.Reason):
		return "a certificate of its creator was revoked (" + o.Reason.String() + ")"
	default:
		return ""
	}
}

// Distrusts reports whether a reason means that earlier actions of the certificate's holder are not to be trusted.
func Distrusts(r pki.Reason) bool { return r == pki.KeyCompromise || r == pki.PrivilegeWithdrawn }
