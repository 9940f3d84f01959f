package storetest

import (
	"context"
	"crypto/sha256"
	"testing"
	"time"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra"
	"github.com/brevet-pki/brevet/revocation"
	"github.com/brevet-pki/brevet/translog"
)

func testJournal(t *testing.T, open func(t *testing.T) Store) {
	each(t, open, map[string]func(t *testing.T, w *world){
		"begin returns what is pending":            beginReturnsPending,
		"a stale epoch writes nothing":             staleEpochWritesNothing,
		"a record becomes a certificate":           recordBecomesCertificate,
		"a record supersedes its predecessor":      recordSupersedes,
		"what is superseded once":                  supersededOnce,
		"whose renewal superseded a certificate":   whoSuperseded,
		"an item without a record is revoked":      itemWithoutRecordIsRevoked,
		"a refusal costs its batch nothing":        refusalCostsBatchNothing,
		"an intent is settled once":                intentIsSettledOnce,
		"only what was announced is issued":        onlyAnnouncedIsIssued,
		"a batch is settled item by item":          batchIsSettledByItem,
		"an intent of nothing is settled":          intentOfNothing,
		"a serial number is used once":             serialIsUsedOnce,
		"one write settles and announces many":     writeSettlesAndAnnouncesMany,
		"state tells absent, pending and settled":  stateTells,
		"the log says what an issue was about":     logSaysIssue,
		"certificates of two issuers stand beside": twoIssuers,
	})
}

func beginReturnsPending(t *testing.T, w *world) {
	id := w.identity(t).ID
	settled, first, second := w.record(t, id), w.record(t, id), w.record(t, id)
	second.Ref.Issuer = issuerB
	w.issue(t, settled)
	one := w.writeIntent(t, first, second)
	third := w.record(t, id)
	third.Partition = 1<<16 - 1
	two := w.writeIntent(t, third)

	before := w.epoch
	w.reopen(t)
	left := w.begin(t)
	if w.epoch <= before {
		t.Errorf("epoch %d follows epoch %d", w.epoch, before)
	}
	mustEqual(t, "what is pending", left, []ca.Intent{one, two})

	w.commitBatch(t, one)
	w.commitBatch(t, two)
	if left := w.begin(t); len(left) != 0 {
		t.Errorf("still pending after they were settled: %v", left)
	}
	for _, r := range []ca.Record{first, second, third} {
		if c := w.certificate(t, r.Ref); c.Delivered || c.Status.State != pki.Revoked {
			t.Errorf("certificate %s, left by an earlier epoch: released %v, %v", r.Ref.Serial, c.Delivered, c.Status)
		}
	}
}

func staleEpochWritesNothing(t *testing.T, w *world) {
	ctx := context.Background()
	r := w.record(t, w.identity(t).ID)
	pending := w.writeIntent(t, r)
	stale := w.epoch
	w.begin(t)
	w.sequence(t)
	head, err := w.Log.Head(ctx)
	must(t, err)

	fresh := intentOf(w.record(t, r.Identity))
	verdicts, err := w.Journal.Write(ctx, stale, []ca.BatchCommit{{Intent: pending, Records: []ca.Record{r}, At: w.now}}, []ca.Intent{fresh})
	mustFence(t, err)
	if len(verdicts) != 1 || len(verdicts[0]) != 1 {
		t.Errorf("verdicts beside the error: %v", verdicts)
	}
	_, err = w.Journal.Write(ctx, stale, nil, nil)
	mustFence(t, err)
	_, err = w.Journal.Write(ctx, w.epoch+1, nil, nil)
	mustFence(t, err)

	_, err = w.Journal.State(ctx, stale, []ca.BatchID{pending.Batch})
	mustFence(t, err)
	states, err := w.Journal.State(ctx, w.epoch, []ca.BatchID{pending.Batch, fresh.Batch})
	must(t, err)
	mustEqual(t, "the state", states, []ca.BatchState{ca.BatchPending, ca.BatchAbsent})
	_, err = w.RA.Certificate(ctx, r.Ref)
	mustMiss(t, err)
	w.sequence(t)
	after, err := w.Log.Head(ctx)
	must(t, err)
	mustEqual(t, "the end of the log", after, head)
}

