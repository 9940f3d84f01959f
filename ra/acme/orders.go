package acme

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"slices"
	"time"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra"
)

// NewOrder creates an order. It checks the names with the policy, the profile and the issuing CA before any challenge is
// made, and offers only challenges with which the policy would issue a certificate.
func (a *Authority) NewOrder(ctx context.Context, account ID, n NewOrder) (Order, error) {
	settings, err := a.settings()
	if err != nil {
		return Order{}, err
	}
	st := OrderState{}
	if st.Account, err = a.valid(ctx, account); err != nil {
		return Order{}, err
	}
	if !st.Account.ExternalKey.IsZero() {
		if st.Key, _, err = a.Store.ExternalKey(ctx, st.Account.ExternalKey); err != nil {
			return Order{}, err
		}
	}
	now := a.Clock().Truncate(time.Millisecond)
	st.Order = Order{
		ID: NewID(), Account: account, Status: StatusPending, Profile: n.Profile, CreatedAt: now, ExpiresAt: now.Add(OrderLifetime),
		Replaces: n.Replaces,
	}
	if st.Order.Identifiers, err = ParseIdentifiers(n.Identifiers); err != nil {
		return Order{}, err
	}
	if err := a.checkOwnNames(st.Order.Identifiers); err != nil {
		return Order{}, err
	}
	if err := a.checkReplaces(ctx, &st.Order); err != nil {
		return Order{}, err
	}
	var offered []ChallengeType
	if st.Order.Profile, offered, err = a.checkOrder(ctx, &st, settings.Challenges); err != nil {
		return Order{}, err
	}
	all := make([]Authorization, 0, len(st.Order.Identifiers))
	for _, name := range st.Order.Identifiers {
		authorization, err := st.Order.authorize(name, offered)
		if err != nil {
			return Order{}, err
		}
		all = append(all, authorization)
		st.Order.Authorizations = append(st.Order.Authorizations, authorization.ID)
	}
	return st.Order, a.Store.CreateOrder(ctx, st.Order, all)
}

// checkOrder returns the profile of the order's certificate, and the types of challenges after which the policy would
// issue it.
func (a *Authority) checkOrder(ctx context.Context, st *OrderState, types []ChallengeType) (string, []ChallengeType, error) {
	alternatives := make([]ra.Claim, len(types))
	for i, t := range types {
		alternatives[i] = st.claim([]ChallengeType{t})
	}
	profile, allowed, err := a.Registrar.CheckOrder(ctx, alternatives)
	if refusal, ok := pki.AsRefusal(err); ok && (refusal.Rule == pki.RulePolicy || refusal.Rule == pki.RuleNames) {
		return "", nil, pki.Refuse(pki.RuleACMEIdentifier, refusal.Hint, "%s", refusal.Detail)
	}
	if err != nil {
		return "", nil, err
	}
	var offered []ChallengeType
	for i, t := range types {
		if allowed[i] {
			offered = append(offered, t)
		}
	}
	return profile, offered, nil
}

// authorize returns a new authorization of the order for a name.
func (o *Order) authorize(name Identifier, offered []ChallengeType) (Authorization, error) {
	authorization := Authorization{
		ID: NewID(), Account: o.Account, Order: o.ID, Identifier: name.Base(), Wildcard: name.IsWildcard(), Status: StatusPending,
		ExpiresAt: o.ExpiresAt,
	}
	token := NewToken()
	for _, t := range offered {
		if name.validates(t) {
			authorization.Challenges = append(authorization.Challenges, Challenge{Type: t, Token: token, Status: StatusPending})
		}
	}
	if len(authorization.Challenges) == 0 {
		return authorization, pki.Refuse(pki.RuleACMEIdentifier,
			"ask the operator to allow another type of challenge: wildcards need dns-01, and addresses http-01 or tls-alpn-01",
			"no type of challenge that the policy allows can validate %s", name)
	}
	return authorization, nil
}

// validates reports whether a challenge of a type can validate the name (RFC 8555 section 7.1.3, RFC 8738 section 7).
func (i Identifier) validates(t ChallengeType) bool {
	switch {
	case i.IsWildcard():
		return t == DNS01
	case i.Type == IP:
		return t != DNS01
	default:
		return true
	}
}

// tokenSize is the size of a challenge's token in bytes. RFC 8555 section 8 wants 128 bits.
const tokenSize = 16

// NewToken returns a random token of a challenge.
func NewToken() string {
	var b [tokenSize]byte
	_, _ = rand.Read(b[:]) // never fails
	return base64.RawURLEncoding.EncodeToString(b[:])
}

