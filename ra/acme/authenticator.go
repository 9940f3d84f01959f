package acme

import (
	"context"
	"crypto/sha256"
	"slices"
	"time"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra"
)

// The facts of an order.
const (
	factNames       = "acme.names"        // its names, wildcards with "*."
	factName        = "acme.name"         // its name, if it has only one
	factDomain      = "acme.domain"       // the longest domain that contains all names
	factWildcard    = "acme.wildcard"     // whether one of them is a wildcard
	factAccount     = "acme.account"      // the ID of its account
	factExternalKey = "acme.external_key" // the ID of the account's external key
	factIdentity    = "acme.identity"     // the path of the identity that the external key names, if it names one
	factChallenges  = "acme.challenges"   // the types of the challenges with which the names were validated: a condition sees each alone
)

// Settings are the section of the policy about ACME.
type Settings struct {
	// OptionalBinding allows accounts without an external account binding.
	OptionalBinding bool
	// Challenges are the types of challenges that are offered. There is at least one.
	Challenges []ChallengeType
}

// OrderReader reads orders.
type OrderReader interface {
	// Order returns a consistent snapshot of an order and what it depends on, as of a time.
	Order(ctx context.Context, id ID, at time.Time) (OrderState, error)
}

// Authenticator is an ra.Authenticator for orders. The evidence is the ID of an order. The zero value only declares
// facts. It is safe for concurrent use.
type Authenticator struct {
	settings Settings
	orders   OrderReader
}

// NewAuthenticator returns an Authenticator. orders may be nil for a policy that is only checked.
func NewAuthenticator(s Settings, orders OrderReader) *Authenticator {
	return &Authenticator{s, orders}
}

// Settings returns the section of the policy.
func (a *Authenticator) Settings() Settings { return a.settings }

// Facts implements ra.Authenticator.
func (*Authenticator) Facts() map[string]ra.FactType {
	return map[string]ra.FactType{
		factNames: ra.FactStrings, factName: ra.FactString, factDomain: ra.FactString, factWildcard: ra.FactBool, factAccount: ra.FactString,
		factExternalKey: ra.FactString, factIdentity: ra.FactString, factChallenges: ra.FactStrings,
	}
}

// Unique implements policy.Distinguisher.
func (*Authenticator) Unique() []ra.UniqueFact { return []ra.UniqueFact{{Name: factName}} }

// Itemized implements policy.Itemizer. A rule must allow each name of an order with the challenge that validated it.
func (*Authenticator) Itemized() string { return factChallenges }

// Identify implements ra.Authenticator. It accepts an order that has a certificate, too, because a repeated request must
// get the same response.
func (a *Authenticator) Identify(ctx context.Context, p ra.Presented) (ra.Claim, error) {
	if len(p.Evidence) != len(ID{}) {
		return ra.Claim{}, pki.Refuse(pki.RuleEvidenceMalformed, "finalize an order", "the ID of an order has %d bytes, not %d",
			len(ID{}), len(p.Evidence))
	}
	st, err := a.orders.Order(ctx, ID(p.Evidence), p.At)
	if err != nil {
		return ra.Claim{}, err
	}
	var used []ChallengeType
	for _, authorization := range st.Authorizations {
		for _, c := range authorization.Challenges {
			if c.Status == StatusValid {
				used = append(used, c.Type)
			}
		}
	}
	claim := st.claim(used)
	if err := st.Account.CheckValid(); err != nil {
		return claim, err
	}
	if st.Order.Status != StatusReady && st.Order.Status != StatusValid {
		return claim, st.Order.notReady()
	}
	return claim, nil
}

// Bind implements ra.Authenticator. There is nothing to bind: the guard of the certificate has the order.
func (*Authenticator) Bind(context.Context, []byte, ra.Binding) error { return nil }

// claim returns what the order proves if its names were validated with challenges of the given types.
func (st *OrderState) claim(used []ChallengeType) ra.Claim {
	o := &st.Order
	types := make([]string, 0, len(used))
	for _, t := range used {
		types = append(types, string(t))
	}
	slices.Sort(types)
	types = slices.Compact(types)
	names := make([]string, len(o.Identifiers))
	for i, n := range o.Identifiers {
		names[i] = n.Value
	}
	facts := map[string]any{
		factNames: names, factWildcard: slices.ContainsFunc(o.Identifiers, Identifier.IsWildcard), factAccount: st.Account.ID.String(),
		factChallenges: types,
	}
	if len(names) == 1 {
		facts[factName] = names[0]
	}
	if domain := commonDomain(o.Identifiers); domain != "" {
		facts[factDomain] = domain
	}
	if !st.Key.ID.IsZero() {
		facts[factExternalKey] = st.Key.ID.String()
	}
	if !st.Key.Identity.IsZero() {
		facts[factIdentity] = st.Key.Identity.Path()
	}
	claim := ra.Claim{
		Identity: st.Key.Identity, Facts: facts, Digest: sha256.Sum256(o.ID[:]), Actor: st.Account.Actor(),
		Order: &ra.Order{ID: o.ID.Request(), Names: NamesOf(o.Identifiers), Profile: o.Profile, Rule: st.Key.Rule},
	}
	if claim.Identity.IsZero() && len(names) == 1 {
		claim.Subject = pki.EvidenceSubject{Kind: pki.EvidenceACME, Hash: sha256.Sum256([]byte(o.Identifiers[0].String()))}
	}
	return claim
}

// Actor returns the account as the actor of log entries.
func (a *Account) Actor() pki.Actor { return pki.ActorEvidence(pki.EvidenceACME, a.ID.String()) }

// CheckValid refuses an account that was deactivated or revoked.
func (a *Account) CheckValid() error {
	if a.Status == AccountValid {
		return nil
	}
	return pki.Refuse(pki.RuleACMEAccountStatus, "create an account with a new key; if it needs an external key, ask the operator for one",
		"the account was %s", a.Status)
}

// CheckReady refuses an order for which no certificate can be issued, or one was issued before.
func (st *OrderState) CheckReady() *pki.Refusal {
	if refusal, ok := pki.AsRefusal(st.Account.CheckValid()); ok {
		return refusal
	}
	if st.Order.Status != StatusReady {
		return st.Order.notReady()
	}
	return nil
}

// notReady returns the refusal of an order that cannot be finalized.
func (o *Order) notReady() *pki.Refusal {
	switch o.Status {
	case StatusPending:
		return pki.Refuse(pki.RuleACMEOrderNotReady, "fulfill a challenge of each authorization first", "the order is pending")
	case StatusValid:
		return pki.Refuse(pki.RuleACMEOrderNotReady, "download the certificate, or create a new order", "the order has a certificate")
	}
	detail := "it has expired, or an authorization was deactivated"
	if o.Failure != nil {
		detail = o.Failure.Detail
	}
	return pki.Refuse(pki.RuleACMEOrderNotReady, "create a new order", "the order is %s: %s", o.Status, detail)
}
