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
	"github.com/brevet-pki/brevet/revocation/rotation"
	"github.com/brevet-pki/brevet/store/retention"
	"github.com/brevet-pki/brevet/translog"
)

func testCallers(t *testing.T, open func(t *testing.T) Store) {
	t.Run("every method is listed", everyMethodIsListed)
	for name, write := range writes {
		t.Run(name, func(t *testing.T) { testMethodAsEachCaller(t, open, name, write) })
	}
	each(t, open, map[string]func(t *testing.T, w *world){
		"two callers in one batch": twoCallersInOneBatch, "a renewal between issue requests": renewalBetweenIssueRequests, "steps of bulk revocations": bulkStepsNeedNoAuthorization,
	})
}

// writes contains a function for each method that makes a change on behalf of a caller. The function returns the error
// of that method.
var writes = map[string]func(t *testing.T, w *world, by pki.Actor) error{
	"ca.Journal.Write": func(t *testing.T, w *world, by pki.Actor) error {
		return w.commit(t, w.issueRequestBy(t, by))
	},
	renewalWrite: func(t *testing.T, w *world, by pki.Actor) error {
		r := w.issueRequestBy(t, by)
		if c := by.Caller(); !c.IsZero() {
			r.Identity, r.Guard.Predecessor = c.Identity, c.Certificate
		}
		return w.commit(t, r)
	},
	"ca.Installations.Install": func(t *testing.T, w *world, by pki.Actor) error {
		der, _ := newCA(t, fmt.Sprintf("Root %d", w.uniqueCount))
		return w.Installations.Install(t.Context(), ca.InstalledCA{Certificate: der, At: w.now}, by)
	},
	"ca.Installations.Retire": func(t *testing.T, w *world, by pki.Actor) error {
		w.installCA(t, fmt.Sprintf("Next %d", w.uniqueCount))
		return w.retire(t.Context(), w.installCA(t, fmt.Sprintf("Newest %d", w.uniqueCount)), w.now, by)
	},
	"ca.Installations.Remove": func(t *testing.T, w *world, by pki.Actor) error {
		der, _ := newCA(t, fmt.Sprintf("Other root %d", w.unique()))
		must(t, w.Installations.Install(t.Context(), ca.InstalledCA{Certificate: der, At: w.now}, operator))
		return w.Installations.Remove(t.Context(), issuerOf(t, der), w.now, by)
	},
	"ca.CrossCertificates.InstallCross": func(t *testing.T, w *world, by pki.Actor) error {
		return w.Cross.InstallCross(t.Context(), ca.CrossCertificate{Certificate: w.installCrossRoots(t).cross.Raw, At: w.now}, by)
	},
	"ra.Store.CreateIdentity": func(t *testing.T, w *world, by pki.Actor) error {
		_, err := w.RA.CreateIdentity(t.Context(), ra.Registration{Identity: w.newIdentity(t)}, by)
		return err
	},
	"ra.Store.UpdateIdentity": func(t *testing.T, w *world, by pki.Actor) error {
		id := w.register(t)
		id.DNSNames = []string{"pump.fleet.example"}
		_, err := w.RA.UpdateIdentity(t.Context(), id, by, w.now)
		return err
	},
	"ra.Store.CreateToken": func(t *testing.T, w *world, by pki.Actor) error {
		b := w.unique()
		id, err := pki.TokenIDFromBytes(b[:])
		must(t, err)
		_, err = w.RA.CreateToken(t.Context(), ra.Token{
			ID: id, Identity: w.register(t).ID, Profile: "device", ExpiresAt: w.now.Add(time.Hour), CreatedBy: by, CreatedAt: w.now,
		})
		return err
	},
	"ra.Store.RevokeTokens": func(t *testing.T, w *world, by pki.Actor) error {
		_, err := w.RA.RevokeTokens(t.Context(), ra.TokenRevocation{ID: w.createToken(t, w.register(t).ID).ID.String(), By: by, At: w.now})
		return err
	},
	"revocation.Store.Apply": func(t *testing.T, w *world, by pki.Actor) error {
		_, err := w.Statuses.Apply(t.Context(), revocation.Change{
			Action: revocation.Revoke, Reason: pki.PrivilegeWithdrawn, Certificate: w.enrollNew(t).Ref, Actor: by, At: w.now,
		})
		return err
	},
	"revocation.Store.CreateBulk": func(t *testing.T, w *world, by pki.Actor) error {
		_, _, err := w.Revocation.CreateBulk(t.Context(), revocation.BulkRequest{
			Selection: pki.Selection{Profile: "other"}, Action: revocation.Revoke, Reason: pki.PrivilegeWithdrawn, Actor: by, At: w.now,
		})
		return err
	},
	"rotation.Store.StartRotation": func(t *testing.T, w *world, by pki.Actor) error {
		r, err := w.Rotations.StartRotation(t.Context(), rotation.Request{
			Selection: pki.Selection{Identity: w.enrollNew(t).Identity}, Over: time.Hour, Confirm: 1, Actor: by, At: w.now,
		})
		if err == nil {
			w.endRotation(t, r.ID, rotation.Progress{})
		}
		return err
	},
	"rotation.Store.EndRotation": func(t *testing.T, w *world, by pki.Actor) error {
		r := w.startRotation(t, pki.Selection{Identity: w.enrollNew(t).Identity})
		_, err := w.Rotations.EndRotation(t.Context(), rotation.End{ID: r.ID, Stopped: true, Actor: by, At: w.now})
		if err != nil {
			w.endRotation(t, r.ID, rotation.Progress{})
		}
		return err
	},
	"crl.Store.PutCRLs": func(t *testing.T, w *world, by pki.Actor) error {
		w.uniqueCount++
		return w.CRLs.PutCRLs(t.Context(), []crl.CRL{{
			Issuer: issuerA, Number: new(big.Int).SetUint64(w.uniqueCount), ThisUpdate: w.now, NextUpdate: w.now.Add(time.Hour),
		}}, by, w.now)
	},
}

