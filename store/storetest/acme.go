package storetest

import (
	"context"
	"net/netip"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra"
	"github.com/brevet-pki/brevet/ra/acme"
	"github.com/brevet-pki/brevet/revocation"
	"github.com/brevet-pki/brevet/translog"
)

func testACME(t *testing.T, open func(t *testing.T) Store) {
	each(t, open, map[string]func(t *testing.T, w *world){
		"external keys": externalKeys, "external keys that end": externalKeysThatEnd, "one account for each external key": oneAccountForEachKey,
		"permissions about external keys": permissionsAboutExternalKeys, "external keys of a former operator": externalKeysOfAFormerOperator,
		"accounts": accounts, "keys of accounts": keysOfAccounts, "orders": orders, "authorizations": authorizations,
		"expired orders": expiredOrders, "too many orders": tooManyOrders, "orders that replace": ordersThatReplace,
		"certificates of orders": certificatesOfOrders, "bound of certificates": boundOfCertificates, "authorized names": authorizedNames,
		"finalizing again": finalizingAgain, "finalizing at once": finalizingAtOnce, "finalizing after a crash": finalizingAfterACrash,
		"guards of orders": guardsOfOrders,
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

// orderRecord returns the record of the certificate for an order. It enrolls the identity if it is not enrolled.
func (w *world) orderRecord(t rapid.TB, id ra.Identity, o acme.Order) ca.Record {
	t.Helper()
	r := w.record(t, id.ID)
	if id.State == pki.Registered {
		r = w.enrollment(t, id)
	}
	r.RequestID = o.ID.Request()
	var names []string
	for _, n := range o.Identifiers {
		names = append(names, n.Value)
	}
	r.Guard.Identity, r.Guard.Revision = id.ID, id.Revision
	r.Guard.Order = pki.Order{ID: r.RequestID, Names: pki.DigestNames(id.ID, names)}
	account := acme.Account{ID: o.Account}
	r.Actor = account.Actor()
	r.Evidence = pki.EvidenceRecord{Pieces: []pki.EvidenceDigest{{Kind: pki.EvidenceACME, Digest: w.unique()}}, Rule: "web", Policy: 1}
	return r
}

func externalKeys(t *testing.T, w *world) {
	ctx := context.Background()
	device := w.register(t)
	named := acme.ExternalKey{ID: w.acmeID(), Identity: device.ID, CreatedBy: operator, CreatedAt: w.now, ExpiresAt: w.now.Add(time.Hour)}
	_, err := w.ACME.CreateExternalKey(ctx, named, []byte("sealed"))
	must(t, err)
	e := w.lastEntry(t)
	if e.Action != translog.ACMEExternalKeyCreated || e.Identity != device.ID || e.Facts()["external_key"] != named.ID.String() {
		t.Errorf("the entry is %+v", e)
	}
	have, sealed, err := w.ACME.ExternalKey(ctx, named.ID)
	must(t, err)
	mustEqual(t, "the external key", have, named)
	mustEqual(t, "the sealed key", string(sealed), "sealed")
	_, _, err = w.ACME.ExternalKey(ctx, w.acmeID())
	mustNotFind(t, err)
	missing := named
	missing.ID, missing.Identity = w.acmeID(), w.newIdentity(t).ID
	_, err = w.ACME.CreateExternalKey(ctx, missing, nil)
	mustRefuse(t, err, pki.RuleIdentity)

	ids := []acme.ID{named.ID}
	for range 4 {
		ids = append(ids, w.externalKey(t).ID)
	}
	slices.Reverse(ids)
	var listed []acme.ID
	for after := (acme.ID{}); ; {
		page, next, err := w.ACME.ExternalKeys(ctx, after, 2)
		must(t, err)
		for _, k := range page {
			listed = append(listed, k.ID)
		}
		if next.IsZero() {
			break
		}
		after = next
	}
	mustEqual(t, "the list", listed, ids)
}

func externalKeysThatEnd(t *testing.T, w *world) {
	ctx := context.Background()
	use := func(k acme.ExternalKey) error {
		a := w.newAccount()
		a.ExternalKey = k.ID
		_, _, err := w.ACME.CreateAccount(ctx, a)
		return err
	}
	revoked := w.externalKey(t)
	r := acme.ExternalKeyRevocation{ID: revoked.ID, By: operator, Comment: "lost", At: w.now}
	have, err := w.ACME.RevokeExternalKey(ctx, r)
	must(t, err)
	mustEqual(t, "the state", have.State(w.now), acme.ExternalKeyRevoked)
	before := len(w.entries(t))
	again, err := w.ACME.RevokeExternalKey(ctx, r)
	must(t, err)
	mustEqual(t, "the external key", again, have)
	mustEqual(t, "the number of entries", len(w.entries(t)), before)
	mustRefuse(t, use(revoked), pki.RuleACMEBinding)
	_, sealed, err := w.ACME.ExternalKey(ctx, revoked.ID)
	must(t, err)
	mustEqual(t, "the size of the sealed key", len(sealed), 0)

	late := w.externalKey(t)
	w.now = late.ExpiresAt
	mustRefuse(t, use(late), pki.RuleACMEBinding)
	unknown := w.newAccount()
	unknown.ExternalKey = w.acmeID()
	_, _, err = w.ACME.CreateAccount(ctx, unknown)
	mustNotFind(t, err)

	used := w.externalKey(t)
	a := w.newAccount()
	a.ExternalKey = used.ID
	_, _, err = w.ACME.CreateAccount(ctx, a)
	must(t, err)
	have, sealed, err = w.ACME.ExternalKey(ctx, used.ID)
	must(t, err)
	if have.Account != a.ID || have.Status != acme.AccountValid || len(sealed) > 0 {
		t.Errorf("the external key is %+v, with a sealed key of %d bytes", have, len(sealed))
	}
	_, err = w.ACME.RevokeExternalKey(ctx, acme.ExternalKeyRevocation{ID: used.ID, By: operator, At: w.now})
	must(t, err)
	account, err := w.ACME.Account(ctx, a.ID)
	must(t, err)
	mustEqual(t, "the status of the account", account.Status, acme.AccountRevoked)
	_, err = w.ACME.ChangeAccount(ctx, acme.AccountChange{ID: a.ID, Deactivate: true, At: w.now})
	mustRefuse(t, err, pki.RuleACMEAccountStatus)
}

func oneAccountForEachKey(t *testing.T, w *world) {
	const callers = 6
	k := w.externalKey(t)
	errs := make([]error, callers)
	var run []func()
	for i := range errs {
		a := w.newAccount()
		a.ExternalKey = k.ID
		run = append(run, func() { _, _, errs[i] = w.ACME.CreateAccount(context.Background(), a) })
	}
	together(run...)
	created := 0
	for _, err := range errs {
		if err == nil {
			created++
			continue
		}
		mustRefuse(t, err, pki.RuleACMEBinding)
	}
	mustEqual(t, "the number of accounts", created, 1)
}

func permissionsAboutExternalKeys(t *testing.T, w *world) {
	ctx := context.Background()
	north, device := w.newIdentity(t), w.register(t)
	north.Labels = map[string]string{"site": "north"}
	north = w.create(t, north)
	scoped := w.newOperator(t, pki.RoleRegistrar)
	scoped.Labels = map[string]string{"site": "north"}
	for _, c := range []struct {
		by                  ca.Record
		named, other, ruled pki.Rule
		revoke              pki.Rule
	}{
		{w.enrollOperator(t, pki.RoleAdmin), "", "", "", ""},
		{w.enrollOperator(t, pki.RoleRegistrar), "", "", "", pki.RuleAccess},
		{w.enrollAs(t, scoped), "", pki.RuleAccessLabel, pki.RuleAccessLabel, pki.RuleAccess},
		{w.enrollOperator(t, pki.RoleRevoker), pki.RuleAccess, pki.RuleAccess, pki.RuleAccess, ""},
		{w.enrollOperator(t, pki.RoleAuditor), pki.RuleAccess, pki.RuleAccess, pki.RuleAccess, pki.RuleAccess},
	} {
		by := pki.ActorCaller(c.by.Identity, c.by.Ref)
		for rule, k := range map[pki.Rule]acme.ExternalKey{c.named: {Identity: north.ID}, c.other: {Identity: device.ID}, c.ruled: {Rule: "web"}} {
			k.ID, k.CreatedBy, k.CreatedAt, k.ExpiresAt = w.acmeID(), by, w.now, w.now.Add(time.Hour)
			_, err := w.ACME.CreateExternalKey(ctx, k, []byte("sealed"))
			allowOrRefuse(t, err, rule)
		}
		_, err := w.ACME.RevokeExternalKey(ctx, acme.ExternalKeyRevocation{ID: w.externalKey(t).ID, By: by, At: w.now})
		allowOrRefuse(t, err, c.revoke)
	}
}

// allowOrRefuse checks that err is a refusal by a rule, or nil if the rule is empty.
func allowOrRefuse(t *testing.T, err error, rule pki.Rule) {
	t.Helper()
	if rule == "" {
		must(t, err)
		return
	}
	mustRefuse(t, err, rule)
}

func externalKeysOfAFormerOperator(t *testing.T, w *world) {
	ctx := context.Background()
	by := w.enrollOperator(t, pki.RoleRegistrar)
	create := func() acme.ExternalKey {
		k := acme.ExternalKey{
			ID: w.acmeID(), Rule: "web", CreatedBy: pki.ActorCaller(by.Identity, by.Ref), CreatedAt: w.now, ExpiresAt: w.now.Add(time.Hour),
		}
		_, err := w.ACME.CreateExternalKey(ctx, k, []byte("sealed"))
		must(t, err)
		return k
	}
	unused, used := create(), create()
	a := w.newAccount()
	a.ExternalKey = used.ID
	_, _, err := w.ACME.CreateAccount(ctx, a)
	must(t, err)
	w.apply(t, revocation.Change{Action: hold, Identity: by.Identity, State: pki.Suspended})
	for id, want := range map[acme.ID]acme.ExternalKeyState{unused.ID: acme.ExternalKeyRevoked, used.ID: acme.ExternalKeyUsed} {
		have, _, err := w.ACME.ExternalKey(ctx, id)
		must(t, err)
		mustEqual(t, "the state", have.State(w.now), want)
	}
}

func accounts(t *testing.T, w *world) {
	ctx := context.Background()
	a := w.account(t)
	e := w.lastEntry(t)
	if e.Action != translog.ACMEAccountCreated || e.Actor != a.Actor() || e.Facts()["account"] != a.ID.String() {
		t.Errorf("the entry is %+v", e)
	}
	for _, read := range []func() (acme.Account, error){
		func() (acme.Account, error) { return w.ACME.Account(ctx, a.ID) },
		func() (acme.Account, error) { return w.ACME.AccountByKey(ctx, a.Thumbprint) },
	} {
		have, err := read()
		must(t, err)
		mustEqual(t, "the account", have, a)
	}
	_, err := w.ACME.Account(ctx, w.acmeID())
	mustRefuse(t, err, pki.RuleACMEAccount)
	_, err = w.ACME.AccountByKey(ctx, w.unique())
	mustRefuse(t, err, pki.RuleACMEAccount)

	same := w.newAccount()
	same.Key, same.Thumbprint = a.Key, a.Thumbprint
	have, created, err := w.ACME.CreateAccount(ctx, same)
	must(t, err)
	mustEqual(t, "the account", have, a)
	mustEqual(t, "whether the account was created", created, false)

	before := len(w.entries(t))
	have, err = w.ACME.ChangeAccount(ctx, acme.AccountChange{ID: a.ID, SetContact: true, At: w.now})
	must(t, err)
	mustEqual(t, "the number of contacts", len(have.Contact), 0)
	mustEqual(t, "the number of entries", len(w.entries(t)), before)
	for range 2 {
		have, err = w.ACME.ChangeAccount(ctx, acme.AccountChange{ID: a.ID, Deactivate: true, At: w.now})
		must(t, err)
		mustEqual(t, "the status", have.Status, acme.AccountDeactivated)
		mustEqual(t, "the number of entries", len(w.entries(t)), before+1)
	}
	_, _, err = w.ACME.CreateAccount(ctx, same)
	mustRefuse(t, err, pki.RuleACMEAccountStatus)
	_, err = w.ACME.ChangeAccount(ctx, acme.AccountChange{ID: a.ID, SetContact: true, Contact: []string{"mailto:b@fleet.example"}, At: w.now})
	mustRefuse(t, err, pki.RuleACMEAccountStatus)
}

func keysOfAccounts(t *testing.T, w *world) {
	ctx := context.Background()
	a, b := w.account(t), w.account(t)
	next := w.newAccount()
	change := acme.AccountChange{ID: a.ID, NewKey: next.Key, NewThumbprint: next.Thumbprint, OldThumbprint: a.Thumbprint, At: w.now}
	for range 2 { // a repeat succeeds
		have, err := w.ACME.ChangeAccount(ctx, change)
		must(t, err)
		if have.Thumbprint != next.Thumbprint || !slices.Equal(have.Key, next.Key) {
			t.Errorf("the account is %+v", have)
		}
	}
	mustEqual(t, "the action", w.lastEntry(t).Action, translog.ACMEAccountKeyChanged)
	_, err := w.ACME.AccountByKey(ctx, a.Thumbprint)
	mustRefuse(t, err, pki.RuleACMEAccount)
	change.NewKey, change.NewThumbprint = b.Key, b.Thumbprint
	_, err = w.ACME.ChangeAccount(ctx, change)
	mustRefuse(t, err, pki.RuleACMEAccountKey)
	change.OldThumbprint = next.Thumbprint
	_, err = w.ACME.ChangeAccount(ctx, change)
	mustRefuse(t, err, pki.RuleACMEAccountKey)
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
	o := w.order(t, w.account(t).ID, "a.example", "b.example")
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
	read, err := w.ACME.Authorization(context.Background(), first, w.now)
	must(t, err)
	mustEqual(t, "the authorization", read, a)
	_, err = w.ACME.Authorization(context.Background(), w.acmeID(), w.now)
	mustRefuse(t, err, pki.RuleACMEAuthorization)
	_, _, err = w.ACME.MoveAuthorization(context.Background(), acme.Move{Authorization: w.acmeID(), Kind: acme.Withdraw, At: w.now})
	mustRefuse(t, err, pki.RuleACMEAuthorization)
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
		have, err := w.ACME.Authorization(context.Background(), o.Authorizations[0], w.now)
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

func certificatesOfOrders(t *testing.T, w *world) {
	ctx := context.Background()
	a, id := w.account(t), w.register(t)
	o := w.readyOrder(t, a.ID, "a.example", "b.example")
	r := w.issue(t, w.orderRecord(t, id, o))
	have := w.readOrder(t, o.ID)
	if have.Status != acme.StatusValid || have.Certificate != r.Ref {
		t.Errorf("the order is %+v", have)
	}
	mustEqual(t, "the state of the identity", w.readIdentity(t, id.ID).State, pki.Enrolled)
	of, err := w.ACME.OrderOf(ctx, r.Ref)
	must(t, err)
	mustEqual(t, "the order", of, have)
	e := w.lastEntry(t)
	if e.Action != translog.CertificateIssued || e.Actor != a.Actor() || e.Facts()["policy_rule"] != "web" {
		t.Errorf("the entry is %+v", e)
	}

	refs := []pki.CertRef{r.Ref}
	for range 4 {
		next := w.orderRecord(t, w.readIdentity(t, id.ID), w.readyOrder(t, a.ID, "a.example"))
		refs = append(refs, w.issue(t, next).Ref)
	}
	expired := w.orderRecord(t, w.readIdentity(t, id.ID), w.readyOrder(t, a.ID, "a.example"))
	expired.NotAfter = w.now
	w.issue(t, expired)
	w.issue(t, w.orderRecord(t, w.readIdentity(t, id.ID), w.readyOrder(t, w.account(t).ID, "a.example")))
	var listed []pki.CertRef
	for after := (pki.CertRef{}); ; after = listed[len(listed)-1] {
		page, err := w.ACME.Certificates(ctx, a.ID, w.now, after, 2)
		must(t, err)
		if len(page) == 0 {
			break
		}
		listed = append(listed, page...)
	}
	mustEqual(t, "the number of certificates", len(listed), len(refs))
	for _, ref := range refs {
		mustEqual(t, "whether the certificate is listed", slices.Contains(listed, ref), true)
	}
}

// boundOfCertificates checks that the maximum counts certificates of one identity with one set of names.
func boundOfCertificates(t *testing.T, w *world) {
	a, id := w.account(t), w.register(t)
	issue := func(names ...string) error {
		t.Helper()
		r := w.orderRecord(t, w.readIdentity(t, id.ID), w.readyOrder(t, a.ID, names...))
		r.Guard.MaxUnexpired = 2
		st, err := w.RA.IssuanceState(context.Background(), ra.IssuanceQuery{
			Identity: id.ID, Request: r.RequestID, Key: r.KeyHash, At: w.now, MaxUnexpired: 2, Order: r.Guard.Order,
		})
		must(t, err)
		err = w.commit(t, r)
		if (err != nil) != (st.Unexpired == 2) || st.OrderRefusal != nil {
			t.Errorf("the state counts %d certificates, with the refusal %v, and the guard returns %v", st.Unexpired, st.OrderRefusal, err)
		}
		return err
	}
	must(t, issue("a.example"))
	must(t, issue("a.example"))
	mustRefuse(t, issue("a.example"), pki.RuleMaxUnexpired)
	must(t, issue("a.example", "b.example"))
	w.now = w.now.Add(time.Hour)
	must(t, issue("a.example"))
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

func finalizingAgain(t *testing.T, w *world) {
	a, id := w.account(t), w.register(t)
	o := w.readyOrder(t, a.ID, "a.example")
	first := w.issue(t, w.orderRecord(t, id, o))
	again := w.orderRecord(t, w.readIdentity(t, id.ID), o) // with another key
	mustRefuse(t, w.commit(t, again), pki.RuleRequestIDReused)
	other := w.orderRecord(t, w.register(t), o) // the account has another identity now
	mustRefuse(t, w.commit(t, other), pki.RuleACMEOrderNotReady)
	mustEqual(t, "the certificate", w.readOrder(t, o.ID).Certificate, first.Ref)
}

func finalizingAtOnce(t *testing.T, w *world) {
	a := w.account(t)
	o := w.readyOrder(t, a.ID, "a.example")
	var records []ca.Record
	for range 4 { // with different identities, so that only the order is the same
		records = append(records, w.orderRecord(t, w.register(t), o))
	}
	issued := 0
	for i, err := range w.commitBatch(t, w.writeIntent(t, records...), records...) {
		if err == nil {
			issued++
			mustEqual(t, "the certificate", w.readOrder(t, o.ID).Certificate, records[i].Ref)
			continue
		}
		mustRefuse(t, err, pki.RuleACMEOrderNotReady)
	}
	mustEqual(t, "the number of certificates", issued, 1)
}

// finalizingAfterACrash finalizes an order again after a process has ended between the intent and the record.
func finalizingAfterACrash(t *testing.T, w *world) {
	a, id := w.account(t), w.register(t)
	o := w.readyOrder(t, a.ID, "a.example")
	lost := w.orderRecord(t, id, o)
	w.writeIntent(t, lost)
	w.reopen(t)
	for _, intent := range w.begin(t) {
		w.commitBatch(t, intent)
	}
	mustEqual(t, "the status", w.readOrder(t, o.ID).Status, acme.StatusReady)
	r := w.issue(t, w.orderRecord(t, id, o))
	w.reopen(t)
	w.begin(t)
	mustEqual(t, "the certificate", w.readOrder(t, o.ID).Certificate, r.Ref)
	if c := w.readCertificate(t, lost.Ref); c.Delivered || c.Status.State != pki.Revoked {
		t.Errorf("the certificate that was not delivered is %+v", c)
	}
}

func guardsOfOrders(t *testing.T, w *world) {
	ctx := context.Background()
	a := w.account(t)
	check := func(want pki.Rule, r ca.Record) {
		t.Helper()
		st, err := w.RA.IssuanceState(ctx, ra.IssuanceQuery{Identity: r.Identity, Request: r.RequestID, Key: r.KeyHash, At: w.now, Order: r.Guard.Order})
		must(t, err)
		if refusal := st.OrderRefusal; refusal == nil || refusal.Rule != want {
			t.Errorf("the state has the refusal %v, want %s", refusal, want)
		}
		mustRefuse(t, w.commit(t, r), want)
		mustEqual(t, "the state of the identity", w.readIdentity(t, r.Identity).State, pki.Registered)
	}
	check(pki.RuleACMEOrderNotReady, w.orderRecord(t, w.register(t), w.order(t, a.ID, "a.example")))
	unknown, _ := w.newOrder(a.ID, "a.example")
	check(pki.RuleACMEOrder, w.orderRecord(t, w.register(t), unknown))

	withdrawn := w.readyOrder(t, a.ID, "a.example", "b.example")
	w.move(t, true, acme.Move{Authorization: withdrawn.Authorizations[1], Kind: acme.Withdraw})
	check(pki.RuleACMEOrderNotReady, w.orderRecord(t, w.register(t), withdrawn))

	other := w.orderRecord(t, w.register(t), w.readyOrder(t, a.ID, "a.example"))
	other.RequestID = w.requestID(t)
	mustRefuse(t, w.commit(t, other), pki.RuleRequest)

	o := w.readyOrder(t, a.ID, "a.example")
	_, err := w.ACME.ChangeAccount(ctx, acme.AccountChange{ID: a.ID, Deactivate: true, At: w.now})
	must(t, err)
	check(pki.RuleACMEAccountStatus, w.orderRecord(t, w.register(t), o))
}

// orderIsFinalizedOnce finalizes one order with two handles.
func orderIsFinalizedOnce(t *testing.T, first, second *world) {
	a := first.account(t)
	o := first.readyOrder(t, a.ID, "a.example")
	r := first.issue(t, first.orderRecord(t, first.register(t), o))
	second.begin(t)
	mustRefuse(t, second.commit(t, second.orderRecord(t, second.register(t), o)), pki.RuleACMEOrderNotReady)
	mustEqual(t, "the certificate", second.readOrder(t, o.ID).Certificate, r.Ref)
	k := first.externalKey(t)
	one, other := first.newAccount(), second.newAccount()
	one.ExternalKey, other.ExternalKey = k.ID, k.ID
	_, _, err := second.ACME.CreateAccount(context.Background(), other)
	must(t, err)
	_, _, err = first.ACME.CreateAccount(context.Background(), one)
	mustRefuse(t, err, pki.RuleACMEBinding)
}
