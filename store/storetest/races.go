package storetest

import (
	"context"
	"sync"
	"testing"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra"
	"github.com/brevet-pki/brevet/revocation"
)

func testRaces(t *testing.T, open func(t *testing.T) Store) {
	each(t, open, map[string]func(t *testing.T, w *world){
		"two enrollments":                          twoEnrollments,
		"many bindings of one token":               manyBindOneToken,
		"two renewals with different keys":         twoRenewals,
		"concurrent suspension and issuance":       suspendWhileIssuing,
		"concurrent registrations of one identity": registerAtOnce,
	})
}

// together runs functions concurrently and waits for them.
func together(run ...func()) {
	var wait sync.WaitGroup
	for _, f := range run {
		wait.Go(f)
	}
	wait.Wait()
}

func twoEnrollments(t *testing.T, w *world) {
	id := w.register(t)
	a, b, c := w.enrollment(t, id), w.enrollment(t, id), w.enrollment(t, id)
	refusals := w.commitBatch(t, w.writeIntent(t, a, b), a, b) // in one batch
	must(t, refusals[0])
	mustRefuse(t, refusals[1], pki.RuleIdentityStale)
	mustRefuse(t, w.commit(t, c), pki.RuleIdentityStale) // in the next
	if have := w.readIdentity(t, id.ID); have.State != pki.Enrolled || have.Revision != id.Revision+1 {
		t.Errorf("the identity is %v in revision %d", have.State, have.Revision)
	}
}

func manyBindOneToken(t *testing.T, w *world) {
	id := w.register(t)
	token := w.createToken(t, id.ID)
	const callers = 8
	records := make([]ca.Record, callers)
	bound := make([]ra.Token, callers)
	errs := make([]error, callers)
	var run []func()
	for i := range records {
		records[i] = w.enrollment(t, id)
		records[i].Guard.Token = token.ID
		run = append(run, func() {
			bound[i], errs[i] = w.RA.BindToken(context.Background(), token.ID, ra.Binding{Request: records[i].RequestID, Key: records[i].KeyHash, At: w.now})
		})
	}
	together(run...)
	winners := 0
	for i, r := range records {
		must(t, errs[i])
		if bound[i].Request != bound[0].Request || bound[i].Key != bound[0].Key {
			t.Errorf("caller %d got the request %v, caller 0 %v", i, bound[i].Request, bound[0].Request)
		}
		if bound[i].Request == r.RequestID && bound[i].Key == r.KeyHash {
			winners++
		}
	}
	if winners != 1 {
		t.Errorf("the token is bound to %d of its callers", winners)
	}
	refusals := w.commitBatch(t, w.writeIntent(t, records...), records...)
	for i, r := range records {
		if won := bound[0].Request == r.RequestID; won != (refusals[i] == nil) {
			t.Errorf("caller %d, with the token bound to it: %v, got the refusal %v", i, won, refusals[i])
		}
	}
}

func twoRenewals(t *testing.T, w *world) {
	predecessor := w.enrollNew(t)
	a, b := w.record(t, predecessor.Identity), w.record(t, predecessor.Identity)
	a.Guard.Predecessor, b.Guard.Predecessor = predecessor.Ref, predecessor.Ref
	refusals := w.commitBatch(t, w.writeIntent(t, a, b), a, b)
	must(t, refusals[0])
	mustRefuse(t, refusals[1], pki.RuleRenewalKeyConflict)
}

// suspendWhileIssuing suspends an identity while it is being enrolled. Whichever commit is first, the identity must not
// have a good certificate.
func suspendWhileIssuing(t *testing.T, w *world) {
	for range 20 {
		id := w.register(t)
		r := w.enrollment(t, id)
		intent := w.writeIntent(t, r)
		var errs [2]error
		var results []ca.Results
		together(func() {
			results, errs[0] = w.Journal.Write(context.Background(), w.epoch, []ca.BatchCommit{{Intent: intent, Records: []ca.Record{r}, At: w.now}}, nil)
		}, func() {
			_, errs[1] = w.Statuses.Apply(context.Background(), revocation.Change{
				Action: revocation.Hold, Reason: pki.CertificateHold, Identity: id.ID, State: pki.Suspended, Actor: operator, At: w.now,
			})
		})
		must(t, errs[0])
		must(t, errs[1])
		want := pki.Hold
		if refusal := results[0][0].Refusal; refusal != nil {
			mustRefuse(t, refusal, pki.RuleIdentityState)
			want = pki.Revoked
		}
		if c := w.readCertificate(t, r.Ref); c.Status.State != want {
			t.Fatalf("the certificate is %v, want %v", c.Status.State, want)
		}
	}
}

func registerAtOnce(t *testing.T, w *world) {
	wanted := w.newIdentity(t)
	other := wanted
	other.Profile = "workload"
	wantedes := []ra.Identity{wanted, other, wanted, other}
	errs := make([]error, len(wantedes))
	var run []func()
	for i := range wantedes {
		run = append(run, func() {
			_, errs[i] = w.RA.CreateIdentity(context.Background(), ra.Registration{Identity: wantedes[i]}, operator)
		})
	}
	together(run...)
	have := w.readIdentity(t, wanted.ID)
	for i, err := range errs {
		if wantedes[i].Profile == have.Profile {
			must(t, err)
		} else {
			mustRefuse(t, err, pki.RuleIdentityExists)
		}
	}
}
