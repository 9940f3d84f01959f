package rules

import (
	"time"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra"
	"github.com/brevet-pki/brevet/revocation"
)

// Outcome is the recorded result of an operator's RPC. A repeat of the RPC returns it.
type Outcome struct {
	Valid    int         // certificates that changed and had not expired, or tokens that were revoked
	Expired  int         // certificates that changed and had expired
	Bulk     int64       // the bulk revocation that the RPC created; zero for none
	Token    pki.TokenID // the token that the RPC created; zero for none
	Rotation int64       // the rotation that the RPC started or stopped; zero for none
}

// RecordedRequest is the record of an RPC. Its key is the caller and the request ID.
type RecordedRequest struct {
	Content [32]byte
	Outcome Outcome
}

// CheckRepeat refuses an RPC whose request ID the caller has used for other content.
func (r RecordedRequest) CheckRepeat(now pki.Request) error {
	if r.Content == now.Content {
		return nil
	}
	return pki.Refuse(pki.RuleRequestIDReused, "generate a new request ID for a new request, and repeat a request unchanged",
		"the request ID %s was used for a request with other content", now.ID)
}

// OutcomeOf returns the outcome of a change that was made at the given time.
func OutcomeOf(out revocation.ChangeResult, at time.Time) Outcome {
	var n revocation.Affected
	for _, c := range out.Changed {
		n.Add(c.NotAfter, at)
	}
	return Outcome{Valid: n.Valid, Expired: n.Expired, Bulk: out.BulkRevocation}
}

// Repeated returns the result of a repeated change. The argument scope holds the current statuses of its certificates.
func (o Outcome) Repeated(scope []pki.StatusChange) revocation.ChangeResult {
	return revocation.ChangeResult{
		Unchanged: scope, BulkRevocation: o.Bulk, Affected: revocation.Affected{Valid: o.Valid, Expired: o.Expired},
	}
}

// ReplaceToken returns the replacement of a token whose secret was lost with the response. It has the expiry of the first
// token. If the first token is not open or was presented, its secret was not lost, and ReplaceToken refuses.
func ReplaceToken(first, next ra.Token, revision uint64) (ra.Token, error) {
	if state := TokenState(&first, revision, next.CreatedAt); state != ra.TokenOpen || !first.Request.IsZero() {
		if state == ra.TokenOpen {
			state = "presented"
		}
		return ra.Token{}, pki.Refuse(pki.RuleRequestIDReused, "generate a new request ID for a new token",
			"the token %s that this request created is %s", first.ID, state)
	}
	next.ExpiresAt = first.ExpiresAt
	return next, nil
}

// TokenReplacement returns the revocation of a token whose secret was lost with the response.
func TokenReplacement(first, next *ra.Token) ra.TokenRevocation {
	return ra.TokenRevocation{ID: first.ID.String(), By: next.CreatedBy, Comment: "its secret was lost with the response", At: next.CreatedAt}
}
