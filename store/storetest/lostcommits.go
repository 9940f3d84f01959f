package storetest

import (
	"context"
	"testing"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra"
	"github.com/brevet-pki/brevet/revocation"
)

// testLostCommits makes a COMMIT fail after or before the transaction was applied. The store must show which it was,
// and the caller must be able to repeat the change.
func testLostCommits(t *testing.T, open func(t *testing.T) Store) {
	tests := map[string]func(t *testing.T, w *world){"a canceled context": canceledContext}
	for what, applies := range map[string]bool{"applied": true, "not applied": false} {
		tests["batch commit, "+what] = func(t *testing.T, w *world) { lostBatchCommit(t, w, applies) }
		tests["intent, "+what] = func(t *testing.T, w *world) { lostIntent(t, w, applies) }
		tests["change, "+what] = func(t *testing.T, w *world) { lostChange(t, w, applies) }
		tests["CRL number, "+what] = func(t *testing.T, w *world) { lostCRLNumber(t, w, applies) }
		tests["sequencing, "+what] = func(t *testing.T, w *world) { lostSequencing(t, w, applies) }
		tests["evidence, "+what] = func(t *testing.T, w *world) { lostEvidence(t, w, applies) }
		tests["policy, "+what] = func(t *testing.T, w *world) { lostPolicy(t, w, applies) }
		tests["rotation, "+what] = func(t *testing.T, w *world) { lostRotation(t, w, applies) }
		tests["token binding, "+what] = func(t *testing.T, w *world) { lostTokenBinding(t, w, applies) }
	}
	each(t, open, tests)
}

func (w *world) mustBeApplied(t *testing.T, batch ca.BatchID, want bool) {
	t.Helper()
	applied, err := w.Journal.Applied(context.Background(), w.epoch, batch)
	must(t, err)
	mustEqual(t, "whether the newest write recorded batch "+batch.String(), applied, want)
}

func lostBatchCommit(t *testing.T, w *world, applies bool) {
	id := w.register(t)
	good, refused := w.enrollment(t, id), w.enrollment(t, id)
	intent := w.writeIntent(t, good, refused)
	commits := []ca.BatchCommit{{Intent: intent, Records: []ca.Record{good, refused}, At: w.now}}
	next := intentOf(w.record(t, id.ID))

	w.LoseCommit(applies)
	results, err := w.Journal.Write(context.Background(), w.epoch, commits, []ca.Intent{next})
	mustBeTemporary(t, err)
	w.mustBeApplied(t, next.Batch, applies)
	w.mustBeApplied(t, intent.Batch, !applies)
	if !applies {
		_, err := w.RA.Certificate(context.Background(), good.Ref)
		mustNotFind(t, err)
		results, err = w.Journal.Write(context.Background(), w.epoch, commits, []ca.Intent{next})
		must(t, err)
	}
	must(t, results[0][0].Refusal)
	mustRefuse(t, results[0][1].Refusal, pki.RuleIdentityStale)
	w.reopen(t)
	if c := w.readCertificate(t, good.Ref); !c.Delivered {
		t.Errorf("the committed certificate is %+v", c)
	}
	if c := w.readCertificate(t, refused.Ref); c.Delivered {
		t.Errorf("the refused certificate is %+v", c)
	}
	mustEqual(t, "the pending intents", w.begin(t), []ca.Intent{next})
}

// lostEvidence loses the commit of an enrollment. Its nonce and its subject are on record if its certificate is.
func lostEvidence(t *testing.T, w *world, applies bool) {
	id, other := w.register(t), w.register(t)
	r := w.enrollmentAs(t, id, w.subject(), w.nonce())
	intent := w.writeIntent(t, r)
	commits := []ca.BatchCommit{{Intent: intent, Records: []ca.Record{r}, At: w.now}}
	w.LoseCommit(applies)
	_, err := w.Journal.Write(context.Background(), w.epoch, commits, nil)
	mustBeTemporary(t, err)
	again := w.commit(t, w.enrollmentAs(t, other, w.subject(), r.Guard.Nonces...))
	if applies {
		mustRefuse(t, again, pki.RuleChallengeUsed)
		mustEqual(t, "the subject of the identity", w.readIdentity(t, id.ID).Subject, r.Guard.Subject)
		return
	}
	must(t, again)
	mustEqual(t, "the subject of the identity", w.readIdentity(t, id.ID).Subject, pki.EvidenceSubject{})
}

