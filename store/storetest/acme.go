package storetest

import (
	"context"
	"net/netip"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra/acme"
)

func testACME(t *testing.T, open func(t *testing.T) Store) {
	each(t, open, map[string]func(t *testing.T, w *world){
		"external keys": externalKeys, "external keys that end": externalKeysThatEnd, "one account for each external key": oneAccountForEachKey,
		"permissions about external keys": permissionsAboutExternalKeys, "external keys of a former operator": externalKeysOfAFormerOperator,
		"accounts": accounts, "keys of accounts": keysOfAccounts, "orders": orders, "authorizations": authorizations, "authorizations of accounts": authorizationsOfAccounts,
		"expired orders": expiredOrders, "too many orders": tooManyOrders, "orders that replace": ordersThatReplace,
		"certificates of orders": certificatesOfOrders, "bound of certificates": boundOfCertificates, "authorized names": authorizedNames,
		"bound of all names": boundOfAllNames, "bound of renewals": boundOfRenewals,
		"finalizing again": finalizingAgain, "finalizing at once": finalizingAtOnce, "finalizing after a crash": finalizingAfterACrash,
		"guards of orders": guardsOfOrders, "lists of accounts": listsOfAccounts, "revoked accounts": revokedAccounts,
		"external keys of stale identities": keysOfStaleIdentities,
	})
}

// acmeID returns a new ID.
func (w *world) acmeID() acme.ID {
	b := w.unique()
	return acme.ID(b[:16])
}

// externalKey creates an external key for a new rule.
func (w *world) externalKey(t rapid.TB) acme.ExternalKey {
	t.Helper()
	k := acme.ExternalKey{ID: w.acmeID(), Rule: "web", CreatedBy: operator, CreatedAt: w.now, ExpiresAt: w.now.Add(time.Hour)}
	k, err := w.ACME.CreateExternalKey(context.Background(), k, []byte("sealed"))
	must(t, err)
	return k
}

// newAccount returns an account that is not recorded.
func (w *world) newAccount() acme.Account {
	key := w.unique()
	return acme.Account{
		ID: w.acmeID(), Key: key[:], Thumbprint: w.unique(), Status: acme.AccountValid, Contact: []string{"mailto:a@fleet.example"}, CreatedAt: w.now,
	}
}

// account records a new account.
func (w *world) account(t rapid.TB) acme.Account {
	t.Helper()
	a, created, err := w.ACME.CreateAccount(context.Background(), w.newAccount())
	must(t, err)
	mustEqual(t, "whether the account was created", created, true)
	return a
}

// newOrder returns an order with its authorizations, which are not recorded.
func (w *world) newOrder(account acme.ID, names ...string) (acme.Order, []acme.Authorization) {
	o := acme.Order{
		ID: w.acmeID(), Account: account, Status: acme.StatusPending, Profile: "acme", CreatedAt: w.now, ExpiresAt: w.now.Add(acme.OrderLifetime),
	}
	var all []acme.Authorization
	for _, n := range names {
		name := acme.Identifier{Type: acme.DNS, Value: n}
		a := acme.Authorization{
			ID: w.acmeID(), Account: account, Order: o.ID, Identifier: name.Base(), Wildcard: name.IsWildcard(), Status: acme.StatusPending,
			ExpiresAt: o.ExpiresAt,
			Challenges: []acme.Challenge{
				{Type: acme.HTTP01, Token: "token", Status: acme.StatusPending}, {Type: acme.DNS01, Token: "token", Status: acme.StatusPending},
			},
		}
		o.Identifiers, o.Authorizations, all = append(o.Identifiers, name), append(o.Authorizations, a.ID), append(all, a)
	}
	return o, all
}

// order records a pending order.
func (w *world) order(t rapid.TB, account acme.ID, names ...string) acme.Order {
	t.Helper()
	o, all := w.newOrder(account, names...)
	must(t, w.ACME.CreateOrder(context.Background(), o, all))
	return o
}

