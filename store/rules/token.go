package rules

import (
	"encoding/hex"
	"time"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra"
	"github.com/brevet-pki/brevet/revocation"
)

// Why tokens were revoked by an operator.
const (
	TokenRevokedAlone  = "an operator revoked it"                      //nolint:gosec // no secret
	TokensRevokedOfAll = "an operator revoked all tokens of its maker" //nolint:gosec // no secret
)

// TokenExists returns the refusal of a new token whose ID is on record.
func TokenExists(id pki.TokenID) *pki.Refusal {
	return pki.Refuse(pki.RuleRequest, "draw a new secret", "the token %s is on record already", id)
}

// BindToken binds a token to a request and key, and reports whether it was bound to nothing before. A revoked token is
// refused.
func BindToken(t ra.Token, request pki.RequestID, key pki.KeyHash) (ra.Token, bool, error) {
	if err := t.CheckRevoked(); err != nil || !t.Request.IsZero() {
		return t, false, err
	}
	t.Request, t.Key = request, key
	return t, true, nil
}

// TokenState returns what a token is good for at a time, while its identity has a revision.
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

// RevokesToken reports whether a revocation changes a token: one that was spent or revoked stays as it is. An expired
// token is revoked too, since the clock may be ahead; Usable reports whether it could have been used.
func RevokesToken(t *ra.Token, at time.Time) (revokes, usable bool) {
	revokes = !t.Spent && t.RevokedBecause == ""
	return revokes, revokes && at.Before(t.ExpiresAt)
}

// CheckTokenRevocation refuses a revocation that is not of exactly one token or one maker.
func CheckTokenRevocation(v ra.TokenRevocation) error {
	if (v.ID == "") == v.CreatedBy.IsZero() {
		return pki.Refuse(pki.RuleRequest, "name one token, or the maker of tokens",
			"a revocation is of exactly one of them")
	}
	return nil
}

// tokenPrefix is how many bytes of a token's ID its text has.
const tokenPrefix = 8

// TokenPrefix returns the first bytes of the ID of the token that a text names, as pki.TokenID.String formats it.
func TokenPrefix(text string) ([]byte, error) {
	first, err := hex.DecodeString(text)
	if err != nil || len(first) != tokenPrefix {
		return nil, pki.Refuse(pki.RuleRequest, "give the 16 hexadecimal digits that brevet token list prints",
			"%.80q names no token", text)
	}
	return first, nil
}

// NoTokenNamed returns the refusal of a text that names no token on record.
func NoTokenNamed(text string) *pki.Refusal {
	return pki.Refuse(pki.RuleNotFound, "look for it with brevet token list", "there is no token %s", text)
}

// Distrust returns why an order revokes the tokens that its subject's identity has made, or an empty text if it does
// not.
func Distrust(o revocation.Change) string {
	switch {
	case o.Action == revocation.Hold && o.State == pki.Suspended:
		return "its maker was suspended"
	case o.Action == revocation.Revoke && o.State == pki.Retired:
		return "its maker was retired"
	case o.Action == revocation.Revoke && Distrusts(o.Reason):
		return "a certificate of its maker was revoked (" + o.Reason.String() + ")"
	default:
		return ""
	}
}

// Distrusts reports whether a reason means that earlier actions of the certificate's holder are not to be trusted.
func Distrusts(r pki.Reason) bool { return r == pki.KeyCompromise || r == pki.PrivilegeWithdrawn }
