package storetest

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra"
	"github.com/brevet-pki/brevet/revocation"
	"github.com/brevet-pki/brevet/translog"
)

func testRoles(t *testing.T, open func(t *testing.T) Store) {
	each(t, open, map[string]func(t *testing.T, w *world){
		"changes of each role": changesOfEachRole, "labels of a registrar": labelsOfARegistrar, "labels that change": labelsThatChange,
		"roles change": rolesChange, "roles are lost": rolesAreLost,
		"admins keep their role": adminsKeepTheirRole, "admins who demote each other": adminsDemoteEachOther,
		"tokens of a former registrar": tokensOfAFormerRegistrar,
		"tokens of a former admin":     tokensOfAFormerAdmin,
	})
}

// newOperator returns a new operator with the roles.
func (w *world) newOperator(t rapid.TB, roles ...pki.Role) ra.Identity {
	t.Helper()
	b := w.unique()
	id, err := pki.OperatorID("fleet.example", fmt.Sprintf("%x", b[:8]))
	must(t, err)
	return ra.Identity{ID: id, Kind: pki.Operator, Profile: "operator", CreatedAt: w.now, Roles: pki.RolesOf(roles...)}
}

// enrollOperator registers an operator with the roles and issues its first certificate.
func (w *world) enrollOperator(t rapid.TB, roles ...pki.Role) ca.Record {
	t.Helper()
	return w.enrollAs(t, w.newOperator(t, roles...))
}

func (w *world) enrollAs(t rapid.TB, id ra.Identity) ca.Record {
	t.Helper()
	return w.issue(t, w.enrollment(t, w.create(t, id)))
}

// create registers an identity.
func (w *world) create(t rapid.TB, id ra.Identity) ra.Identity {
	t.Helper()
	have, err := w.RA.CreateIdentity(context.Background(), ra.Registration{Identity: id}, operator)
	must(t, err)
	return have
}