func (w *world) readOrder(t rapid.TB, id acme.ID) acme.Order {
	t.Helper()
	st, err := w.ACME.Order(context.Background(), id, w.now)
	must(t, err)
	return st.Order
}

// move makes a move, and checks whether it changed something.
func (w *world) move(t rapid.TB, moves bool, m acme.Move) acme.Authorization {
	t.Helper()
	m.At = w.now
	a, moved, err := w.ACME.MoveAuthorization(context.Background(), m)
	must(t, err)
	mustEqual(t, "whether the authorization moved", moved, moves)
	return a
}

// readyOrder records an order whose names are validated.
func (w *world) readyOrder(t rapid.TB, account acme.ID, names ...string) acme.Order {
	t.Helper()
	o := w.order(t, account, names...)
	for _, id := range o.Authorizations {
		w.move(t, true, acme.Move{Authorization: id, Kind: acme.Begin, Challenge: acme.HTTP01})
		w.move(t, true, acme.Move{Authorization: id, Kind: acme.Succeed, Challenge: acme.HTTP01})
	}
	return w.readOrder(t, o.ID)
}

func orders(t *testing.T, w *world) {
	ctx := context.Background()
	a := w.account(t)
	before := len(w.entries(t))
	o := w.order(t, a.ID, "*.pump.example", "pump.example")
	st, err := w.ACME.Order(ctx, o.ID, w.now)
	must(t, err)
	mustEqual(t, "the order", st.Order, o)
	mustEqual(t, "the account", st.Account, a)
	mustEqual(t, "whether the first name is a wildcard", st.Authorizations[0].Wildcard, true)
	_, err = w.ACME.Order(ctx, w.acmeID(), w.now)
	mustRefuse(t, err, pki.RuleACMEOrder)
	_, err = w.ACME.OrderOf(ctx, pki.CertRef{Issuer: issuerA, Serial: w.serial(t)})
	mustNotFind(t, err)
	mustEqual(t, "the number of entries", len(w.entries(t)), before)

	missing, all := w.newOrder(w.acmeID(), "pump.example")
	mustRefuse(t, w.ACME.CreateOrder(ctx, missing, all), pki.RuleACMEAccount)
	_, err = w.ACME.ChangeAccount(ctx, acme.AccountChange{ID: a.ID, Deactivate: true, At: w.now})
	must(t, err)
	late, all := w.newOrder(a.ID, "pump.example")
	mustRefuse(t, w.ACME.CreateOrder(ctx, late, all), pki.RuleACMEAccountStatus)
}

