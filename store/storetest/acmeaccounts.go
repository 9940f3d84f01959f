package storetest

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra/acme"
	"github.com/brevet-pki/brevet/revocation"
	"github.com/brevet-pki/brevet/translog"
)

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
	named.IdentityState = pki.Registered
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

// listsOfAccounts lists accounts with and without external keys, in pages.
func listsOfAccounts(t *testing.T, w *world) {
	ctx := context.Background()
	first := w.account(t)
	k := w.externalKey(t)
	second := w.newAccount()
	second.ExternalKey = k.ID
	_, _, err := w.ACME.CreateAccount(ctx, second)
	must(t, err)
	third := w.account(t)
	id := w.register(t)
	for range 2 {
		w.issue(t, w.orderRecord(t, w.readIdentity(t, id.ID), w.readyOrder(t, second.ID, "a.example")))
	}
	expired := w.orderRecord(t, w.readIdentity(t, id.ID), w.readyOrder(t, second.ID, "a.example"))
	expired.NotAfter = w.now
	w.issue(t, expired)
	page, next, err := w.ACME.Accounts(ctx, w.now, acme.ID{}, 2)
	must(t, err)
	rest, end, err := w.ACME.Accounts(ctx, w.now, next, 2)
	must(t, err)
	mustEqual(t, "the page after the last one", end, acme.ID{})
	second, err = w.ACME.Account(ctx, second.ID)
	must(t, err)
	mustEqual(t, "the accounts", append(page, rest...), []acme.ListedAccount{
		{Account: third}, {Account: second, Unexpired: 2}, {Account: first},
	})
	_, _, err = w.ACME.Accounts(ctx, w.now, acme.ID{}, 0)
	mustRefuse(t, err, pki.RuleRequest)
}

// revokedAccounts revokes accounts with and without external keys.
func revokedAccounts(t *testing.T, w *world) {
	ctx := context.Background()
	revoke := func(id acme.ID, by pki.Actor) (acme.Account, error) {
		return w.ACME.RevokeAccount(ctx, acme.AccountRevocation{ID: id, By: by, Comment: "stolen", At: w.now})
	}
	open := w.account(t)
	ready := w.readyOrder(t, open.ID, "a.example")
	have, err := w.ACME.Account(ctx, open.ID) // a store may keep what it has read, until it changes
	must(t, err)
	mustEqual(t, "the status before", have.Status, acme.AccountValid)
	have, err = revoke(open.ID, operator)
	must(t, err)
	mustEqual(t, "the status", have.Status, acme.AccountRevoked)
	read, err := w.ACME.Account(ctx, open.ID)
	must(t, err)
	mustEqual(t, "the account that is read", read, have)
	e := w.lastEntry(t)
	if e.Action != translog.ACMEAccountRevoked || e.Actor != operator || e.Facts()["account"] != open.ID.String() || e.Facts()["comment"] != "stolen" {
		t.Errorf("the entry is %+v with %v", e, e.Facts())
	}
	mustRefuse(t, w.commit(t, w.orderRecord(t, w.register(t), ready)), pki.RuleACMEAccountStatus)
	_, _, err = w.ACME.CreateAccount(ctx, acme.Account{ID: w.acmeID(), Key: open.Key, Thumbprint: open.Thumbprint, Status: acme.AccountValid, CreatedAt: w.now})
	mustRefuse(t, err, pki.RuleACMEAccountStatus)
	written, err := w.Log.Written(ctx)
	must(t, err)
	again, err := revoke(open.ID, operator)
	must(t, err)
	mustEqual(t, "the account after a repeat", again, have)
	after, err := w.Log.Written(ctx)
	must(t, err)
	mustEqual(t, "the number of log entries after a repeat", after, written)

	bound, k := w.newAccount(), w.externalKey(t)
	bound.ExternalKey = k.ID
	_, _, err = w.ACME.CreateAccount(ctx, bound)
	must(t, err)
	have, err = revoke(bound.ID, operator)
	must(t, err)
	mustEqual(t, "the status", have.Status, acme.AccountRevoked)
	k, _, err = w.ACME.ExternalKey(ctx, k.ID)
	must(t, err)
	mustEqual(t, "the state of its external key", k.State(w.now), acme.ExternalKeyRevoked)
	mustEqual(t, "the action", w.lastEntry(t).Action, translog.ACMEExternalKeyRevoked)

	_, err = revoke(w.acmeID(), operator)
	mustNotFind(t, err)
}

// keysOfStaleIdentities checks that a key whose identity is suspended or retired creates no account.
func keysOfStaleIdentities(t *testing.T, w *world) {
	ctx := context.Background()
	create := func(k acme.ExternalKey) error {
		a := w.newAccount()
		a.ExternalKey = k.ID
		_, _, err := w.ACME.CreateAccount(ctx, a)
		return err
	}
	id := w.register(t)
	w.issue(t, w.enrollment(t, id))
	k := acme.ExternalKey{ID: w.acmeID(), Identity: id.ID, CreatedBy: operator, CreatedAt: w.now, ExpiresAt: w.now.Add(time.Hour)}
	_, err := w.ACME.CreateExternalKey(ctx, k, []byte("sealed"))
	must(t, err)
	state := func(want pki.IdentityState) {
		t.Helper()
		page, _, err := w.ACME.ExternalKeys(ctx, acme.ID{}, 1)
		must(t, err)
		mustEqual(t, "the state of the identity", page[0].IdentityState, want)
	}
	state(pki.Enrolled)
	w.changeIdentity(t, id.ID, revocation.Hold, pki.Suspended)
	state(pki.Suspended)
	mustRefuse(t, create(k), pki.RuleIdentityState)
	_, sealed, err := w.ACME.ExternalKey(ctx, k.ID)
	must(t, err)
	mustEqual(t, "whether the HMAC key is kept", len(sealed) > 0, true)
	w.apply(t, revocation.Change{Action: revocation.Unhold, Identity: id.ID})
	must(t, create(k))
}
