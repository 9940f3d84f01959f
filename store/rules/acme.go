package rules

import (
	"slices"
	"time"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra/acme"
	"github.com/brevet-pki/brevet/translog"
)

// ExternalKeyRevokedAlone is the cause of the revocation of an external key by an operator.
const ExternalKeyRevokedAlone = "an operator revoked it"

// CheckExternalKeyOpen refuses to create an account with an external key that is not open, or whose identity cannot have
// certificates.
func CheckExternalKeyOpen(k *acme.ExternalKey, at time.Time) *pki.Refusal {
	if state := k.State(at); state != acme.ExternalKeyOpen {
		return pki.Refuse(pki.RuleACMEBinding, "ask the operator for a new external key (brevet acme eab create)", "the external key is %s", state)
	}
	return k.CheckIdentity()
}

// NoExternalKey returns the refusal of an external key that is not on record.
func NoExternalKey(id acme.ID) *pki.Refusal {
	return pki.Refuse(pki.RuleNotFound, "look for it with brevet acme eab list", "there is no external key %s", id)
}

// NoAccount returns the refusal of an account that is not on record.
func NoAccount() *pki.Refusal {
	return pki.Refuse(pki.RuleACMEAccount, "create an account first", "there is no account with this key or ID")
}

// UnknownAccount returns the refusal of an operator's request about an account that is not on record.
func UnknownAccount(id acme.ID) *pki.Refusal {
	return pki.Refuse(pki.RuleNotFound, "look for it with brevet acme account list", "there is no account %s", id)
}

// ChangeAccount returns the account after a change by its holder, and reports whether it differs. holder is the account
// that has the new key, or nil.
func ChangeAccount(a acme.Account, c acme.AccountChange, holder *acme.Account) (acme.Account, bool, error) {
	if c.Deactivate && a.Status == acme.AccountDeactivated {
		return a, false, nil
	}
	if err := a.CheckValid(); err != nil {
		return a, false, err
	}
	switch {
	case c.Deactivate:
		a.Status = acme.AccountDeactivated
	case c.SetContact:
		if slices.Equal(a.Contact, c.Contact) {
			return a, false, nil
		}
		a.Contact = c.Contact
	default:
		if a.Thumbprint == c.NewThumbprint {
			return a, false, nil // a repeat
		}
		if a.Thumbprint != c.OldThumbprint {
			return a, false, pki.Refuse(pki.RuleACMEAccountKey, "sign with the key that the account has now", "the account has another key than the old one")
		}
		if holder != nil {
			return a, false, pki.Refuse(pki.RuleACMEAccountKey, "generate a new key", "the new key is that of another account")
		}
		a.Key, a.Thumbprint = c.NewKey, c.NewThumbprint
	}
	return a, true, nil
}

// CheckNewOrder refuses a new order of an account that is not valid, or has open orders without a certificate up to the
// limit. Only then it calls isReplaced, which reports whether an order that is not invalid replaces the same certificate.
func CheckNewOrder(a *acme.Account, o *acme.Order, open int, isReplaced func() (bool, error)) error {
	if err := a.CheckValid(); err != nil {
		return err
	}
	if open >= acme.MaxOpenOrders {
		return pki.Refuse(pki.RuleACMEOrders, "finalize the orders that exist, or wait until they expire, after 24 hours at most",
			"the account has %d orders without a certificate", open)
	}
	if o.Replaces.IsZero() {
		return nil
	}
	if replaced, err := isReplaced(); err != nil || !replaced {
		return err
	}
	return pki.Refuse(pki.RuleACMEReplaced, "finalize the other order, or create the order without replaces",
		"another order replaces certificate %s", o.Replaces.Serial)
}

// CheckAuthorizationOf refuses an account that is not valid, or has not ordered an authorization. owner is the account that has.
// It refuses nothing if account is zero.
func CheckAuthorizationOf(account, authorization acme.ID, owner *acme.Account) error {
	switch account {
	case acme.ID{}:
		return nil
	case owner.ID:
		return owner.CheckValid()
	default:
		return acme.NoAuthorization(authorization)
	}
}

