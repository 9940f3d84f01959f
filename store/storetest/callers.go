package storetest

import (
	"context"
	"fmt"
	"maps"
	"math/big"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/brevet-pki/brevet/audit"
	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra"
	"github.com/brevet-pki/brevet/revocation"
	"github.com/brevet-pki/brevet/revocation/crl"
	"github.com/brevet-pki/brevet/revocation/responder"
	"github.com/brevet-pki/brevet/store/retention"
	"github.com/brevet-pki/brevet/translog"
)

func testCallers(t *testing.T, open func(t *testing.T) Store) {
	t.Run("every method is known", everyMethodIsKnown)
	for name, write := range writes {
		t.Run(name, func(t *testing.T) { authorizes(t, open, name, write) })
	}
	each(t, open, map[string]func(t *testing.T, w *world){
		"orders of one transaction": ordersOfOneTransaction, "a renewal between orders": renewalBetweenOrders, "what needs no authorization": needsNoAuthorization,
	})
}

// writes lists the methods that make changes of an actor. Each function returns the error of the store.
var writes = map[string]func(t *testing.T, w *world, by pki.Actor) error{
	"ca.Journal.Write": func(t *testing.T, w *world, by pki.Actor) error {
		return w.try(t, w.orderBy(t, by))
	},
	renewing: func(t *testing.T, w *world, by pki.Actor) error {
		r := w.orderBy(t, by)
		if c := by.Caller(); !c.IsZero() {
			r.Identity, r.Guard.Predecessor = c.Identity, c.Certificate
		}
		return w.try(t, r)
	},
	"ca.Installations.Install": func(t *testing.T, w *world, by pki.Actor) error {
		der, _ := authority(t, fmt.Sprintf("Root %d", w.drawn))
		return w.Installations.Install(t.Context(), ca.InstalledCA{Certificate: der, At: w.now}, by)
	},
	"ca.Installations.Retire": func(t *testing.T, w *world, by pki.Actor) error {
		w.generation(t, fmt.Sprintf("Next %d", w.drawn))
		return w.Installations.Retire(t.Context(), w.generation(t, fmt.Sprintf("Newest %d", w.drawn)), w.now, by)
	},
	"ca.Installations.Remove": func(t *testing.T, w *world, by pki.Actor) error {
		der, _ := authority(t, fmt.Sprintf("Other root %d", w.draw()))
		must(t, w.Installations.Install(t.Context(), ca.InstalledCA{Certificate: der, At: w.now}, operator))
		return w.Installations.Remove(t.Context(), issuerIn(t, der), w.now, by)
	},
	"ra.Store.CreateIdentity": func(t *testing.T, w *world, by pki.Actor) error {
		_, err := w.RA.CreateIdentity(t.Context(), w.newIdentity(t), by)
		return err
	},
	"ra.Store.UpdateIdentity": func(t *testing.T, w *world, by pki.Actor) error {
		id := w.identity(t)
		id.DNSNames = []string{"pump.fleet.example"}
		_, err := w.RA.UpdateIdentity(t.Context(), id, by, w.now)
		return err
	},
	"ra.Store.CreateToken": func(t *testing.T, w *world, by pki.Actor) error {
		b := w.draw()
		id, err := pki.TokenIDFromBytes(b[:])
		must(t, err)
		_, err = w.RA.CreateToken(t.Context(), ra.Token{
			ID: id, Identity: w.identity(t).ID, Profile: "device", ExpiresAt: w.now.Add(time.Hour), CreatedBy: by, CreatedAt: w.now,
		})
		return err
	},
	"ra.Store.RevokeTokens": func(t *testing.T, w *world, by pki.Actor) error {
		_, err := w.RA.RevokeTokens(t.Context(), ra.TokenRevocation{ID: w.token(t, w.identity(t).ID).ID.String(), By: by, At: w.now})
		return err
	},
	"revocation.Store.Apply": func(t *testing.T, w *world, by pki.Actor) error {
		_, err := w.Orders.Apply(t.Context(), revocation.Change{
			Action: revocation.Revoke, Reason: pki.PrivilegeWithdrawn, Certificate: w.issued(t).Ref, Actor: by, At: w.now,
		})
		return err
	},
	"revocation.Store.CreateBulk": func(t *testing.T, w *world, by pki.Actor) error {
		_, _, err := w.Revocation.CreateBulk(t.Context(), revocation.BulkRequest{
			Selection: pki.Selection{Profile: "other"}, Action: revocation.Revoke, Reason: pki.PrivilegeWithdrawn, Actor: by, At: w.now,
		})
		return err
	},
	"crl.Store.PutCRLs": func(t *testing.T, w *world, by pki.Actor) error {
		w.drawn++
		return w.CRLs.PutCRLs(t.Context(), []crl.CRL{{
			Issuer: issuerA, Number: new(big.Int).SetUint64(w.drawn), ThisUpdate: w.now, NextUpdate: w.now.Add(time.Hour),
		}}, by, w.now)
	},
}