// roleChanges maps each kind of change to a function that makes one, and to the roles that permit it.
var roleChanges = map[string]struct {
	change func(t *testing.T, w *world, by pki.Actor) error
	roles  []pki.Role
}{
	"register a device": {func(t *testing.T, w *world, by pki.Actor) error {
		return w.registerBy(t, w.newIdentity(t), by)
	}, []pki.Role{pki.RoleAdmin, pki.RoleRegistrar}},
	"update a device": {func(t *testing.T, w *world, by pki.Actor) error {
		return w.relabelBy(t, w.register(t), map[string]string{"site": "north"}, by)
	}, []pki.Role{pki.RoleAdmin, pki.RoleRegistrar}},
	"create a token of a device": {func(t *testing.T, w *world, by pki.Actor) error {
		return w.tokenBy(t, w.register(t).ID, by)
	}, []pki.Role{pki.RoleAdmin, pki.RoleRegistrar}},
	"issue for a device": {func(t *testing.T, w *world, by pki.Actor) error {
		return w.commit(t, w.issueRequestBy(t, by))
	}, []pki.Role{pki.RoleAdmin, pki.RoleRegistrar}},
	"suspend a device": {changeBy(true, func(w *world, t *testing.T) ca.Record { return w.enrollNew(t) }, revocation.Change{Action: hold, State: pki.Suspended}),
		[]pki.Role{pki.RoleAdmin, pki.RoleRevoker}},
	"retire a device": {changeBy(true, func(w *world, t *testing.T) ca.Record { return w.enrollNew(t) }, revocation.Change{Action: revoke, State: pki.Retired}),
		[]pki.Role{pki.RoleAdmin, pki.RoleRevoker}},
	"revoke a certificate of a device": {changeBy(false, func(w *world, t *testing.T) ca.Record { return w.enrollNew(t) }, revocation.Change{Action: revoke}),
		[]pki.Role{pki.RoleAdmin, pki.RoleRevoker}},
	"take a certificate of a device off hold": {changeBy(false, heldDevice, revocation.Change{Action: unhold}),
		[]pki.Role{pki.RoleAdmin, pki.RoleRevoker}},
	"revoke a token": {func(t *testing.T, w *world, by pki.Actor) error {
		_, err := w.RA.RevokeTokens(t.Context(), ra.TokenRevocation{ID: w.createToken(t, w.register(t).ID).ID.String(), By: by, At: w.now})
		return err
	}, []pki.Role{pki.RoleAdmin, pki.RoleRevoker}},
	"revoke in bulk": {func(t *testing.T, w *world, by pki.Actor) error {
		need(t, w.Revocation != nil, "bulk revocations")
		_, _, err := w.Revocation.CreateBulk(t.Context(), revocation.BulkRequest{
			Selection: pki.Selection{Profile: "other"}, Action: revoke, Actor: by, At: w.now,
		})
		return err
	}, []pki.Role{pki.RoleAdmin, pki.RoleRevoker}},
	"register an operator": {func(t *testing.T, w *world, by pki.Actor) error {
		return w.registerBy(t, w.newOperator(t, pki.RoleAuditor), by)
	}, []pki.Role{pki.RoleAdmin}},
	"update an operator": {func(t *testing.T, w *world, by pki.Actor) error {
		return w.relabelBy(t, w.create(t, w.newOperator(t, pki.RoleAuditor)), map[string]string{"site": "north"}, by)
	}, []pki.Role{pki.RoleAdmin}},
	"create a token of an operator": {func(t *testing.T, w *world, by pki.Actor) error {
		return w.tokenBy(t, w.create(t, w.newOperator(t, pki.RoleAdmin)).ID, by)
	}, []pki.Role{pki.RoleAdmin}},
	"suspend an operator": {changeBy(true, anOperator, revocation.Change{Action: hold, State: pki.Suspended}), []pki.Role{pki.RoleAdmin}},
	"resume an operator":  {changeBy(true, suspendedOperator, revocation.Change{Action: unhold}), []pki.Role{pki.RoleAdmin}},
	"retire an operator":  {changeBy(true, anOperator, revocation.Change{Action: revoke, State: pki.Retired}), []pki.Role{pki.RoleAdmin}},
	"take a certificate of an operator off hold": {changeBy(false, heldOperator, revocation.Change{Action: unhold}),
		[]pki.Role{pki.RoleAdmin}},
	"hold a certificate of an operator":   {changeBy(false, anOperator, revocation.Change{Action: hold}), []pki.Role{pki.RoleAdmin, pki.RoleRevoker}},
	"revoke a certificate of an operator": {changeBy(false, anOperator, revocation.Change{Action: revoke}), []pki.Role{pki.RoleAdmin, pki.RoleRevoker}},
	"apply a policy": {func(t *testing.T, w *world, by pki.Actor) error {
		w.uniqueCount++
		p, _, err := w.Policies.Policies(t.Context(), 0, 1)
		must(t, err)
		change := w.policy(fmt.Sprint(w.uniqueCount), 0)
		if len(p) > 0 {
			change.Based = p[0].Revision
		}
		change.By = by
		_, err = w.Policies.ApplyPolicy(t.Context(), change)
		return err
	}, []pki.Role{pki.RoleAdmin}},
}

func anOperator(w *world, t *testing.T) ca.Record { return w.enrollOperator(t, pki.RoleAdmin) }

func suspendedOperator(w *world, t *testing.T) ca.Record {
	r := w.enrollOperator(t, pki.RoleAdmin)
	w.apply(t, revocation.Change{Action: hold, State: pki.Suspended, Identity: r.Identity})
	return r
}

func heldOperator(w *world, t *testing.T) ca.Record {
	r := w.enrollOperator(t, pki.RoleAdmin)
	w.apply(t, revocation.Change{Action: hold, Certificate: r.Ref})
	return r
}

