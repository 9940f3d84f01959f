package memory

import (
	"bytes"
	"context"
	"slices"
	"time"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra/acme"
	"github.com/brevet-pki/brevet/store/rules"
)

// acmeRecords are the records of ACME.
type acmeRecords struct {
	externalKeys   []externalKey // in the order in which they were recorded
	accounts       map[acme.ID]acme.Account
	accountIDs     []acme.ID // in the order in which they were recorded
	orders         map[acme.ID]order
	authorizations map[acme.ID]authorization
}

// externalKey is an external key with its sealed HMAC key, which is empty after it was erased. The status of its account
// is not set.
type externalKey struct {
	acme.ExternalKey
	sealed []byte
}

// order is an order without its status. names and notAfter are set with its certificate.
type order struct {
	acme.Order
	names    pki.NamesDigest
	notAfter time.Time
}

// authorization is the state of an authorization, and its place in an order.
type authorization struct {
	rules.ACMEAuthorization
	order acme.ID
	place int
}

func (r *acmeRecords) clone() acmeRecords {
	return acmeRecords{
		slices.Clone(r.externalKeys), cloned(r.accounts), slices.Clone(r.accountIDs), cloned(r.orders), cloned(r.authorizations),
	}
}

// ACME is the view of a Store for ACME. It implements acme.Store.
type ACME struct{ store *Store }

// ACME returns the view for ACME.
func (st *Store) ACME() *ACME { return &ACME{st} }

// CreateExternalKey implements acme.ExternalKeyStore.
func (v *ACME) CreateExternalKey(ctx context.Context, k acme.ExternalKey, sealed []byte) (acme.ExternalKey, error) {
	err := v.store.writeBy(ctx, k.CreatedBy, pki.MayRegister, k.CreatedAt, func(s *state) error {
		id, registered := s.identities[k.Identity]
		if !k.Identity.IsZero() && !registered {
			return rules.NoIdentity(k.Identity)
		}
		if err := s.checkLabels(k.CreatedBy, id.Labels); err != nil {
			return err
		}
		if registered {
			if refusal := k.Identity.CheckMayHold(id.State); refusal != nil {
				return refusal
			}
		}
		s.addExternalKey(k, sealed)
		return s.append(rules.ExternalKeyCreatedEntry(&k))
	})
	return k, err
}

func (s *state) addExternalKey(k acme.ExternalKey, sealed []byte) {
	k.CreatedAt, k.ExpiresAt = stored(k.CreatedAt), stored(k.ExpiresAt)
	s.acme.externalKeys = append(s.acme.externalKeys, externalKey{k, bytes.Clone(sealed)})
}

// externalKey returns an external key, or nil.
func (s *state) externalKey(id acme.ID) *externalKey {
	i := slices.IndexFunc(s.acme.externalKeys, func(k externalKey) bool { return k.ID == id })
	if i < 0 {
		return nil
	}
	return &s.acme.externalKeys[i]
}

// shown returns an external key with the status of its account.
func (s *state) shown(k *externalKey) acme.ExternalKey {
	out := k.ExternalKey
	out.CreatedBy, out.IdentityState = out.CreatedBy.Named(), s.identities[out.Identity].State
	if !out.Account.IsZero() {
		out.Status = s.acme.accounts[out.Account].Status
	}
	return out
}

// ExternalKey implements acme.ExternalKeyStore.
func (v *ACME) ExternalKey(ctx context.Context, id acme.ID) (have acme.ExternalKey, sealed []byte, err error) {
	err = v.store.read(ctx, func(s *state) error {
		k := s.externalKey(id)
		if k == nil {
			return rules.NoExternalKey(id)
		}
		have, sealed = s.shown(k), bytes.Clone(k.sealed)
		return nil
	})
	return have, sealed, err
}

// ExternalKeys implements acme.ExternalKeyStore.
func (v *ACME) ExternalKeys(ctx context.Context, after acme.ID, limit int) (page []acme.ExternalKey, next acme.ID, err error) {
	if err := rules.CheckLimit(limit); err != nil {
		return nil, next, err
	}
	err = v.store.read(ctx, func(s *state) error {
		found := after.IsZero()
		for i := range slices.Backward(s.acme.externalKeys) {
			k := &s.acme.externalKeys[i]
			switch {
			case !found:
				found = k.ID == after
			case len(page) == limit:
				next = page[limit-1].ID
				return nil
			default:
				page = append(page, s.shown(k))
			}
		}
		return nil
	})
	return page, next, err
}