// unauthorized maps the methods that write without an authorization to the reason.
var unauthorized = map[string]string{
	"ca.Journal.Begin":            "the system itself",
	"ra.Store.BindToken":          "the token is the proof",
	"audit.Store.Refused":         "an entry about a refusal",
	"retention.Store.Advance":     "the system itself",
	"retention.Store.Expire":      "the system itself",
	"crl.Store.Compact":           "the system itself",
	"crl.Store.TakeNumber":        "the system itself",
	"crl.Store.PutPoints":         "the system itself",
	"revocation.Store.NotifyBulk": "a step of a bulk revocation that is on record",
	"revocation.Store.ApplyBulk":  "a step of a bulk revocation that is on record",
	"translog.Store.Sequence":     "the system itself",
}

// reads lists the methods that change nothing.
var reads = []string{
	"ca.Journal.State", "ca.Installations.Installed",
	"ra.Store.Identity", "ra.Store.Identities", "ra.Store.Token", "ra.Store.Tokens", "ra.Store.Certificate", "ra.Store.CertificateBySerial",
	"ra.Store.IssuanceState", "ra.Store.Certificates", "ra.Store.Unexpired", "ra.Store.Renewed", "retention.Store.Waiting", "retention.Store.Census",
	"crl.Store.View", "crl.Store.CRLs", "crl.Store.Points", "revocation.Store.CountBulk",
	"revocation.Store.BulkRevocation", "revocation.Store.BulkRevocations", "revocation.Store.OpenBulk", "responder.Feed.Snapshot", "responder.Feed.Changes",
	"translog.Store.Epoch", "translog.Store.Head", "translog.Store.Entries", "translog.Store.Written",
}

// everyMethodIsKnown fails if a method of the store is in none of the lists, or if a list has a method that does not exist.
func everyMethodIsKnown(t *testing.T) {
	var have []string
	for _, view := range []reflect.Type{
		reflect.TypeFor[ca.Journal](), reflect.TypeFor[ca.Installations](), reflect.TypeFor[ra.Store](), reflect.TypeFor[audit.Store](), reflect.TypeFor[retention.Store](),
		reflect.TypeFor[revocation.Store](), reflect.TypeFor[crl.Store](), reflect.TypeFor[responder.Feed](), reflect.TypeFor[translog.Store](),
	} {
		for i := range view.NumMethod() {
			have = append(have, view.String()+"."+view.Method(i).Name)
		}
	}
	known := slices.Concat(slices.Collect(maps.Keys(writes)), slices.Collect(maps.Keys(unauthorized)), reads)
	known = slices.DeleteFunc(known, func(name string) bool { return name == renewing })
	slices.Sort(have)
	slices.Sort(known)
	mustEqual(t, "the list of methods", known, have)
}

