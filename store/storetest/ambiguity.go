package storetest

import (
	"context"
	"testing"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/revocation"
)

// An error of COMMIT does not say whether the transaction applied. The store has to be able to.
func testAmbiguity(t *testing.T, open func(t *testing.T) Store) {
	tests := map[string]func(t *testing.T, w *world){"a caller who has given up": gaveUp}
	for what, applies := range map[string]bool{"applied": true, "not applied": false} {
		tests["settlement "+what] = func(t *testing.T, w *world) { lostSettlement(t, w, applies) }
		tests["announcement "+what] = func(t *testing.T, w *world) { lostAnnouncement(t, w, applies) }
		tests["order "+what] = func(t *testing.T, w *world) { lostOrder(t, w, applies) }
		tests["CRL number "+what] = func(t *testing.T, w *world) { lostNumber(t, w, applies) }
		tests["sequencing "+what] = func(t *testing.T, w *world) { lostSequence(t, w, applies) }
		tests["binding "+what] = func(t *testing.T, w *world) { lostBinding(t, w, applies) }
	}
	each(t, open, tests)
}

func (w *world) mustBe(t *testing.T, batch ca.BatchID, want ca.BatchState) {
	t.Helper()
	states, err := w.Journal.State(context.Background(), w.epoch, []ca.BatchID{batch})
	must(t, err)
	mustEqual(t, "the state of the batch", states, []ca.BatchState{want})
}

func lostSettlement(t *testing.T, w *world, applies bool) {
	id := w.identity(t)
	good, refused := w.enrollment(t, id), w.enrollment(t, id)
	intent := w.writeIntent(t, good, refused)
	settle := []ca.BatchCommit{{Intent: intent, Records: []ca.Record{good, refused}, At: w.now}}
	next := intentOf(w.record(t, id.ID))

	w.LoseCommit(applies)
	verdicts, err := w.Journal.Write(context.Background(), w.epoch, settle, []ca.Intent{next})
	mustPass(t, err)
	if applies {
		w.mustBe(t, intent.Batch, ca.BatchCommitted)
		w.mustBe(t, next.Batch, ca.BatchPending)
	} else {
		w.mustBe(t, intent.Batch, ca.BatchPending)
		w.mustBe(t, next.Batch, ca.BatchAbsent)
		_, err := w.RA.Certificate(context.Background(), good.Ref)
		mustMiss(t, err)
		verdicts, err = w.Journal.Write(context.Background(), w.epoch, settle, []ca.Intent{next})
		must(t, err)
	}
	must(t, verdicts[0][0].Refusal)
	mustRefuse(t, verdicts[0][1].Refusal, pki.RuleIdentityStale)
	w.reopen(t)
	if c := w.certificate(t, good.Ref); !c.Delivered {
		t.Errorf("the settled certificate is %+v", c)
	}
	if c := w.certificate(t, refused.Ref); c.Delivered {
		t.Errorf("the refused certificate is %+v", c)
	}
	mustEqual(t, "what is pending", w.begin(t), []ca.Intent{next})
}

func lostAnnouncement(t *testing.T, w *world, applies bool) {
	intent := intentOf(w.record(t, w.identity(t).ID))
	w.LoseCommit(applies)
	_, err := w.Journal.Write(context.Background(), w.epoch, nil, []ca.Intent{intent})
	mustPass(t, err)
	want := ca.BatchAbsent
	if applies {
		want = ca.BatchPending
	}
	w.mustBe(t, intent.Batch, want)
	w.reopen(t)
	w.mustBe(t, intent.Batch, want)
}

func lostOrder(t *testing.T, w *world, applies bool) {
	r := w.issued(t)
	o := revocation.Change{Action: revocation.Revoke, Reason: pki.Superseded, Certificate: r.Ref, Actor: operator, At: w.now}
	w.LoseCommit(applies)
	_, err := w.Orders.Apply(context.Background(), o)
	mustPass(t, err)
	want := pki.Good
	if applies {
		want = pki.Revoked
	}
	if c := w.certificate(t, r.Ref); c.Status.State != want {
		t.Errorf("the certificate is %v, want %v", c.Status.State, want)
	}
	out, err := w.Orders.Apply(context.Background(), o)
	standing := out.All()
	must(t, err)
	if len(standing) != 1 || standing[0].Ref != r.Ref || standing[0].Status.State != pki.Revoked {
		t.Errorf("carried out again, the order returns %v: responders would go on calling the certificate good", standing)
	}
	if c := w.certificate(t, r.Ref); c.Status.State != pki.Revoked || c.Status.Version != 2 {
		t.Errorf("the certificate's status is %+v", c.Status)
	}
}

func lostNumber(t *testing.T, w *world, applies bool) {
	ctx := context.Background()
	first, err := w.CRLs.TakeNumber(ctx, issuerA, w.now)
	must(t, err)
	w.LoseCommit(applies)
	_, err = w.CRLs.TakeNumber(ctx, issuerA, w.now)
	mustPass(t, err)
	next, err := w.CRLs.TakeNumber(ctx, issuerA, w.now)
	must(t, err)
	if next.Cmp(first) <= 0 {
		t.Errorf("number %v follows %v", next, first)
	}
}

func lostSequence(t *testing.T, w *world, applies bool) {
	w.issued(t)
	before := len(w.entries(t))
	w.issued(t)
	w.LoseCommit(applies)
	_, err := w.Log.Sequence(context.Background(), 100)
	mustPass(t, err)
	head, err := w.Log.Head(context.Background())
	must(t, err)
	if advanced := head.Size > uint64(before); advanced != applies {
		t.Errorf("the log has %d entries after %d", head.Size, before)
	}
	w.verifyChain(t)
}

func lostBinding(t *testing.T, w *world, applies bool) {
	ctx := context.Background()
	token := w.token(t, w.identity(t).ID)
	request, key := w.request(t), w.key()
	w.LoseCommit(applies)
	_, err := w.RA.BindToken(ctx, token.ID, request, key, w.now)
	mustPass(t, err)
	have, err := w.RA.Token(ctx, token.ID)
	must(t, err)
	if bound := have.Request == request && have.Key == key; bound != applies || !bound && !have.Request.IsZero() {
		t.Errorf("the token is bound to %v, %v", have.Request, have.Key)
	}
}

// gaveUp checks that a caller without patience gets nothing done, and stops nobody else.
func gaveUp(t *testing.T, w *world) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	r := w.record(t, w.identity(t).ID)
	intent := intentOf(r)
	if _, err := w.Journal.Write(ctx, w.epoch, nil, []ca.Intent{intent}); err == nil {
		t.Error("a write for a caller who had given up before it succeeded")
	}
	w.mustBe(t, intent.Batch, ca.BatchAbsent)
	if _, err := w.RA.Identity(ctx, r.Identity); err == nil {
		t.Error("a read for a caller who had given up before it succeeded")
	}
	w.issue(t, r)
}