// RevokeExternalKey implements acme.ExternalKeyStore.
func (v *ACME) RevokeExternalKey(ctx context.Context, r acme.ExternalKeyRevocation) (have acme.ExternalKey, err error) {
	err = v.store.writeBy(ctx, r.By, pki.MayRevoke, r.At, func(s *state) error {
		have, err = s.revokeExternalKeyAlone(r)
		return err
	})
	return have, err
}

// revokeExternalKeyAlone revokes an external key with its account, and writes a log entry, unless the key is revoked already.
func (s *state) revokeExternalKeyAlone(r acme.ExternalKeyRevocation) (acme.ExternalKey, error) {
	k := s.externalKey(r.ID)
	if k == nil {
		return acme.ExternalKey{}, rules.NoExternalKey(r.ID)
	}
	isNew := k.RevokedBecause == ""
	s.revokeExternalKey(k, rules.ExternalKeyRevokedAlone)
	have := s.shown(k)
	if !isNew {
		return have, nil
	}
	err := s.append(rules.ExternalKeyRevokedEntry(r, &have))
	return have, err
}

// revokeExternalKey revokes an external key and its account, unless the key is revoked already.
func (s *state) revokeExternalKey(k *externalKey, cause string) {
	if k.RevokedBecause != "" {
		return
	}
	k.RevokedBecause, k.sealed = cause, nil
	if a, ok := s.acme.accounts[k.Account]; ok {
		a.Status = acme.AccountRevoked
		s.acme.accounts[a.ID] = a
	}
}

// revokeExternalKeysOf revokes the unused external keys that an identity has created, and writes a log entry if there are
// any.
func (s *state) revokeExternalKeysOf(creator pki.SPIFFEID, cause string, by pki.Actor, at time.Time) error {
	if !s.setExternalKeysRevoked(creator, cause) {
		return nil
	}
	return s.append(rules.ExternalKeysRevokedEntry(creator, cause, by, at))
}

func (s *state) setExternalKeysRevoked(creator pki.SPIFFEID, cause string) (any bool) {
	for i := range s.acme.externalKeys {
		k := &s.acme.externalKeys[i]
		isOpen := k.Account.IsZero() && k.RevokedBecause == ""
		if isOpen && !creator.IsZero() && k.CreatedBy.Caller().Identity == creator {
			any = true
			s.revokeExternalKey(k, cause)
		}
	}
	return any
}

// CreateAccount implements acme.AccountStore.
func (v *ACME) CreateAccount(ctx context.Context, a acme.Account) (have acme.Account, created bool, err error) {
	a.CreatedAt = stored(a.CreatedAt)
	err = v.store.write(ctx, func(s *state) error {
		if holder := s.accountByKey(a.Thumbprint); holder != nil {
			have = *holder
			return holder.CheckValid()
		}
		if !a.ExternalKey.IsZero() {
			k := s.externalKey(a.ExternalKey)
			if k == nil {
				return rules.NoExternalKey(a.ExternalKey)
			}
			shown := s.shown(k)
			if refusal := rules.CheckExternalKeyOpen(&shown, a.CreatedAt); refusal != nil {
				return refusal
			}
		}
		s.addAccount(a)
		have, created = a, true
		return s.append(rules.AccountCreatedEntry(&a))
	})
	return have, err == nil && created, err
}

func (s *state) addAccount(a acme.Account) {
	if k := s.externalKey(a.ExternalKey); k != nil {
		k.Account, k.sealed = a.ID, nil
	}
	s.acme.accounts[a.ID] = a
	s.acme.accountIDs = append(s.acme.accountIDs, a.ID)
}

// accountByKey returns the account with a key, or nil.
func (s *state) accountByKey(thumbprint [32]byte) *acme.Account {
	for _, a := range s.acme.accounts {
		if a.Thumbprint == thumbprint {
			return &a
		}
	}
	return nil
}

// Account implements acme.AccountStore.
func (v *ACME) Account(ctx context.Context, id acme.ID) (have acme.Account, err error) {
	err = v.store.read(ctx, func(s *state) error {
		var ok bool
		if have, ok = s.acme.accounts[id]; !ok {
			return rules.NoAccount()
		}
		return nil
	})
	return have, err
}

