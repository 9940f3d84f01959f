package acme

import (
	"context"

	"github.com/brevet-pki/brevet/pki"
)

// Authorization returns an authorization of an account.
func (a *Authority) Authorization(ctx context.Context, account, id ID) (Authorization, error) {
	if _, err := a.settings(); err != nil {
		return Authorization{}, err
	}
	return a.Store.Authorization(ctx, account, id, a.Clock())
}

// NoAuthorization returns the refusal of an authorization that is not on record, or is that of another account.
func NoAuthorization(id ID) *pki.Refusal {
	return pki.Refuse(pki.RuleACMEAuthorization, "use the authorizations of an order of the account", "the account has no authorization %s", id)
}

// DeactivateAuthorization deactivates a pending or valid authorization (RFC 8555 section 7.5.2). Its order becomes
// invalid, unless it has a certificate.
func (a *Authority) DeactivateAuthorization(ctx context.Context, account, id ID) (Authorization, error) {
	have, err := a.Authorization(ctx, account, id)
	if err != nil {
		return Authorization{}, err
	}
	if have.Status != StatusPending && have.Status != StatusValid {
		return have, pki.Refuse(pki.RuleACMEAuthorized, "deactivate pending or valid authorizations", "the authorization is %s", have.Status)
	}
	have, _, err = a.Store.MoveAuthorization(ctx, Move{Account: account, Authorization: id, Kind: Withdraw, At: a.Clock()})
	return have, err
}

// BeginValidation marks a challenge as processing, and returns its authorization. If starts is true, the caller must
// validate the challenge and call EndValidation. Otherwise the challenge is already processing or finished. If the caller
// does not call EndValidation within ValidationTimeout, the client can begin again.
func (a *Authority) BeginValidation(ctx context.Context, account, authorization ID, t ChallengeType) (have Authorization, starts bool, err error) {
	if _, err := a.settings(); err != nil {
		return Authorization{}, false, err
	}
	have, starts, err = a.Store.MoveAuthorization(ctx, Move{
		Account: account, Authorization: authorization, Kind: Begin, Challenge: t, At: a.Clock(),
	})
	if err == nil && have.Challenge(t) == nil {
		return Authorization{}, false, pki.Refuse(pki.RuleACMEAuthorization, "use a challenge of the authorization",
			"the authorization has no challenge of the type %.20q", string(t))
	}
	return have, starts, err
}

// EndValidation records the result of a validation, and returns the authorization. failure is nil if the challenge was
// fulfilled. A result that comes too late has no effect.
func (a *Authority) EndValidation(ctx context.Context, authorization ID, t ChallengeType, failure *pki.Refusal) (Authorization, error) {
	m := Move{Authorization: authorization, Kind: Succeed, Challenge: t, At: a.Clock()}
	if failure != nil {
		m.Kind, m.Failure = Fail, failure
	}
	have, _, err := a.Store.MoveAuthorization(ctx, m)
	return have, err
}