func heldDevice(w *world, t *testing.T) ca.Record {
	r := w.enrollNew(t)
	w.apply(t, revocation.Change{Action: hold, Certificate: r.Ref})
	return r
}

// changeBy returns a function that makes a change of the identity, or of the certificate, that prepare returns.
func changeBy(identity bool, prepare func(w *world, t *testing.T) ca.Record, change revocation.Change) func(t *testing.T, w *world, by pki.Actor) error {
	return func(t *testing.T, w *world, by pki.Actor) error {
		t.Helper()
		change, r := change, prepare(w, t)
		if identity {
			change.Identity = r.Identity
		} else {
			change.Certificate = r.Ref
		}
		change.Actor, change.At = by, w.now
		_, err := w.Statuses.Apply(t.Context(), change)
		return err
	}
}

func (w *world) registerBy(t *testing.T, id ra.Identity, by pki.Actor) error {
	t.Helper()
	_, err := w.RA.CreateIdentity(t.Context(), ra.Registration{Identity: id}, by)
	return err
}

// relabelBy replaces the labels of an identity.
func (w *world) relabelBy(t *testing.T, id ra.Identity, labels map[string]string, by pki.Actor) error {
	t.Helper()
	id.Labels = labels
	_, err := w.RA.UpdateIdentity(t.Context(), id, by, w.now)
	return err
}

// setRolesBy replaces the roles of an operator.
func (w *world) setRolesBy(t *testing.T, id pki.SPIFFEID, by pki.Actor, roles ...pki.Role) error {
	t.Helper()
	next := w.readIdentity(t, id)
	next.Roles = pki.RolesOf(roles...)
	_, err := w.RA.UpdateIdentity(t.Context(), next, by, w.now)
	return err
}

func (w *world) tokenBy(t *testing.T, id pki.SPIFFEID, by pki.Actor) error {
	t.Helper()
	_, err := w.RA.CreateToken(t.Context(), w.newToken(t, id, by))
	return err
}

// changesOfEachRole makes every kind of change as an operator with each role, with all others together, and without
// one. Only the roles that permit a change may make it.
func changesOfEachRole(t *testing.T, w *world) {
	sets := []pki.Roles{0}
	for _, r := range pki.AllRoles() {
		sets = append(sets, pki.RolesOf(r), pki.RolesOf(pki.AllRoles()...)&^pki.RolesOf(r))
	}
	for name, c := range roleChanges {
		for _, roles := range sets {
			t.Run(fmt.Sprintf("%s as %q", name, roles), func(t *testing.T) {
				by := callerOf(w.enrollOperator(t, roles.List()...))
				err := c.change(t, w, by)
				if slices.ContainsFunc(c.roles, roles.Has) {
					must(t, err)
					return
				}
				mustRefuse(t, err, pki.RuleAccess)
				for _, e := range w.entries(t) {
					if e.Actor == by.Named() && e.Action != translog.CertificateAbandoned {
						t.Errorf("the refused operator has written %+v", e)
					}
				}
			})
		}
	}
}