// AccountByKey implements acme.AccountStore.
func (v *ACME) AccountByKey(ctx context.Context, thumbprint [32]byte) (have acme.Account, err error) {
	err = v.store.read(ctx, func(s *state) error {
		a := s.accountByKey(thumbprint)
		if a == nil {
			return rules.NoAccount()
		}
		have = *a
		return nil
	})
	return have, err
}

// ChangeAccount implements acme.AccountStore.
func (v *ACME) ChangeAccount(ctx context.Context, c acme.AccountChange) (have acme.Account, err error) {
	err = v.store.write(ctx, func(s *state) error {
		a, ok := s.acme.accounts[c.ID]
		if !ok {
			return rules.NoAccount()
		}
		var changed bool
		if have, changed, err = rules.ChangeAccount(a, c, s.accountByKey(c.NewThumbprint)); err != nil || !changed {
			return err
		}
		s.acme.accounts[c.ID] = have
		if e, logged := rules.AccountChangedEntry(&have, c); logged {
			return s.append(e)
		}
		return nil
	})
	return have, err
}

// CreateOrder implements acme.OrderStore.
func (v *ACME) CreateOrder(ctx context.Context, o acme.Order, all []acme.Authorization) error {
	return v.store.write(ctx, func(s *state) error {
		a, ok := s.acme.accounts[o.Account]
		if !ok {
			return rules.NoAccount()
		}
		open := 0
		for _, other := range s.acme.orders {
			if other.Account == o.Account && other.Certificate.IsZero() && o.CreatedAt.Before(other.ExpiresAt) {
				open++
			}
		}
		err := rules.CheckNewOrder(&a, &o, open, func() (bool, error) { return s.isReplaced(o.Replaces, o.CreatedAt), nil })
		if err != nil {
			return err
		}
		o.CreatedAt, o.ExpiresAt = stored(o.CreatedAt), stored(o.ExpiresAt)
		s.acme.orders[o.ID] = order{Order: o}
		for i := range all {
			s.acme.authorizations[all[i].ID] = authorization{rules.NewACMEAuthorization(&all[i]), o.ID, i}
		}
		return nil
	})
}

// isReplaced reports whether an order that is not invalid replaces a certificate.
func (s *state) isReplaced(certificate pki.CertRef, at time.Time) bool {
	for _, o := range s.acme.orders {
		if o.Replaces == certificate && s.orderAt(o, at).Status != acme.StatusInvalid {
			return true
		}
	}
	return false
}

// orderAt returns an order with its status at a time.
func (s *state) orderAt(o order, at time.Time) acme.Order {
	var all []rules.ACMEAuthorization
	for _, id := range o.Authorizations {
		all = append(all, s.acme.authorizations[id].ACMEAuthorization)
	}
	rules.SetACMEOrderStatus(&o.Order, all, at)
	return o.Order
}

// orderState returns an order with what it depends on, or nil.
func (s *state) orderState(id acme.ID, at time.Time) *acme.OrderState {
	o, ok := s.acme.orders[id]
	if !ok {
		return nil
	}
	st := &acme.OrderState{Order: s.orderAt(o, at), Account: s.acme.accounts[o.Account]}
	if k := s.externalKey(st.Account.ExternalKey); k != nil {
		st.Key = s.shown(k)
	}
	for i, id := range o.Authorizations {
		st.Authorizations = append(st.Authorizations, s.acme.authorizations[id].Authorization(id, &o.Order, i, at))
	}
	return st
}

// Order implements acme.OrderStore.
func (v *ACME) Order(ctx context.Context, id acme.ID, at time.Time) (have acme.OrderState, err error) {
	err = v.store.read(ctx, func(s *state) error {
		st := s.orderState(id, at)
		if st == nil {
			return acme.NoOrder()
		}
		have = *st
		return nil
	})
	return have, err
}

// OrderOf implements acme.OrderStore.
func (v *ACME) OrderOf(ctx context.Context, certificate pki.CertRef) (have acme.OrderState, err error) {
	err = v.store.read(ctx, func(s *state) error {
		for _, o := range s.acme.orders {
			if !certificate.IsZero() && o.Certificate == certificate {
				have = *s.orderState(o.ID, o.CreatedAt)
				return nil
			}
		}
		return rules.NoCertificate(certificate.Serial)
	})
	return have, err
}