func recordBecomesCertificate(t *testing.T, w *world) {
	r := w.issued(t)
	w.reopen(t)
	c := w.certificate(t, r.Ref)
	if string(c.DER) != string(r.DER) || !c.Delivered || c.Identity != r.Identity || c.Profile != r.Profile || c.KeyHash != r.KeyHash ||
		!c.NotBefore.Equal(r.NotBefore) || !c.NotAfter.Equal(r.NotAfter) || c.RequestID != r.RequestID || !c.Successor.IsZero() {
		t.Errorf("record %+v reads back as %+v", r, c)
	}
	mustEqual(t, "the status", c.Status, pki.Status{State: pki.Good, Version: 1})
}

func itemWithoutRecordIsRevoked(t *testing.T, w *world) {
	r := w.abandon(t)
	c := w.certificate(t, r.Ref)
	if c.Delivered || len(c.DER) != 0 || !c.Identity.IsZero() || !c.NotAfter.Equal(r.NotAfter) {
		t.Errorf("a serial that was never released reads back as %+v", c)
	}
	want := pki.Status{State: pki.Revoked, Reason: pki.Unspecified, RevokedAt: w.now, Version: 1}
	mustEqual(t, "the status", c.Status, want)
	if st := w.standing(t, ra.IssuanceQuery{Identity: r.Identity, Request: r.RequestID, Key: r.KeyHash}); st.Prior != nil {
		t.Errorf("the request is answered with %s", st.Prior.Certificate.Ref.Serial)
	}

	e := w.lastEntry(t)
	if e.Action != translog.CertificateAbandoned || !e.Time.Equal(w.now) {
		t.Errorf("log entry %+v", e)
	}
	mustEqual(t, "the logged change", e.Changes, []pki.StatusChange{{Ref: r.Ref, NotAfter: r.NotAfter, Status: want}})

	again := w.record(t, r.Identity)
	again.RequestID, again.KeyHash, again.Guard.Key = r.RequestID, r.KeyHash, r.KeyHash
	w.issue(t, again) // neither its request nor its key was used
}

func refusalCostsBatchNothing(t *testing.T, w *world) {
	id := w.identity(t)
	good, bad, last := w.record(t, id.ID), w.enrollment(t, id), w.record(t, id.ID)
	bad.Guard.Revision++
	verdicts := w.commitBatch(t, w.writeIntent(t, good, bad, last), good, bad, last)
	must(t, verdicts[0])
	mustRefuse(t, verdicts[1], pki.RuleIdentityStale)
	must(t, verdicts[2])
	for _, r := range []ca.Record{good, last} {
		if c := w.certificate(t, r.Ref); !c.Delivered || c.Status.State != pki.Good {
			t.Errorf("certificate %s beside a refused one: %+v", r.Ref.Serial, c)
		}
	}
	if c := w.certificate(t, bad.Ref); c.Delivered || c.Status.State != pki.Revoked {
		t.Errorf("the refused certificate: %+v", c)
	}
	for _, e := range w.entries(t) {
		if e.Action == translog.CertificateAbandoned && e.Facts()["rule"] == string(pki.RuleIdentityStale) && e.Identity == id.ID && e.Actor == bad.Actor {
			return
		}
	}
	t.Error("the log does not say which rule refused the certificate that was signed, nor whose it was")
}

func intentIsSettledOnce(t *testing.T, w *world) {
	ctx := context.Background()
	id := w.identity(t).ID
	r, other := w.record(t, id), w.record(t, id)
	done := w.writeIntent(t, r)
	must(t, w.commitBatch(t, done, r)[0])
	pending := w.writeIntent(t, other)

	settlements := []ca.BatchCommit{{Intent: pending, Records: []ca.Record{other}, At: w.now}, {Intent: done, At: w.now}}
	if _, err := w.Journal.Write(ctx, w.epoch, settlements, nil); err == nil {
		t.Error("a batch was settled twice")
	}
	unknown := intentOf(w.record(t, id))
	if _, err := w.Journal.Write(ctx, w.epoch, []ca.BatchCommit{{Intent: unknown, At: w.now}}, []ca.Intent{intentOf(w.record(t, id))}); err == nil {
		t.Error("a batch that was never announced was settled")
	}
	_, err := w.RA.Certificate(ctx, other.Ref)
	mustMiss(t, err) // it was in the transaction that failed
	if c := w.certificate(t, r.Ref); c.Status.State != pki.Good {
		t.Errorf("the certificate of the settled batch: %+v", c)
	}
	mustEqual(t, "what is pending", w.begin(t), []ca.Intent{pending})
}