func authorizations(t *testing.T, w *world) {
	account := w.account(t)
	o := w.order(t, account.ID, "a.example", "b.example")
	first, second := o.Authorizations[0], o.Authorizations[1]
	begin := func(id acme.ID, kind acme.ChallengeType, moves bool) acme.Authorization {
		t.Helper()
		return w.move(t, moves, acme.Move{Authorization: id, Kind: acme.Begin, Challenge: kind})
	}
	w.move(t, false, acme.Move{Authorization: first, Kind: acme.Succeed, Challenge: acme.HTTP01}) // it has not begun
	begin(first, acme.TLSALPN01, false)                                                           // it was not offered
	if a := begin(first, acme.HTTP01, true); a.Challenge(acme.HTTP01).Status != acme.StatusProcessing || a.Status != acme.StatusPending {
		t.Errorf("the authorization is %+v", a)
	}
	begin(first, acme.HTTP01, false)
	begin(first, acme.DNS01, false)
	w.move(t, false, acme.Move{Authorization: first, Kind: acme.Succeed, Challenge: acme.DNS01})
	w.now = w.now.Add(acme.ValidationTimeout)
	begin(first, acme.DNS01, true) // the first attempt was lost
	w.move(t, false, acme.Move{Authorization: first, Kind: acme.Succeed, Challenge: acme.HTTP01})
	a := w.move(t, true, acme.Move{Authorization: first, Kind: acme.Succeed, Challenge: acme.DNS01})
	c := a.Challenge(acme.DNS01)
	if a.Status != acme.StatusValid || c.Status != acme.StatusValid || !c.ValidatedAt.Equal(w.now) || a.Challenge(acme.HTTP01).Status != acme.StatusPending {
		t.Errorf("the authorization is %+v", a)
	}
	mustEqual(t, "the status of the order", w.readOrder(t, o.ID).Status, acme.StatusPending)

	begin(second, acme.HTTP01, true)
	failure := pki.Refuse(pki.RuleACMEValidationAnswer, "serve it", "another answer")
	a = w.move(t, true, acme.Move{Authorization: second, Kind: acme.Fail, Challenge: acme.HTTP01, Failure: failure})
	mustEqual(t, "the failure", a.Challenge(acme.HTTP01).Failure, failure)
	have := w.readOrder(t, o.ID)
	mustEqual(t, "the status of the order", have.Status, acme.StatusInvalid)
	mustEqual(t, "the failure of the order", have.Failure, failure)
	begin(second, acme.HTTP01, false)
	w.move(t, false, acme.Move{Authorization: second, Kind: acme.Withdraw})
	a = w.move(t, true, acme.Move{Authorization: first, Kind: acme.Withdraw})
	mustEqual(t, "the status", a.Status, acme.StatusDeactivated)
	read, err := w.ACME.Authorization(context.Background(), account.ID, first, w.now)
	must(t, err)
	mustEqual(t, "the authorization", read, a)
	_, err = w.ACME.Authorization(context.Background(), account.ID, w.acmeID(), w.now)
	mustRefuse(t, err, pki.RuleACMEAuthorization)
	_, _, err = w.ACME.MoveAuthorization(context.Background(), acme.Move{Authorization: w.acmeID(), Kind: acme.Withdraw, At: w.now})
	mustRefuse(t, err, pki.RuleACMEAuthorization)
}

// authorizationsOfAccounts lets accounts read and move authorizations of their own and of others.
func authorizationsOfAccounts(t *testing.T, w *world) {
	ctx := context.Background()
	a, other := w.account(t), w.account(t)
	id := w.order(t, a.ID, "a.example").Authorizations[0]
	moves := []acme.Move{
		{Authorization: id, Kind: acme.Begin, Challenge: acme.HTTP01, At: w.now}, {Authorization: id, Kind: acme.Withdraw, At: w.now},
	}
	refuse := func(account acme.ID, rule pki.Rule) {
		t.Helper()
		_, err := w.ACME.Authorization(ctx, account, id, w.now)
		mustRefuse(t, err, rule)
		for _, m := range moves {
			m.Account = account
			_, moved, err := w.ACME.MoveAuthorization(ctx, m)
			mustRefuse(t, err, rule)
			mustEqual(t, "whether the authorization moved", moved, false)
		}
	}
	refuse(other.ID, pki.RuleACMEAuthorization)
	w.move(t, true, acme.Move{Account: a.ID, Authorization: id, Kind: acme.Begin, Challenge: acme.HTTP01})
	_, err := w.ACME.ChangeAccount(ctx, acme.AccountChange{ID: a.ID, Deactivate: true, At: w.now})
	must(t, err)
	refuse(a.ID, pki.RuleACMEAccountStatus)
	refuse(other.ID, pki.RuleACMEAuthorization)
	w.move(t, true, acme.Move{Authorization: id, Kind: acme.Succeed, Challenge: acme.HTTP01})
}

func expiredOrders(t *testing.T, w *world) {
	a := w.account(t)
	pending, ready := w.order(t, a.ID, "a.example"), w.readyOrder(t, a.ID, "b.example")
	mustEqual(t, "the status", ready.Status, acme.StatusReady)
	id := w.register(t)
	r := w.orderRecord(t, id, ready)
	w.now = ready.ExpiresAt
	for _, o := range []acme.Order{pending, ready} {
		mustEqual(t, "the status", w.readOrder(t, o.ID).Status, acme.StatusInvalid)
		have, err := w.ACME.Authorization(context.Background(), a.ID, o.Authorizations[0], w.now)
		must(t, err)
		mustEqual(t, "the status of the authorization", have.Status, acme.StatusExpired)
		w.move(t, false, acme.Move{Authorization: o.Authorizations[0], Kind: acme.Withdraw})
	}
	r.NotAfter = w.now.Add(time.Hour)
	mustRefuse(t, w.commit(t, r), pki.RuleACMEOrderNotReady)
}

