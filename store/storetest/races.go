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
		"two enrollments, one wins":             twoEnrollments,
		"many bind one token, one wins":         manyBindOneToken,
		"two renewals with different keys":      twoRenewals,
		"suspending and issuing at once":        suspendWhileIssuing,
		"registering the same identity at once": registerAtOnce,
	})
}

// together runs functions at once and waits for them.
func together(run ...func()) {
	var wait sync.WaitGroup
	for _, f := range run {
		wait.Go(f)
	}
	wait.Wait()
}

func twoEnrollments(t *testing.T, w *world) {
	id := w.identity(t)
	a, b, c := w.enrollment(t, id), w.enrollment(t, id), w.enrollment(t, id)
	verdicts := w.commitBatch(t, w.writeIntent(t, a, b), a, b) // in one batch
	must(t, verdicts[0])
	mustRefuse(t, verdicts[1], pki.RuleIdentityStale)
	mustRefuse(t, w.try(t, c), pki.RuleIdentityStale) // in the next
	if have := w.stateOf(t, id.ID); have.State != pki.Enrolled || have.Revision != id.Revision+1 {
		t.Errorf("the identity is %v in generation %d", have.State, have.Revision)
	}
}

func manyBindOneToken(t *testing.T, w *world) {
	id := w.identity(t)
	token := w.token(t, id.ID)
	const callers = 8
	records := make([]ca.Record, callers)
	answers := make([]ra.Token, callers)
	errs := make([]error, callers)
	var run []func()
	for i := range records {
		records[i] = w.enrollment(t, id)
		records[i].Guard.Token = token.ID
		run = append(run, func() {
			answers[i], errs[i] = w.RA.BindToken(context.Background(), token.ID, records[i].RequestID, records[i].KeyHash, w.now)
		})
	}
	together(run...)
	winners := 0
	for i, r := range records {
		must(t, errs[i])
		if answers[i].Request != answers[0].Request || answers[i].Key != answers[0].Key {
			t.Errorf("caller %d was told %v, caller 0 %v", i, answers[i].Request, answers[0].Request)
		}
		if answers[i].Request == r.RequestID && answers[i].Key == r.KeyHash {
			winners++
		}
	}
	if winners != 1 {
		t.Errorf("the token is bound to %d of its callers", winners)
	}
	verdicts := w.commitBatch(t, w.writeIntent(t, records...), records...)
	for i, r := range records {
		if won := answers[0].Request == r.RequestID; won != (verdicts[i] == nil) {
			t.Errorf("caller %d, to whom the token is bound: %v, got the verdict %v", i, won, verdicts[i])
		}
	}
}

func twoRenewals(t *testing.T, w *world) {
	predecessor := w.issued(t)
	a, b := w.record(t, predecessor.Identity), w.record(t, predecessor.Identity)
	a.Guard.Predecessor, b.Guard.Predecessor = predecessor.Ref, predecessor.Ref
	verdicts := w.commitBatch(t, w.writeIntent(t, a, b), a, b)
	must(t, verdicts[0])
	mustRefuse(t, verdicts[1], pki.RuleRenewalKeyConflict)
}

// suspendWhileIssuing checks that no order of commits leaves a suspended identity with a good certificate.
func suspendWhileIssuing(t *testing.T, w *world) {
	for range 20 {
		id := w.identity(t)
		r := w.enrollment(t, id)
		intent := w.writeIntent(t, r)
		var errs [2]error
		var verdicts []ca.Results
		together(func() {
			verdicts, errs[0] = w.Journal.Write(context.Background(), w.epoch, []ca.BatchCommit{{Intent: intent, Records: []ca.Record{r}, At: w.now}}, nil)
		}, func() {
			_, errs[1] = w.Orders.Apply(context.Background(), revocation.Change{
				Action: revocation.Hold, Reason: pki.CertificateHold, Identity: id.ID, State: pki.Suspended, Actor: operator, At: w.now,
			})
		})
		must(t, errs[0])
		must(t, errs[1])
		want := pki.Hold
		if refusal := verdicts[0][0].Refusal; refusal != nil {
			mustRefuse(t, refusal, pki.RuleIdentityState)
			want = pki.Revoked
		}
		if c := w.certificate(t, r.Ref); c.Status.State != want {
			t.Fatalf("the certificate is %v, want %v", c.Status.State, want)
		}
	}
}

func registerAtOnce(t *testing.T, w *world) {
	wish := w.newIdentity(t)
	other := wish
	other.Profile = "workload"
	wishes := []ra.Identity{wish, other, wish, other}
	errs := make([]error, len(wishes))
	var run []func()
	for i := range wishes {
		run = append(run, func() { _, errs[i] = w.RA.CreateIdentity(context.Background(), wishes[i], operator) })
	}
	together(run...)
	have := w.stateOf(t, wish.ID)
	for i, err := range errs {
		if wishes[i].Profile == have.Profile {
			must(t, err)
		} else {
			mustRefuse(t, err, pki.RuleIdentityExists)
		}
	}
}