// ACMEAuthorization is the recorded state of an authorization. The rest follows from its order.
type ACMEAuthorization struct {
	Status  acme.Status // pending, valid, invalid or deactivated
	Offered []acme.ChallengeType
	Token   string
	// Attempt is the challenge that is processing, or that decided the status. It is empty if there is none.
	Attempt acme.ChallengeType
	// AttemptedAt is when the challenge began to be processed, or when it decided the status.
	AttemptedAt time.Time
	Failure     *pki.Refusal
}

// NewACMEAuthorization returns the recorded state of a new authorization.
func NewACMEAuthorization(a *acme.Authorization) ACMEAuthorization {
	s := ACMEAuthorization{Status: acme.StatusPending}
	for _, c := range a.Challenges {
		s.Offered, s.Token = append(s.Offered, c.Type), c.Token
	}
	return s
}

// Move returns the state after a move, and reports whether the move fits. expires is the expiry of the order.
func (s ACMEAuthorization) Move(m acme.Move, expires time.Time) (ACMEAuthorization, bool) {
	if !m.At.Before(expires) {
		return s, false
	}
	isProcessing := s.Status == acme.StatusPending && s.Attempt == m.Challenge && m.Challenge != ""
	switch m.Kind {
	case acme.Begin:
		isFree := s.Attempt == "" || !m.At.Before(s.AttemptedAt.Add(acme.ValidationTimeout))
		if s.Status != acme.StatusPending || !isFree || !slices.Contains(s.Offered, m.Challenge) {
			return s, false
		}
		s.Attempt = m.Challenge
	case acme.Succeed:
		if !isProcessing {
			return s, false
		}
		s.Status = acme.StatusValid
	case acme.Fail:
		if !isProcessing {
			return s, false
		}
		s.Status, s.Failure = acme.StatusInvalid, m.Failure
	case acme.Withdraw:
		if s.Status != acme.StatusPending && s.Status != acme.StatusValid {
			return s, false
		}
		s.Status = acme.StatusDeactivated
		return s, true
	default:
		return s, false
	}
	s.AttemptedAt = m.At
	return s, true
}

// StatusAt returns the status of the authorization at a time.
func (s ACMEAuthorization) StatusAt(expires, at time.Time) acme.Status {
	if isOpen := s.Status == acme.StatusPending || s.Status == acme.StatusValid; isOpen && !at.Before(expires) {
		return acme.StatusExpired
	}
	return s.Status
}

// Authorization returns the authorization of an order for its identifier with the index i, at a time.
func (s ACMEAuthorization) Authorization(id acme.ID, o *acme.Order, i int, at time.Time) acme.Authorization {
	name := o.Identifiers[i]
	a := acme.Authorization{
		ID: id, Account: o.Account, Order: o.ID, Identifier: name.Base(), Wildcard: name.IsWildcard(),
		Status: s.StatusAt(o.ExpiresAt, at), ExpiresAt: o.ExpiresAt,
	}
	for _, t := range s.Offered {
		c := acme.Challenge{Type: t, Token: s.Token, Status: acme.StatusPending}
		if t == s.Attempt {
			switch s.Status {
			case acme.StatusPending:
				c.Status = acme.StatusProcessing
			case acme.StatusInvalid:
				c.Status, c.Failure = acme.StatusInvalid, s.Failure
			default:
				c.Status, c.ValidatedAt = acme.StatusValid, s.AttemptedAt
			}
		}
		a.Challenges = append(a.Challenges, c)
	}
	return a
}

// SetACMEOrderStatus sets the status and the failure of an order from its certificate and its authorizations. An order with
// names that have no authorization is invalid.
func SetACMEOrderStatus(o *acme.Order, all []ACMEAuthorization, at time.Time) {
	o.Status, o.Failure = acme.StatusReady, nil
	if !o.Certificate.IsZero() {
		o.Status = acme.StatusValid
		return
	}
	if len(all) != len(o.Identifiers) {
		o.Status = acme.StatusInvalid // the store lacks authorizations
	}
	for _, a := range all {
		switch a.Status {
		case acme.StatusValid:
		case acme.StatusPending:
			if o.Status == acme.StatusReady {
				o.Status = acme.StatusPending
			}
		default:
			o.Status = acme.StatusInvalid
			if o.Failure == nil {
				o.Failure = a.Failure
			}
		}
	}
	if !at.Before(o.ExpiresAt) {
		o.Status = acme.StatusInvalid
	}
}