// lostPolicy loses the commit of a revision of the policy. A repeat records it once.
func lostPolicy(t *testing.T, w *world, applies bool) {
	change := w.policy("one", 0)
	w.LoseCommit(applies)
	_, err := w.Policies.ApplyPolicy(context.Background(), change)
	mustBeTemporary(t, err)
	again, err := w.Policies.ApplyPolicy(context.Background(), change)
	must(t, err)
	mustEqual(t, "the revision", again.Revision, 1)
	mustEqual(t, "the number of log entries", len(w.entries(t)), 1)
}

func lostIntent(t *testing.T, w *world, applies bool) {
	intent := intentOf(w.record(t, w.register(t).ID))
	w.LoseCommit(applies)
	_, err := w.Journal.Write(context.Background(), w.epoch, nil, []ca.Intent{intent})
	mustBeTemporary(t, err)
	w.mustBeApplied(t, intent.Batch, applies)
	w.Store = w.Reopen(t)
	w.mustBeApplied(t, intent.Batch, applies)
	w.begin(t) // only a server with an epoch sequences the log
}

func lostChange(t *testing.T, w *world, applies bool) {
	r := w.enrollNew(t)
	change := revocation.Change{Action: revocation.Revoke, Reason: pki.Superseded, Certificate: r.Ref, Actor: operator, At: w.now}
	w.LoseCommit(applies)
	_, err := w.Statuses.Apply(context.Background(), change)
	mustBeTemporary(t, err)
	want := pki.Good
	if applies {
		want = pki.Revoked
	}
	if c := w.readCertificate(t, r.Ref); c.Status.State != want {
		t.Errorf("the certificate is %v, want %v", c.Status.State, want)
	}
	result, err := w.Statuses.Apply(context.Background(), change)
	statuses := result.All()
	must(t, err)
	if len(statuses) != 1 || statuses[0].Ref != r.Ref || statuses[0].Status.State != pki.Revoked {
		t.Errorf("the repeated change returns %v, so that the responder would not learn of the revocation", statuses)
	}
	if c := w.readCertificate(t, r.Ref); c.Status.State != pki.Revoked || c.Status.Version != 2 {
		t.Errorf("the certificate's status is %+v", c.Status)
	}
}

func lostCRLNumber(t *testing.T, w *world, applies bool) {
	ctx := context.Background()
	first, err := w.CRLs.TakeNumber(ctx, issuerA, w.now)
	must(t, err)
	w.LoseCommit(applies)
	_, err = w.CRLs.TakeNumber(ctx, issuerA, w.now)
	mustBeTemporary(t, err)
	next, err := w.CRLs.TakeNumber(ctx, issuerA, w.now)
	must(t, err)
	if next.Cmp(first) <= 0 {
		t.Errorf("number %v follows %v", next, first)
	}
}

func lostSequencing(t *testing.T, w *world, applies bool) {
	w.enrollNew(t)
	before := len(w.entries(t))
	w.enrollNew(t)
	w.LoseCommit(applies)
	_, err := w.Log.Sequence(context.Background(), 100)
	mustBeTemporary(t, err)
	head, err := w.Log.Head(context.Background())
	must(t, err)
	if advanced := head.Size > uint64(before); advanced != applies {
		t.Errorf("the log has %d entries after %d", head.Size, before)
	}
	w.verifyChain(t)
}

func lostTokenBinding(t *testing.T, w *world, applies bool) {
	ctx := context.Background()
	token := w.createToken(t, w.register(t).ID)
	request, key := w.requestID(t), w.key()
	w.LoseCommit(applies)
	_, err := w.RA.BindToken(ctx, token.ID, ra.Binding{Request: request, Key: key, At: w.now})
	mustBeTemporary(t, err)
	have, err := w.RA.Token(ctx, token.ID)
	must(t, err)
	if bound := have.Request == request && have.Key == key; bound != applies || !bound && !have.Request.IsZero() {
		t.Errorf("the token is bound to %v, %v", have.Request, have.Key)
	}
}

// canceledContext calls the store with a canceled context. The calls must fail without effect, and later calls succeed.
func canceledContext(t *testing.T, w *world) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	r := w.record(t, w.register(t).ID)
	intent := intentOf(r)
	if _, err := w.Journal.Write(ctx, w.epoch, nil, []ca.Intent{intent}); err == nil {
		t.Error("a write with a canceled context succeeded")
	}
	w.mustBeApplied(t, intent.Batch, false)
	if _, err := w.RA.Identity(ctx, r.Identity); err == nil {
		t.Error("a read with a canceled context succeeded")
	}
	w.issue(t, r)
}