// unauthorized maps each method that writes without authorizing a caller to the reason.
var unauthorized = map[string]string{
	"ca.Journal.Begin":            "the server itself calls it",
	"ca.Journal.BeginAgain":       "the server itself calls it",
	"ca.Journal.Renew":            "the server itself calls it",
	"ca.Journal.TakeOver":         "the server itself calls it",
	"ra.Store.BindToken":          "the caller presents a token",
	"audit.Store.Refused":         "it records a refusal",
	"retention.Store.Advance":     "the server itself calls it",
	"retention.Store.Expire":      "the server itself calls it",
	"crl.Store.Compact":           "the server itself calls it",
	"crl.Store.TakeNumber":        "the server itself calls it",
	"crl.Store.PutPoints":         "the server itself calls it",
	"revocation.Store.NotifyBulk": "a step of a bulk revocation that is on record",
	"revocation.Store.ApplyBulk":  "a step of a bulk revocation that is on record",
	"translog.Store.Sequence":     "the server itself calls it",
	"translog.Store.Remove":       "the server itself calls it",
	"translog.Store.Archived":     "the server itself calls it",
}

// reads lists the methods that change nothing.
var reads = []string{
	"ca.Journal.Applied", "ca.Installations.Installed", "ca.CrossCertificates.CrossCertificates",
	"ra.Store.Identity", "ra.Store.Identities", "ra.Store.Token", "ra.Store.Tokens", "ra.Store.Certificate", "ra.Store.CertificateBySerial",
	"ra.Store.IssuanceState", "ra.Store.Certificates", "ra.Store.Renewed", "retention.Store.Waiting", "retention.Store.Census",
	"crl.Store.View", "crl.Store.CRLs", "crl.Store.Points", "revocation.Store.CountBulk",
	"revocation.Store.BulkRevocation", "revocation.Store.BulkRevocations", "revocation.Store.OpenBulk", "responder.Feed.Snapshot", "responder.Feed.Changes", "responder.Feed.Written",
	"rotation.Store.CountRotation", "rotation.Store.Rotation", "rotation.Store.Rotations", "rotation.Store.OpenRotations",
	"rotation.Store.RotationMembers", "rotation.Store.RotationProgress",
	"translog.Store.Epoch", "translog.Store.Head", "translog.Store.Entries", "translog.Store.Written", "translog.Store.Checkpoint",
}

// everyMethodIsListed fails if a method of the store is in none of the lists, or if a list has a method that does not
// exist.
func everyMethodIsListed(t *testing.T) {
	var have []string
	for _, view := range []reflect.Type{
		reflect.TypeFor[ca.Journal](), reflect.TypeFor[ca.Installations](), reflect.TypeFor[ca.CrossCertificates](), reflect.TypeFor[ra.Store](), reflect.TypeFor[audit.Store](), reflect.TypeFor[retention.Store](),
		reflect.TypeFor[revocation.Store](), reflect.TypeFor[rotation.Store](), reflect.TypeFor[crl.Store](), reflect.TypeFor[responder.Feed](), reflect.TypeFor[translog.Store](),
	} {
		for i := range view.NumMethod() {
			have = append(have, view.String()+"."+view.Method(i).Name)
		}
	}
	known := slices.Concat(slices.Collect(maps.Keys(writes)), slices.Collect(maps.Keys(unauthorized)), reads)
	known = slices.DeleteFunc(known, func(name string) bool { return name == renewalWrite })
	slices.Sort(have)
	slices.Sort(known)
	mustEqual(t, "the list of methods", known, have)
}

