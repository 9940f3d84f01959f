package rules

import (
	"time"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra"
	"github.com/brevet-pki/brevet/revocation"
)

// Outcome is what a call of an operator did, as far as a repeat of the call needs to know it.
type Outcome struct {
	Valid   int         // certificates that changed and had not expired, or tokens that were revoked
	Expired int         // certificates that changed and had expired
	Bulk    int64       // the bulk revocation that the call created; zero for none
	Token   pki.TokenID // the token that the call created; zero for none
}

// RecordedRequest is a call that is on record, by its caller and request ID.
type RecordedRequest struct {
	Content [32]byte
	Outcome Outcome
}

// CheckRepeat refuses a call whose request ID its caller has used for something else.
func (r RecordedRequest) CheckRepeat(now pki.Request) error {
	if r.Content == now.Content {
		return nil
	}
	return pki.Refuse(pki.RuleRequestIDReused, "draw a new request ID for a new call, and repeat a call unchanged",
		"the request ID %s was used for a call with other content", now.ID)
}

// OutcomeOf returns the outcome of a change at a time.
func OutcomeOf(out revocation.ChangeResult, at time.Time) Outcome {
	var n revocation.Affected
	for _, c := range out.Changed {
		n.Add(c.NotAfter, at)
	}
	return Outcome{Valid: n.Valid, Expired: n.Expired, Bulk: out.BulkRevocation}
}

// Repeated returns the result of a change that is repeated. Scope are the current statuses of what the change is about.
func (o Outcome) Repeated(scope []pki.StatusChange) revocation.ChangeResult {
	return revocation.ChangeResult{
		Unchanged: scope, BulkRevocation: o.Bulk, Affected: revocation.Affected{Valid: o.Valid, Expired: o.Expired},
	}
}

// ReplaceToken returns the token that takes the place of one whose secret was lost with an answer. It expires when the
// first token would have. If the first token is not open or was presented, ReplaceToken refuses: its secret was not lost.
func ReplaceToken(first, next ra.Token, revision uint64) (ra.Token, error) {
	if state := TokenState(&first, revision, next.CreatedAt); state != ra.TokenOpen || !first.Request.IsZero() {
		if state == ra.TokenOpen {
			state = "presented"
		}
		return ra.Token{}, pki.Refuse(pki.RuleRequestIDReused, "draw a new request ID for a new token",
			"the token %s that this request created is %s", first.ID, state)
	}
	next.ExpiresAt = first.ExpiresAt
	return next, nil
}

// TokenReplacement is the revocation of a token whose secret was lost with an answer, for the log.
func TokenReplacement(first, next *ra.Token) ra.TokenRevocation {
	return ra.TokenRevocation{ID: first.ID.String(), By: next.CreatedBy, Comment: "its secret was lost with the answer", At: next.CreatedAt}
}