// checkReplaces refuses an order that replaces a certificate of another account, or one without a common name (RFC 9773
// section 5). The store checks that no other order replaces it.
func (a *Authority) checkReplaces(ctx context.Context, o *Order) error {
	if o.Replaces.IsZero() {
		return nil
	}
	refuse := func(detail string, args ...any) error {
		return pki.Refuse(pki.RuleACMEReplaces, "create the order without replaces", detail, args...)
	}
	before, err := a.Store.OrderOf(ctx, o.Replaces)
	if refusal, ok := pki.AsRefusal(err); ok && refusal.Rule.Class() == pki.NotFound || err == nil && before.Account.ID != o.Account {
		return refuse("the account has no order for certificate %s", o.Replaces.Serial)
	}
	if err != nil {
		return err
	}
	shared := slices.ContainsFunc(before.Order.Identifiers, func(i Identifier) bool { return slices.Contains(o.Identifiers, i) })
	if !shared {
		return refuse("certificate %s has no name of the order", o.Replaces.Serial)
	}
	return nil
}

// Order returns an order of an account.
func (a *Authority) Order(ctx context.Context, account, id ID) (Order, error) {
	st, err := a.order(ctx, account, id)
	return st.Order, err
}

// order returns an order of an account, which must be valid.
func (a *Authority) order(ctx context.Context, account, id ID) (OrderState, error) {
	if _, err := a.settings(); err != nil {
		return OrderState{}, err
	}
	st, err := a.Store.Order(ctx, id, a.Clock())
	if err != nil {
		return OrderState{}, err
	}
	if st.Order.Account != account {
		return OrderState{}, NoOrder()
	}
	return st, st.Account.CheckValid()
}

// NoOrder returns the refusal of an order that is not on record, or is that of another account.
func NoOrder() *pki.Refusal {
	return pki.Refuse(pki.RuleACMEOrder, "create a new order", "the account has no such order")
}

// Finalize issues the certificate of an order that is ready (RFC 8555 section 7.4). If the order has a certificate for the
// key of the CSR already, Finalize returns the order.
func (a *Authority) Finalize(ctx context.Context, account, order ID, csr []byte) (Order, error) {
	st, err := a.order(ctx, account, order)
	if err != nil {
		return Order{}, err
	}
	switch st.Order.Status {
	case StatusReady:
	case StatusValid:
		return st.Order, a.checkRepeat(ctx, st.Order.Certificate, csr)
	default:
		return Order{}, st.Order.notReady()
	}
	if key, err := ra.KeyOfCSR(csr); err == nil && key == pki.HashSPKI(st.Account.Key) {
		return Order{}, pki.Refuse(pki.RuleCSRContent, "generate a key for the certificate", "the CSR has the key of the account (RFC 8555 section 11.1)")
	}
	c, err := a.Registrar.Order(ctx, ra.OrderRequest{Order: order.Request(), CSR: csr})
	if err != nil {
		return Order{}, err
	}
	st.Order.Status, st.Order.Certificate = StatusValid, c.Ref // recorded in the transaction of the certificate
	return st.Order, nil
}

// checkRepeat refuses to finalize an order again with another key.
func (a *Authority) checkRepeat(ctx context.Context, have pki.CertRef, csr []byte) error {
	key, err := ra.KeyOfCSR(csr)
	if err != nil {
		return err
	}
	c, err := a.Certificates.Certificate(ctx, have)
	if err != nil {
		return err
	}
	if c.KeyHash != key {
		return pki.Refuse(pki.RuleACMEOrderNotReady, "create a new order for the new key", "the order has a certificate for another key")
	}
	return nil
}

// Certificate returns a certificate that was issued for an order of the account, followed by those of its CAs except the
// root, in DER.
func (a *Authority) Certificate(ctx context.Context, account ID, ref pki.CertRef) ([][]byte, error) {
	if _, err := a.settings(); err != nil {
		return nil, err
	}
	refusal := pki.Refuse(pki.RuleNotFound, "download the certificate from the URL in the order", "the account has no certificate %s", ref.Serial)
	st, err := a.Store.OrderOf(ctx, ref)
	if r, ok := pki.AsRefusal(err); ok && r.Rule.Class() == pki.NotFound || err == nil && st.Account.ID != account {
		return nil, refusal
	}
	if err == nil {
		err = st.Account.CheckValid()
	}
	if err != nil {
		return nil, err
	}
	c, err := a.Certificates.Certificate(ctx, ref)
	if err != nil {
		return nil, err
	}
	if len(c.DER) == 0 {
		return nil, refusal // the store was recreated from the log
	}
	chain, _, err := a.Chains.Chain(ref.Issuer)
	if err != nil {
		return nil, err
	}
	all := [][]byte{c.DER}
	for _, authority := range chain {
		all = append(all, authority.Raw)
	}
	return all, nil
}