// callers contains callers in every state, with the rule that refuses their changes. The rule is empty if their changes
// are allowed.
var callers = map[string]struct {
	make func(t *testing.T, w *world) pki.Actor
	want pki.Rule
}{
	"good":           {func(t *testing.T, w *world) pki.Actor { return callerOf(w.enrollOperator(t, pki.RoleAdmin)) }, ""},
	"system":         {func(*testing.T, *world) pki.Actor { return pki.ActorSystem("server") }, ""},
	"command":        {func(*testing.T, *world) pki.Actor { return pki.ActorCommand("ceremony install") }, ""},
	"no actor":       {func(*testing.T, *world) pki.Actor { return pki.Actor{} }, pki.RuleUnauthenticated},
	"no certificate": {func(t *testing.T, w *world) pki.Actor { return callerOf(w.enrollOperator(t, pki.RoleAdmin)).Named() }, pki.RuleUnauthenticated},
	"unknown certificate": {func(t *testing.T, w *world) pki.Actor {
		return callerOf(w.record(t, w.create(t, w.newOperator(t, pki.RoleAdmin)).ID))
	}, pki.RuleCertificateUnknown},
	"certificate of another": {func(t *testing.T, w *world) pki.Actor {
		return pki.ActorCaller(w.enrollOperator(t, pki.RoleAdmin).Identity, w.enrollOperator(t, pki.RoleAdmin).Ref)
	}, pki.RuleCertificateUnknown},
	"revoked":                     {afterChange(revocation.Change{Action: revocation.Revoke, Reason: pki.PrivilegeWithdrawn}, false), pki.RuleRevoked},
	"held":                        {afterChange(revocation.Change{Action: revocation.Hold}, false), pki.RuleRevoked},
	"suspended":                   {afterChange(revocation.Change{Action: revocation.Hold, State: pki.Suspended}, true), pki.RuleRevoked},
	"retired":                     {afterChange(revocation.Change{Action: revocation.Revoke, Reason: pki.CessationOfOperation, State: pki.Retired}, true), pki.RuleRevoked},
	"superseded":                  {superseded, pki.RuleRevoked},
	"bulk revoked":                {bulkRevoked, pki.RuleRevoked},
	"expired":                     {expired, pki.RuleExpired},
	"not yet valid":               {notYetValid, pki.RuleExpired},
	"suspended, certificate good": {goodCertificateAfter(revocation.Change{Action: revocation.Hold, State: pki.Suspended}), pki.RuleIdentityState},
	"retired, certificate good":   {goodCertificateAfter(revocation.Change{Action: revocation.Revoke, Reason: pki.CessationOfOperation, State: pki.Retired}), pki.RuleIdentityState},
}

// renewalWrite names the function in writes that commits a renewal. For some predecessors its guard refuses with a more
// specific rule than the authorization. renewalRules contains these rules by the state of the caller.
const renewalWrite = "ca.Journal.Write, a renewal"

var renewalRules = map[string]pki.Rule{"unknown certificate": pki.RuleRenewalUnknown, "certificate of another": pki.RuleRenewalUnknown, "superseded": pki.RuleRenewalKeyConflict}

func callerOf(r ca.Record) pki.Actor { return pki.ActorCaller(r.Identity, r.Ref) }

// afterChange returns a caller whose certificate, or whose identity, was changed.
func afterChange(change revocation.Change, identity bool) func(t *testing.T, w *world) pki.Actor {
	return func(t *testing.T, w *world) pki.Actor {
		t.Helper()
		r, change := w.enrollOperator(t, pki.RoleAdmin), change
		if identity {
			change.Identity = r.Identity
		} else {
			change.Certificate = r.Ref
		}
		w.apply(t, change)
		return callerOf(r)
	}
}

// goodCertificateAfter returns a caller whose identity was changed, with a certificate that was issued after the
// change.
func goodCertificateAfter(change revocation.Change) func(t *testing.T, w *world) pki.Actor {
	return func(t *testing.T, w *world) pki.Actor {
		t.Helper()
		change := change
		change.Identity = w.enrollOperator(t, pki.RoleAdmin).Identity
		w.apply(t, change)
		return callerOf(w.issue(t, w.record(t, change.Identity)))
	}
}

func superseded(t *testing.T, w *world) pki.Actor {
	t.Helper()
	r := w.enrollOperator(t, pki.RoleAdmin)
	next := w.record(t, r.Identity)
	next.Guard.Predecessor, next.Guard.Supersedes = r.Ref, true
	w.issue(t, next)
	return callerOf(r)
}