// checkOrder checks the order of a guard.
func (s *Issuance) checkOrder(g *pki.Guard) *pki.Refusal {
	if g.Order.IsZero() {
		return nil
	}
	return CheckACMEOrder(s.Order)
}

// CheckACMEOrder refuses an order for which no certificate can be issued. st is nil if the order is not on record.
func CheckACMEOrder(st *acme.OrderState) *pki.Refusal {
	if st == nil {
		return acme.NoOrder()
	}
	return st.CheckReady()
}

// ExternalKeyCreatedEntry returns the entry of a new external key.
func ExternalKeyCreatedEntry(k *acme.ExternalKey) translog.Entry {
	return translog.Entry{
		Time: k.CreatedAt, Actor: k.CreatedBy, Action: translog.ACMEExternalKeyCreated, Outcome: translog.Done, Identity: k.Identity,
		Event: &translog.CreatedExternalKey{
			ID: translog.ACMEID(k.ID), Rule: k.Rule, ExpiresAt: k.ExpiresAt, CreatorCertificate: k.CreatedBy.Caller().Certificate,
		},
	}
}

// ExternalKeyRevokedEntry returns the entry of the revocation of an external key with its account.
func ExternalKeyRevokedEntry(r acme.ExternalKeyRevocation, k *acme.ExternalKey) translog.Entry {
	return translog.Entry{
		Time: r.At, Actor: r.By, Action: translog.ACMEExternalKeyRevoked, Outcome: translog.Done, Identity: k.Identity,
		Event: &translog.RevokedExternalKey{ID: translog.ACMEID(k.ID), Cause: k.RevokedBecause, Comment: r.Comment},
	}
}

// ExternalKeysRevokedEntry returns the entry of the revocation of all unused external keys of a creator.
func ExternalKeysRevokedEntry(creator pki.SPIFFEID, cause string, by pki.Actor, at time.Time) translog.Entry {
	return translog.Entry{
		Time: at, Actor: by, Action: translog.ACMEExternalKeyRevoked, Outcome: translog.Done, Identity: creator,
		Event: &translog.RevokedExternalKey{Cause: cause},
	}
}

// AccountCreatedEntry returns the entry of a new account.
func AccountCreatedEntry(a *acme.Account) translog.Entry {
	return accountEntry(a, translog.ACMEAccountCreated, a.CreatedAt, &translog.ACMEAccount{
		ID: translog.ACMEID(a.ID), Key: a.Key, Thumbprint: a.Thumbprint, ExternalKey: translog.ACMEID(a.ExternalKey),
	})
}

// AccountChangedEntry returns the entry of a change of an account. It returns false if the change is not logged, because
// it is about the contacts alone.
func AccountChangedEntry(a *acme.Account, c acme.AccountChange) (translog.Entry, bool) {
	switch {
	case c.SetContact:
		return translog.Entry{}, false
	case c.Deactivate:
		return accountEntry(a, translog.ACMEAccountDeactivated, c.At, &translog.ACMEAccount{ID: translog.ACMEID(a.ID)}), true
	default:
		return accountEntry(a, translog.ACMEAccountKeyChanged, c.At,
			&translog.ACMEAccount{ID: translog.ACMEID(a.ID), Key: a.Key, Thumbprint: a.Thumbprint}), true
	}
}

// AccountRevokedEntry returns the entry of the revocation of an account without an external key.
func AccountRevokedEntry(r acme.AccountRevocation) translog.Entry {
	return translog.Entry{
		Time: r.At, Actor: r.By, Action: translog.ACMEAccountRevoked, Outcome: translog.Done,
		Event: &translog.ACMEAccount{ID: translog.ACMEID(r.ID), Comment: r.Comment},
	}
}

func accountEntry(a *acme.Account, action translog.Action, at time.Time, event *translog.ACMEAccount) translog.Entry {
	return translog.Entry{Time: at, Actor: a.Actor(), Action: action, Outcome: translog.Done, Event: event}
}