func onlyAnnouncedIsIssued(t *testing.T, w *world) {
	id := w.identity(t).ID
	announced, smuggled := w.record(t, id), w.record(t, id)
	intent := w.writeIntent(t, announced)
	_, err := w.Journal.Write(context.Background(), w.epoch, []ca.BatchCommit{{Intent: intent, Records: []ca.Record{announced, smuggled}, At: w.now}}, nil)
	if err == nil {
		t.Error("a certificate was issued that no intent had announced")
	}
	_, err = w.RA.Certificate(context.Background(), smuggled.Ref)
	mustMiss(t, err)
	forged := ca.Intent{Batch: intent.Batch, Items: []ca.IntentItem{{Ref: announced.Ref}}}
	w.commitBatch(t, forged) // the durable intent counts, not what the settlement repeats of it
	if c := w.certificate(t, announced.Ref); c.Delivered || c.Status.State != pki.Revoked {
		t.Errorf("an announced serial that the settlement left out: %+v", c)
	}
	if c := w.certificate(t, announced.Ref); !c.NotAfter.Equal(announced.NotAfter) {
		t.Errorf("it ends at %v, and was announced to end at %v", c.NotAfter, announced.NotAfter)
	}
}

func batchIsSettledByItem(t *testing.T, w *world) {
	ctx := context.Background()
	id := w.identity(t).ID
	first, second, third := w.record(t, id), w.record(t, id), w.record(t, id)
	whole := w.writeIntent(t, first, second, third)
	part := func(records ...ca.Record) ca.Intent {
		intent := intentOf(records...)
		intent.Batch = whole.Batch
		return intent
	}
	must(t, w.commitBatch(t, part(second), second)[0])
	w.mustBe(t, whole.Batch, ca.BatchPending)
	if _, err := w.Journal.Write(ctx, w.epoch, []ca.BatchCommit{{Intent: part(second), Records: []ca.Record{second}, At: w.now}}, nil); err == nil {
		t.Error("an item was settled twice")
	}
	if _, err := w.Journal.Write(ctx, w.epoch, []ca.BatchCommit{{Intent: part(first), Records: []ca.Record{third}, At: w.now}}, nil); err == nil {
		t.Error("a certificate was issued in the settlement of another one")
	}
	w.commitBatch(t, part(first)) // given up
	w.reopen(t)
	mustEqual(t, "what is pending", w.begin(t), []ca.Intent{part(third)})
	must(t, w.commitBatch(t, part(third), third)[0])
	w.mustBe(t, whole.Batch, ca.BatchCommitted)
	for r, released := range map[*ca.Record]bool{&first: false, &second: true, &third: true} {
		if c := w.certificate(t, r.Ref); c.Delivered != released {
			t.Errorf("certificate %s is released: %v", r.Ref.Serial, c.Delivered)
		}
	}
	mustEqual(t, "what is pending at the end", w.begin(t), nil)
}

// intentOfNothing checks what a writer with nothing to announce asks about to learn whether its transaction applied.
func intentOfNothing(t *testing.T, w *world) {
	nothing := w.writeIntent(t)
	w.mustBe(t, nothing.Batch, ca.BatchCommitted)
	mustEqual(t, "what is pending", w.begin(t), nil)
}

func serialIsUsedOnce(t *testing.T, w *world) {
	first := w.issued(t)
	for _, issuer := range []pki.IssuerID{issuerA, issuerB} { // a serial number is unique over all issuers
		again := w.record(t, first.Identity)
		again.Ref = pki.CertRef{Issuer: issuer, Serial: first.Ref.Serial}
		beside := w.record(t, first.Identity)
		verdicts := w.commitBatch(t, w.writeIntent(t, again, beside), again, beside)
		if _, ok := pki.AsRefusal(verdicts[0]); !ok {
			t.Errorf("the second certificate with one serial number got the verdict %v", verdicts[0])
		}
		must(t, verdicts[1])
	}
	w.commitBatch(t, w.writeIntent(t, first)) // announced again, without a record
	c, err := w.RA.CertificateBySerial(context.Background(), first.Ref.Serial)
	must(t, err)
	if string(c.DER) != string(first.DER) || c.Status.State != pki.Good || c.Ref != first.Ref {
		t.Errorf("the first certificate is now %+v", c)
	}
}