func bulkRevoked(t *testing.T, w *world) pki.Actor {
	t.Helper()
	r := w.enrollOperator(t, pki.RoleAdmin)
	_, _, err := w.Revocation.CreateBulk(t.Context(), revocation.BulkRequest{
		Selection: pki.Selection{Issuer: issuerA}, Action: revocation.Revoke, Reason: pki.PrivilegeWithdrawn, Actor: operator, At: w.now,
	})
	must(t, err)
	return callerOf(r)
}

func expired(t *testing.T, w *world) pki.Actor {
	t.Helper()
	r := w.enrollOperator(t, pki.RoleAdmin)
	w.now = r.NotAfter.Add(time.Second)
	return callerOf(r)
}

func notYetValid(t *testing.T, w *world) pki.Actor {
	t.Helper()
	r := w.enrollOperator(t, pki.RoleAdmin)
	w.now = r.NotBefore.Add(-time.Second)
	return callerOf(r)
}

// testMethodAsEachCaller calls one method as every caller, and checks that a refused caller changed nothing.
func testMethodAsEachCaller(t *testing.T, open func(t *testing.T) Store, name string, write func(t *testing.T, w *world, by pki.Actor) error) {
	w := newWorld(t, open(t))
	for state, caller := range callers {
		t.Run(state, func(t *testing.T) {
			w.now = epochStart
			by := caller.make(t, w)
			want := caller.want
			if rule, ok := renewalRules[state]; ok && name == renewalWrite {
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

// issueRequestBy returns the record of an operator's issue request for another identity.
func (w *world) issueRequestBy(t *testing.T, by pki.Actor) ca.Record {
	t.Helper()
	r := w.record(t, w.register(t).ID)
	r.Actor = by
	return r
}

// twoCallersInOneBatch commits records of a good caller and of a revoked caller in one batch. Only those of the revoked
// caller must be refused.
func twoCallersInOneBatch(t *testing.T, w *world) {
	good, revoked := callers["good"].make(t, w), callers["revoked"].make(t, w)
	first, second, third := w.issueRequestBy(t, good), w.issueRequestBy(t, revoked), w.issueRequestBy(t, good)
	refusals := w.commitBatch(t, w.writeIntent(t, first, second, third), first, second, third)
	must(t, refusals[0])
	mustRefuse(t, refusals[1], pki.RuleRevoked)
	must(t, refusals[2])
	if c := w.readCertificate(t, second.Ref); c.Delivered || c.Status.State != pki.Revoked {
		t.Errorf("the issue request of a revoked caller led to %+v", c)
	}
}

// renewalBetweenIssueRequests commits records of a caller before and after a renewal that revokes the caller's
// certificate.
func renewalBetweenIssueRequests(t *testing.T, w *world) {
	r := w.enrollOperator(t, pki.RoleAdmin)
	before, renewal, after := w.issueRequestBy(t, callerOf(r)), w.superseding(t, r, w.key()), w.issueRequestBy(t, callerOf(r))
	refusals := w.commitBatch(t, w.writeIntent(t, before, renewal, after), before, renewal, after)
	must(t, refusals[0])
	must(t, refusals[1])
	mustRefuse(t, refusals[2], pki.RuleRevoked)
}

// bulkStepsNeedNoAuthorization has a caller create a bulk revocation that revokes the caller, too. All of its steps
// must be applied, and the refusal of the caller must be logged.
func bulkStepsNeedNoAuthorization(t *testing.T, w *world) {
	ctx := context.Background()
	r := w.enrollOperator(t, pki.RoleAdmin)
	bulk, _, err := w.Revocation.CreateBulk(ctx, revocation.BulkRequest{
		Selection: pki.Selection{Issuer: issuerA}, Action: revocation.Revoke, Reason: pki.PrivilegeWithdrawn, Actor: callerOf(r), At: w.now,
	})
	must(t, err)
	must(t, w.Audit.Refused(ctx, audit.Refusal{
		By: callerOf(r), Identity: r.Identity, Why: pki.Refuse(pki.RuleRevoked, "enroll", "revoked"), At: w.now,
	}))
	_, err = w.Revocation.NotifyBulk(ctx, bulk.ID, pki.StatusObserverFunc(func([]pki.StatusChange) {}))
	must(t, err)
	for !bulk.Done {
		_, bulk, err = w.Revocation.ApplyBulk(ctx, bulk.ID, 1, w.now)
		must(t, err)
	}
	if e := w.lastEntry(t); e.Actor != callerOf(r).Named() || len(e.Changes) != 1 {
		t.Errorf("the last step is logged as %+v", e)
	}
	w.reopen(t)
	mustEqual(t, "the state of the caller's certificate", w.readCertificate(t, r.Ref).Status.State, pki.Revoked)
}