// labelsOfARegistrar has a registrar with two labels act on identities with and without them.
func labelsOfARegistrar(t *testing.T, w *world) {
	all := map[string]string{"line": "3", "site": "north", "batch": "7"}
	for name, c := range map[string]struct {
		roles  []pki.Role
		labels map[string]string // of the identity
		want   pki.Rule
	}{
		"all labels":                        {[]pki.Role{pki.RoleRegistrar}, all, ""},
		"one label is missing":              {[]pki.Role{pki.RoleRegistrar}, map[string]string{"line": "3"}, pki.RuleAccessLabel},
		"one label has another value":       {[]pki.Role{pki.RoleRegistrar}, map[string]string{"line": "3", "site": "south"}, pki.RuleAccessLabel},
		"one label is empty":                {[]pki.Role{pki.RoleRegistrar}, map[string]string{"line": "", "site": "north"}, pki.RuleAccessLabel},
		"no labels":                         {[]pki.Role{pki.RoleRegistrar}, nil, pki.RuleAccessLabel},
		"no labels, of a registrar-revoker": {[]pki.Role{pki.RoleRegistrar, pki.RoleRevoker}, nil, pki.RuleAccessLabel},
		"no labels, of an admin":            {[]pki.Role{pki.RoleRegistrar, pki.RoleAdmin}, nil, ""},
	} {
		t.Run(name, func(t *testing.T) {
			station := w.newOperator(t, c.roles...)
			station.Labels = map[string]string{"line": "3", "site": "north"}
			by := callerOf(w.enrollAs(t, station))
			device := func() ra.Identity {
				id := w.newIdentity(t)
				id.Labels = c.labels
				return id
			}
			r := w.record(t, w.create(t, device()).ID)
			r.Actor = by
			renamed := w.create(t, device())
			renamed.DNSNames = []string{"pump.fleet.example"}
			_, updated := w.RA.UpdateIdentity(t.Context(), renamed, by, w.now)
			request := by.WithRequest(w.newRequest(t, "create"))
			for what, err := range map[string]error{
				"register": w.registerBy(t, device(), by), "update": updated, "issue": w.commit(t, r),
				"create a token": w.tokenBy(t, w.create(t, device()).ID, request),
			} {
				if c.want == "" {
					must(t, err)
					continue
				}
				t.Log(what)
				mustRefuse(t, err, c.want)
			}
		})
	}
}

// labelsThatChange has a registrar change labels of identities, repeats a request for a token after the labels changed,
// and changes the labels of the registrar.
func labelsThatChange(t *testing.T, w *world) {
	north, south := map[string]string{"site": "north"}, map[string]string{"site": "south"}
	station := w.newOperator(t, pki.RoleRegistrar)
	station.Labels = north
	by := callerOf(w.enrollAs(t, station))
	id := w.newIdentity(t)
	id.Labels = north
	id = w.create(t, id)
	mustRefuse(t, w.relabelBy(t, id, south, by), pki.RuleAccessLabel)
	mustRefuse(t, w.relabelBy(t, id, nil, by), pki.RuleAccessLabel)
	must(t, w.relabelBy(t, id, map[string]string{"site": "north", "batch": "7"}, by))
	request := by.WithRequest(w.newRequest(t, "create"))
	must(t, w.tokenBy(t, id.ID, request))
	id = w.readIdentity(t, id.ID)
	must(t, w.relabelBy(t, id, south, operator))
	id = w.readIdentity(t, id.ID)
	mustRefuse(t, w.relabelBy(t, id, north, by), pki.RuleAccessLabel)
	mustRefuse(t, w.tokenBy(t, id.ID, by), pki.RuleAccessLabel)
	_, err := w.RA.CreateToken(t.Context(), w.newToken(t, id.ID, request))
	mustRefuse(t, err, pki.RuleRequestIDReused) // the first token is stale
	must(t, w.relabelBy(t, w.readIdentity(t, station.ID), south, operator))
	request = by.WithRequest(w.newRequest(t, "create"))
	must(t, w.tokenBy(t, id.ID, request))
	must(t, w.tokenBy(t, id.ID, request)) // the repeat replaces the token
	must(t, w.relabelBy(t, w.readIdentity(t, station.ID), north, operator))
	mustRefuse(t, w.tokenBy(t, id.ID, request), pki.RuleAccessLabel)
	must(t, w.relabelBy(t, w.readIdentity(t, station.ID), nil, operator))
	must(t, w.registerBy(t, w.newIdentity(t), by))
}