func writeSettlesAndAnnouncesMany(t *testing.T, w *world) {
	ctx := context.Background()
	id := w.identity(t).ID
	var settle []ca.BatchCommit
	var announce, next []ca.Intent
	for range 3 {
		one, two := w.record(t, id), w.record(t, id)
		announce = append(announce, intentOf(one, two))
		settle = append(settle, ca.BatchCommit{Intent: announce[len(announce)-1], Records: []ca.Record{two}, At: w.now})
		next = append(next, intentOf(w.record(t, id)))
	}
	_, err := w.Journal.Write(ctx, w.epoch, nil, announce)
	must(t, err)
	verdicts, err := w.Journal.Write(ctx, w.epoch, settle, next)
	must(t, err)
	mustEqual(t, "the verdicts", verdicts, []ca.Results{{{}}, {{}}, {{}}})
	for _, s := range settle {
		if c := w.certificate(t, s.Records[0].Ref); !c.Delivered {
			t.Errorf("record %s was not issued", c.Ref.Serial)
		}
		if c := w.certificate(t, s.Intent.Items[0].Ref); c.Delivered || c.Status.State != pki.Revoked {
			t.Errorf("item %s has no record, and is %+v", c.Ref.Serial, c)
		}
	}
	mustEqual(t, "what is pending", w.begin(t), next)
}

func stateTells(t *testing.T, w *world) {
	ctx := context.Background()
	id := w.identity(t).ID
	var settle []ca.BatchCommit
	var announce []ca.Intent
	var ids []ca.BatchID
	want := []ca.BatchState{ca.BatchAbsent, ca.BatchPending}
	for range 50 {
		intent := intentOf(w.record(t, id))
		announce = append(announce, intent)
		settle = append(settle, ca.BatchCommit{Intent: intent, At: w.now})
		ids = append(ids, intent.Batch)
		want = append(want, ca.BatchCommitted)
	}
	_, err := w.Journal.Write(ctx, w.epoch, nil, announce)
	must(t, err)
	_, err = w.Journal.Write(ctx, w.epoch, settle, nil)
	must(t, err)
	pending := w.writeIntent(t, w.record(t, id))
	states, err := w.Journal.State(ctx, w.epoch, append([]ca.BatchID{ca.NewBatchID(), pending.Batch}, ids...))
	must(t, err)
	mustEqual(t, "the states", states, want)
	states, err = w.Journal.State(ctx, w.epoch, nil)
	must(t, err)
	mustEqual(t, "the states of no batches", states, nil)
}

func logSaysIssue(t *testing.T, w *world) {
	predecessor := w.issued(t)
	r := w.record(t, predecessor.Identity)
	r.Guard.Predecessor = predecessor.Ref
	w.now = w.now.Add(time.Minute)
	w.issue(t, r)
	e := w.lastEntry(t)
	fingerprint := sha256.Sum256(r.DER)
	mustEqual(t, "the log entry", e, translog.Entry{
		Time: w.now, Actor: r.Actor, Action: translog.CertificateIssued, Outcome: translog.Done, Identity: r.Identity,
		Changes: []pki.StatusChange{{
			Ref: r.Ref, NotAfter: r.NotAfter, Status: pki.Status{State: pki.Good, Version: 1}, Fingerprint: fingerprint[:],
		}},
		RequestID: r.RequestID,
		Event: &translog.IssuedCertificate{
			Profile: "device", Key: r.KeyHash, NotBefore: r.NotBefore, IssueTime: r.IssuedAt, Partition: r.Partition,
			Predecessor: predecessor.Ref.Serial,
		},
	})
}

func twoIssuers(t *testing.T, w *world) {
	id := w.identity(t).ID
	a, b := w.record(t, id), w.record(t, id)
	b.Ref.Issuer = issuerB
	verdicts := w.commitBatch(t, w.writeIntent(t, a, b), a, b)
	must(t, verdicts[0])
	must(t, verdicts[1])
	w.apply(t, revocation.Change{Action: revocation.Revoke, Certificate: b.Ref})
	if c := w.certificate(t, a.Ref); c.Status.State != pki.Good {
		t.Errorf("revoking at one issuer changed the other's: %+v", c)
	}
	_, err := w.RA.Certificate(context.Background(), pki.CertRef{Issuer: issuerB, Serial: a.Ref.Serial})
	mustMiss(t, err)
}