// Certificates implements acme.OrderStore.
func (v *ACME) Certificates(
	ctx context.Context, account acme.ID, at time.Time, after pki.CertRef, limit int,
) (page []pki.CertRef, err error) {
	if err := rules.CheckLimit(limit); err != nil {
		return nil, err
	}
	err = v.store.read(ctx, func(s *state) error {
		place, found := s.serials[after.Serial]
		for i := range s.certs {
			c := &s.certs[i]
			if c.account == account && at.Before(c.NotAfter) && (!found || i > place) && len(page) < limit {
				page = append(page, c.Ref)
			}
		}
		return nil
	})
	return page, err
}

// Authorization implements acme.AuthorizationStore.
func (v *ACME) Authorization(ctx context.Context, account, id acme.ID, at time.Time) (have acme.Authorization, err error) {
	err = v.store.read(ctx, func(s *state) error {
		a, ok := s.acme.authorizations[id]
		if !ok {
			return acme.NoAuthorization(id)
		}
		o := s.acme.orders[a.order]
		owner := s.acme.accounts[o.Account]
		have = a.Authorization(id, &o.Order, a.place, at)
		return rules.CheckAuthorizationOf(account, id, &owner)
	})
	return have, err
}

// MoveAuthorization implements acme.AuthorizationStore.
func (v *ACME) MoveAuthorization(ctx context.Context, m acme.Move) (have acme.Authorization, moved bool, err error) {
	err = v.store.write(ctx, func(s *state) error {
		a, ok := s.acme.authorizations[m.Authorization]
		if !ok {
			return acme.NoAuthorization(m.Authorization)
		}
		o := s.acme.orders[a.order]
		owner := s.acme.accounts[o.Account]
		if err := rules.CheckAuthorizationOf(m.Account, m.Authorization, &owner); err != nil {
			return err
		}
		a.ACMEAuthorization, moved = a.Move(m, o.ExpiresAt)
		a.AttemptedAt = stored(a.AttemptedAt)
		s.acme.authorizations[m.Authorization] = a
		have = a.Authorization(m.Authorization, &o.Order, a.place, m.At)
		return nil
	})
	return have, moved, err
}

// Authorized implements acme.AuthorizationStore.
func (v *ACME) Authorized(ctx context.Context, account acme.ID, names []acme.Identifier, at time.Time) (all bool, err error) {
	err = v.store.read(ctx, func(s *state) error {
		proven := map[acme.Identifier]bool{}
		for _, a := range s.acme.authorizations {
			o := s.acme.orders[a.order]
			if o.Account == account && a.StatusAt(o.ExpiresAt, at) == acme.StatusValid {
				proven[o.Identifiers[a.place]] = true
			}
		}
		all = !slices.ContainsFunc(names, func(n acme.Identifier) bool { return !proven[n] })
		return nil
	})
	return all, err
}

// unexpiredOrders returns the number of certificates of orders with the same names that expire later than at.
func (s *state) unexpiredOrders(names pki.NamesDigest, at time.Time, most int) int {
	n := 0
	for _, o := range s.acme.orders {
		if !o.Certificate.IsZero() && o.names == names && at.Before(o.notAfter) {
			n++
		}
	}
	return min(n, most)
}

// carryACME executes an operation on records of ACME.
func (s *state) carryACME(op rules.Operation) error {
	switch op := op.(type) {
	case rules.AddExternalKey:
		s.addExternalKey(op.ExternalKey, nil)
	case rules.SetExternalKeyRevoked:
		k := s.externalKey(op.ID)
		if k == nil {
			return rules.NoExternalKey(op.ID)
		}
		s.revokeExternalKey(k, op.Cause)
	case rules.SetExternalKeysRevoked:
		s.setExternalKeysRevoked(op.Creator, op.Cause)
	case rules.AddAccount:
		s.addAccount(op.Account)
	case rules.SetAccountKey:
		a, ok := s.acme.accounts[op.ID]
		if !ok {
			return rules.NoAccount()
		}
		a.Key, a.Thumbprint = op.Key, op.Thumbprint
		s.acme.accounts[op.ID] = a
	case rules.SetAccountDeactivated:
		return s.setAccountStatus(op.ID, acme.AccountDeactivated)
	case rules.SetAccountRevoked:
		return s.setAccountStatus(op.ID, acme.AccountRevoked)
	default:
		return s.carryToken(op)
	}
	return nil
}