// rolesChange registers an operator and changes its roles. The store, the log and the replay must have them.
func rolesChange(t *testing.T, w *world) {
	wanted := w.newOperator(t, pki.RoleRegistrar, pki.RoleAuditor)
	have := w.create(t, wanted)
	mustEqual(t, "the roles", have.Roles, wanted.Roles)
	mustEqual(t, "the roles in the log", w.lastEntry(t).Facts()["roles"], "registrar,auditor")
	mustEqual(t, "the roles of a repeated registration", w.create(t, wanted).Roles, wanted.Roles)
	other := wanted
	other.Roles = pki.RolesOf(pki.RoleRegistrar)
	mustRefuse(t, w.registerBy(t, other, operator), pki.RuleIdentityExists)
	must(t, w.setRolesBy(t, wanted.ID, operator, pki.RoleRevoker))
	mustEqual(t, "the new roles in the log", w.lastEntry(t).Facts()["roles"], "revoker")
	logged := len(w.entries(t))
	must(t, w.setRolesBy(t, wanted.ID, operator, pki.RoleRevoker))
	mustEqual(t, "the number of log entries after an update without a change", len(w.entries(t)), logged)
	w.reopen(t)
	have = w.readIdentity(t, wanted.ID)
	mustEqual(t, "the roles of the reopened store", have.Roles, pki.RolesOf(pki.RoleRevoker))
	mustEqual(t, "the revision", have.Revision, 2)
	listed, _, err := w.RA.Identities(t.Context(), ra.IdentityFilter{Kinds: []pki.Kind{pki.Operator}}, w.now, pki.SPIFFEID{}, 10)
	must(t, err)
	if len(listed) != 1 || listed[0].Roles != have.Roles {
		t.Errorf("the listed operators are %+v", listed)
	}
}

// rolesAreLost takes roles from operators whose intents are written. Their certificates must not be issued, nor the
// certificates of a registrar whose labels have changed.
func rolesAreLost(t *testing.T, w *world) {
	registrar, station := w.enrollOperator(t, pki.RoleRegistrar), w.enrollOperator(t, pki.RoleRegistrar)
	first, second := w.issueRequestBy(t, callerOf(registrar)), w.issueRequestBy(t, callerOf(station))
	intent := w.writeIntent(t, first, second)
	must(t, w.setRolesBy(t, registrar.Identity, operator, pki.RoleAuditor))
	must(t, w.relabelBy(t, w.readIdentity(t, station.Identity), map[string]string{"line": "3"}, operator))
	refusals := w.commitBatch(t, intent, first, second)
	mustRefuse(t, refusals[0], pki.RuleAccess)
	mustRefuse(t, refusals[1], pki.RuleAccessLabel)
	for _, r := range []ca.Record{first, second} {
		if c := w.readCertificate(t, r.Ref); c.Delivered || c.Status.State != pki.Revoked {
			t.Errorf("an issue request without permission led to %+v", c)
		}
	}
	st, err := w.RA.IssuanceState(t.Context(), ra.IssuanceQuery{Identity: first.Identity, Caller: station.Identity})
	must(t, err)
	mustEqual(t, "the caller", st.Caller, pki.CallerIdentity{State: pki.Enrolled, Roles: pki.RolesOf(pki.RoleRegistrar), Labels: map[string]string{"line": "3"}})
	next := w.record(t, registrar.Identity) // a renewal needs no role
	next.Actor, next.Guard.Predecessor = callerOf(registrar), registrar.Ref
	must(t, w.commit(t, next))
}