// callers returns callers in every state, with the rule that refuses their changes. The rule is empty if they are allowed.
var callers = map[string]struct {
	make func(t *testing.T, w *world) pki.Actor
	want pki.Rule
}{
	"good":            {func(t *testing.T, w *world) pki.Actor { return callerOf(w.issued(t)) }, ""},
	"system":          {func(*testing.T, *world) pki.Actor { return pki.ActorSystem("server") }, ""},
	"command":         {func(*testing.T, *world) pki.Actor { return pki.ActorCommand("ceremony install") }, ""},
	"nobody":          {func(*testing.T, *world) pki.Actor { return pki.Actor{} }, pki.RuleUnauthenticated},
	"only named":      {func(t *testing.T, w *world) pki.Actor { return callerOf(w.issued(t)).Named() }, pki.RuleUnauthenticated},
	"not on record":   {func(t *testing.T, w *world) pki.Actor { return callerOf(w.record(t, w.identity(t).ID)) }, pki.RuleCertificateUnknown},
	"another's":       {func(t *testing.T, w *world) pki.Actor { return pki.ActorCaller(w.issued(t).Identity, w.issued(t).Ref) }, pki.RuleCertificateUnknown},
	"revoked":         {changed(revocation.Change{Action: revocation.Revoke, Reason: pki.PrivilegeWithdrawn}, false), pki.RuleRevoked},
	"held":            {changed(revocation.Change{Action: revocation.Hold}, false), pki.RuleRevoked},
	"suspended":       {changed(revocation.Change{Action: revocation.Hold, State: pki.Suspended}, true), pki.RuleRevoked},
	"retired":         {changed(revocation.Change{Action: revocation.Revoke, Reason: pki.CessationOfOperation, State: pki.Retired}, true), pki.RuleRevoked},
	"superseded":      {superseded, pki.RuleRevoked},
	"bulk revoked":    {bulkRevoked, pki.RuleRevoked},
	"expired":         {expired, pki.RuleExpired},
	"not yet valid":   {notYetValid, pki.RuleExpired},
	"suspended alone": {withIdentity(revocation.Change{Action: revocation.Hold, State: pki.Suspended}), pki.RuleIdentityState},
	"retired alone":   {withIdentity(revocation.Change{Action: revocation.Revoke, Reason: pki.CessationOfOperation, State: pki.Retired}), pki.RuleIdentityState},
}

// renewing commits a renewal. For some predecessors its guard refuses with a more specific rule than the authorization.
const renewing = "ca.Journal.Write, a renewal"

var ofRenewals = map[string]pki.Rule{"not on record": pki.RuleRenewalUnknown, "another's": pki.RuleRenewalUnknown, "superseded": pki.RuleRenewalKeyConflict}

func callerOf(r ca.Record) pki.Actor { return pki.ActorCaller(r.Identity, r.Ref) }

// changed returns a caller whose certificate or identity was changed.
func changed(o revocation.Change, identity bool) func(t *testing.T, w *world) pki.Actor {
	return func(t *testing.T, w *world) pki.Actor {
		t.Helper()
		r, o := w.issued(t), o
		if identity {
			o.Identity = r.Identity
		} else {
			o.Certificate = r.Ref
		}
		w.apply(t, o)
		return callerOf(r)
	}
}

// withIdentity returns a caller whose certificate is good, but whose identity is not enrolled.
func withIdentity(o revocation.Change) func(t *testing.T, w *world) pki.Actor {
	return func(t *testing.T, w *world) pki.Actor {
		t.Helper()
		o := o
		o.Identity = w.issued(t).Identity
		w.apply(t, o)
		return callerOf(w.issue(t, w.record(t, o.Identity)))
	}
}

func superseded(t *testing.T, w *world) pki.Actor {
	t.Helper()
	r := w.issued(t)
	next := w.record(t, r.Identity)
	next.Guard.Predecessor, next.Guard.Supersedes = r.Ref, true
	w.issue(t, next)
	return callerOf(r)
}

func bulkRevoked(t *testing.T, w *world) pki.Actor {
	t.Helper()
	r := w.issued(t)
	_, _, err := w.Revocation.CreateBulk(t.Context(), revocation.BulkRequest{
		Selection: pki.Selection{Issuer: issuerA}, Action: revocation.Revoke, Reason: pki.PrivilegeWithdrawn, Actor: operator, At: w.now,
	})
	must(t, err)
	return callerOf(r)
}

func expired(t *testing.T, w *world) pki.Actor {
	t.Helper()
	r := w.issued(t)
	w.now = r.NotAfter.Add(time.Second)
	return callerOf(r)
}