func tooManyOrders(t *testing.T, w *world) {
	a, other := w.account(t), w.account(t)
	var last acme.Order
	for range acme.MaxOpenOrders {
		last = w.order(t, a.ID, "a.example")
	}
	more, all := w.newOrder(a.ID, "a.example")
	mustRefuse(t, w.ACME.CreateOrder(context.Background(), more, all), pki.RuleACMEOrders)
	w.order(t, other.ID, "a.example")
	w.move(t, true, acme.Move{Authorization: last.Authorizations[0], Kind: acme.Begin, Challenge: acme.DNS01})
	w.move(t, true, acme.Move{Authorization: last.Authorizations[0], Kind: acme.Succeed, Challenge: acme.DNS01})
	w.issue(t, w.orderRecord(t, w.register(t), last))
	w.order(t, a.ID, "a.example") // an order with a certificate does not count
	mustRefuse(t, w.ACME.CreateOrder(context.Background(), more, all), pki.RuleACMEOrders)
	w.now = w.now.Add(acme.OrderLifetime)
	w.order(t, a.ID, "a.example") // and neither do expired ones
}

func ordersThatReplace(t *testing.T, w *world) {
	ctx := context.Background()
	a := w.account(t)
	before := w.issue(t, w.orderRecord(t, w.register(t), w.readyOrder(t, a.ID, "a.example")))
	create := func() (acme.Order, error) {
		o, all := w.newOrder(a.ID, "a.example")
		o.Replaces = before.Ref
		return o, w.ACME.CreateOrder(ctx, o, all)
	}
	first, err := create()
	must(t, err)
	mustEqual(t, "the replaced certificate", w.readOrder(t, first.ID).Replaces, before.Ref)
	_, err = create()
	mustRefuse(t, err, pki.RuleACMEReplaced)
	w.move(t, true, acme.Move{Authorization: first.Authorizations[0], Kind: acme.Withdraw}) // the order is invalid now
	_, err = create()
	must(t, err)
	w.now = w.now.Add(acme.OrderLifetime)
	_, err = create()
	must(t, err)
}

func authorizedNames(t *testing.T, w *world) {
	ctx := context.Background()
	a := w.account(t)
	w.readyOrder(t, a.ID, "a.example")
	w.readyOrder(t, a.ID, "*.b.example")
	w.order(t, a.ID, "c.example")
	name := func(n string) acme.Identifier { return acme.Identifier{Type: acme.DNS, Value: n} }
	for _, c := range []struct {
		account acme.ID
		names   []acme.Identifier
		want    bool
	}{
		{a.ID, []acme.Identifier{name("a.example")}, true},
		{a.ID, []acme.Identifier{name("a.example"), name("*.b.example")}, true},
		{a.ID, []acme.Identifier{name("b.example")}, false},
		{a.ID, []acme.Identifier{name("a.example"), name("c.example")}, false},
		{a.ID, []acme.Identifier{{Type: acme.IP, Value: netip.IPv6Loopback().String()}}, false},
		{w.account(t).ID, []acme.Identifier{name("a.example")}, false},
	} {
		have, err := w.ACME.Authorized(ctx, c.account, c.names, w.now)
		must(t, err)
		if have != c.want {
			t.Errorf("%v: authorized is %t", c.names, have)
		}
	}
	have, err := w.ACME.Authorized(ctx, a.ID, []acme.Identifier{name("a.example")}, w.now.Add(acme.OrderLifetime))
	must(t, err)
	mustEqual(t, "whether an expired authorization counts", have, false)
}