// adminsKeepTheirRole has an admin suspend, retire and demote itself and another admin.
func adminsKeepTheirRole(t *testing.T, w *world) {
	alice, bob := w.enrollOperator(t, pki.RoleAdmin, pki.RoleAuditor), w.enrollOperator(t, pki.RoleAdmin)
	change := func(id pki.SPIFFEID, change revocation.Change) error {
		change.Identity, change.Actor, change.At = id, callerOf(alice), w.now
		_, err := w.Statuses.Apply(t.Context(), change)
		return err
	}
	logged := len(w.entries(t))
	mustRefuse(t, w.setRolesBy(t, alice.Identity, callerOf(alice), pki.RoleAuditor), pki.RuleAccessSelf)
	mustRefuse(t, change(alice.Identity, revocation.Change{Action: hold, State: pki.Suspended}), pki.RuleAccessSelf)
	mustRefuse(t, change(alice.Identity, revocation.Change{Action: revoke, State: pki.Retired}), pki.RuleAccessSelf)
	mustEqual(t, "the number of log entries", len(w.entries(t)), logged)
	must(t, w.setRolesBy(t, alice.Identity, callerOf(alice), pki.RoleAdmin)) // the role auditor can go
	must(t, change(bob.Identity, revocation.Change{Action: hold, State: pki.Suspended}))
	must(t, change(bob.Identity, revocation.Change{Action: unhold}))
	must(t, w.setRolesBy(t, bob.Identity, callerOf(alice), pki.RoleAuditor))
	must(t, change(bob.Identity, revocation.Change{Action: revoke, State: pki.Retired}))
	mustEqual(t, "the roles of the remaining admin", w.readIdentity(t, alice.Identity).Roles, pki.RolesOf(pki.RoleAdmin))
}

// adminsDemoteEachOther has admins demote each other at the same time. One must remain.
func adminsDemoteEachOther(t *testing.T, w *world) {
	for range 20 {
		admins := []ca.Record{w.enrollOperator(t, pki.RoleAdmin), w.enrollOperator(t, pki.RoleAdmin)}
		errs := make([]error, len(admins))
		var both sync.WaitGroup
		for i := range admins {
			both.Go(func() { errs[i] = w.setRolesBy(t, admins[1-i].Identity, callerOf(admins[i]), pki.RoleAuditor) })
		}
		both.Wait()
		remaining := 0
		for i, a := range admins {
			if w.readIdentity(t, a.Identity).Roles.Has(pki.RoleAdmin) {
				must(t, errs[i])
				remaining++
			} else {
				mustRefuse(t, errs[i], pki.RuleAccess)
			}
		}
		mustEqual(t, "the number of remaining admins", remaining, 1)
	}
}

// tokensOfAFormerRegistrar takes the role of a registrar that has created a token. The token must be revoked, unless
// the operator may still create tokens.
func tokensOfAFormerRegistrar(t *testing.T, w *world) {
	creator := w.enrollOperator(t, pki.RoleRegistrar)
	token := w.createTokenBy(t, creator)
	must(t, w.setRolesBy(t, creator.Identity, operator, pki.RoleRegistrar, pki.RoleRevoker))
	must(t, w.readToken(t, token.ID).CheckRevoked())
	w.now = w.now.Add(time.Minute)
	must(t, w.setRolesBy(t, creator.Identity, operator, pki.RoleRevoker))
	if e := w.lastEntry(t); e.Action != translog.TokenRevoked || e.Identity != creator.Identity || e.Facts()["tokens"] != "1" {
		t.Errorf("log entry %+v", e)
	}
	w.mustBeRevoked(t, token)
	must(t, w.setRolesBy(t, creator.Identity, operator, pki.RoleRegistrar))
	w.mustBeRevoked(t, token)
	w.mustBeUsable(t, w.createTokenBy(t, creator))
}

// tokensOfAFormerAdmin takes the role of an admin that has created a token for an operator. As a registrar, it could not
// create this token, so the token must be revoked.
func tokensOfAFormerAdmin(t *testing.T, w *world) {
	creator := w.enrollOperator(t, pki.RoleAdmin)
	token := w.createTokenBy(t, creator)
	w.now = w.now.Add(time.Minute)
	must(t, w.setRolesBy(t, creator.Identity, operator, pki.RoleRegistrar))
	w.mustBeRevoked(t, token)
	w.mustBeUsable(t, w.createTokenBy(t, creator))
}