func notYetValid(t *testing.T, w *world) pki.Actor {
	t.Helper()
	r := w.issued(t)
	w.now = r.NotBefore.Add(-time.Second)
	return callerOf(r)
}

// authorizes makes every change as every caller, and checks that a refused caller changed nothing.
func authorizes(t *testing.T, open func(t *testing.T) Store, name string, write func(t *testing.T, w *world, by pki.Actor) error) {
	w := newWorld(t, open(t))
	for state, caller := range callers {
		t.Run(state, func(t *testing.T) {
			w.now = epochStart
			by := caller.make(t, w)
			want := caller.want
			if rule, ok := ofRenewals[state]; ok && name == renewing {
				want = rule
			}
			err := write(t, w, by)
			if want == "" {
				must(t, err)
				return
			}
			mustRefuse(t, err, want)
			for _, e := range w.entries(t) {
				if e.Actor == by.Named() && e.Action != translog.CertificateAbandoned {
					t.Errorf("the refused caller has written %+v", e)
				}
			}
		})
	}
}

// orderBy returns the record of an operator's issue request for another identity.
func (w *world) orderBy(t *testing.T, by pki.Actor) ca.Record {
	t.Helper()
	r := w.record(t, w.identity(t).ID)
	r.Actor = by
	return r
}

// ordersOfOneTransaction commits records of a good caller and of a revoked caller in one batch. Only the latter is refused.
func ordersOfOneTransaction(t *testing.T, w *world) {
	good, revoked := callers["good"].make(t, w), callers["revoked"].make(t, w)
	first, second, third := w.orderBy(t, good), w.orderBy(t, revoked), w.orderBy(t, good)
	refusals := w.commitBatch(t, w.writeIntent(t, first, second, third), first, second, third)
	must(t, refusals[0])
	mustRefuse(t, refusals[1], pki.RuleRevoked)
	must(t, refusals[2])
	if c := w.certificate(t, second.Ref); c.Delivered || c.Status.State != pki.Revoked {
		t.Errorf("the order of a revoked caller became %+v", c)
	}
}

// renewalBetweenOrders commits records of a caller before and after a renewal that revokes the caller's certificate.
func renewalBetweenOrders(t *testing.T, w *world) {
	r := w.issued(t)
	before, renewal, after := w.orderBy(t, callerOf(r)), w.superseding(t, r, w.key()), w.orderBy(t, callerOf(r))
	refusals := w.commitBatch(t, w.writeIntent(t, before, renewal, after), before, renewal, after)
	must(t, refusals[0])
	must(t, refusals[1])
	mustRefuse(t, refusals[2], pki.RuleRevoked)
}

// needsNoAuthorization lets a caller revoke itself and others with a bulk revocation. The remaining steps must be applied, and
// the refusals of the caller must be logged.
func needsNoAuthorization(t *testing.T, w *world) {
	ctx := context.Background()
	r := w.issued(t)
	set, _, err := w.Revocation.CreateBulk(ctx, revocation.BulkRequest{
		Selection: pki.Selection{Issuer: issuerA}, Action: revocation.Revoke, Reason: pki.PrivilegeWithdrawn, Actor: callerOf(r), At: w.now,
	})
	must(t, err)
	must(t, w.Audit.Refused(ctx, callerOf(r), r.Identity, pki.Refuse(pki.RuleRevoked, "enroll", "revoked"), w.now))
	_, err = w.Revocation.NotifyBulk(ctx, set.ID, pki.StatusObserverFunc(func([]pki.StatusChange) {}))
	must(t, err)
	for !set.Done {
		_, set, err = w.Revocation.ApplyBulk(ctx, set.ID, 1, w.now)
		must(t, err)
	}
	if e := w.lastEntry(t); e.Actor != callerOf(r).Named() || len(e.Changes) != 1 {
		t.Errorf("the last step is logged as %+v", e)
	}
	w.reopen(t)
	mustEqual(t, "the state of the caller's certificate", w.certificate(t, r.Ref).Status.State, pki.Revoked)
}
