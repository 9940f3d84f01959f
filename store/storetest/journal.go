package storetest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"slices"
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
		"begin returns pending intents":             beginReturnsPending,
		"a stale epoch writes nothing":              staleEpochWritesNothing,
		"a record becomes a certificate":            recordBecomesCertificate,
		"a record supersedes its predecessor":       recordSupersedes,
		"a certificate is superseded once":          supersededOnce,
		"prior issuance says whether it superseded": priorSaysWhetherItSuperseded,
		"an item without a record is revoked":       itemWithoutRecordIsRevoked,
		"a refusal does not affect its batch":       refusalDoesNotAffectBatch,
		"a refusal does not affect other devices":   refusalDoesNotAffectOthers,
		"an intent is committed once":               intentIsCommittedOnce,
		"only intended certificates are issued":     onlyIntendedIsIssued,
		"a batch is committed item by item":         batchIsCommittedByItem,
		"an empty intent is never pending":          emptyIntent,
		"a serial number is used once":              serialIsUsedOnce,
		"one write commits many batches":            writeCommitsManyBatches,
		"the newest write is known by its intent":   newestWriteIsKnown,
		"an issuance is logged":                     issuanceIsLogged,
		"certificates of two issuers":               twoIssuers,
	})
}

func beginReturnsPending(t *testing.T, w *world) {
	id := w.register(t).ID
	committed, first, second := w.record(t, id), w.record(t, id), w.record(t, id)
	second.Ref.Issuer = issuerB
	w.issue(t, committed)
	one := w.writeIntent(t, first, second)
	third := w.record(t, id)
	third.Partition = 1<<16 - 1
	two := w.writeIntent(t, third)

	before := w.epoch
	w.reopen(t)
	pending := w.begin(t)
	if w.epoch <= before {
		t.Errorf("epoch %d follows epoch %d", w.epoch, before)
	}
	mustEqual(t, "the pending intents", inOrder(pending), inOrder([]ca.Intent{one, two}))

	w.commitBatch(t, one)
	w.commitBatch(t, two)
	if pending := w.begin(t); len(pending) != 0 {
		t.Errorf("still pending after they were committed: %v", pending)
	}
	for _, r := range []ca.Record{first, second, third} {
		if c := w.readCertificate(t, r.Ref); c.Delivered || c.Status.State != pki.Revoked {
			t.Errorf("certificate %s, pending from an earlier epoch: delivered %v, %v", r.Ref.Serial, c.Delivered, c.Status)
		}
	}
}

func staleEpochWritesNothing(t *testing.T, w *world) {
	ctx := context.Background()
	r := w.record(t, w.register(t).ID)
	pending := w.writeIntent(t, r)
	stale := w.epoch
	w.begin(t)
	w.sequence(t)
	head, err := w.Log.Head(ctx)
	must(t, err)

	fresh := intentOf(w.record(t, r.Identity))
	results, err := w.Journal.Write(ctx, stale, []ca.BatchCommit{{Intent: pending, Records: []ca.Record{r}, At: w.now}}, []ca.Intent{fresh})
	mustBeFenced(t, err)
	if len(results) != 1 || len(results[0]) != 1 {
		t.Errorf("results beside the error: %v", results)
	}
	_, err = w.Journal.Write(ctx, stale, nil, nil)
	mustBeFenced(t, err)
	_, err = w.Journal.Write(ctx, w.epoch+1, nil, nil)
	mustBeFenced(t, err)

	_, err = w.Journal.Applied(ctx, stale, fresh.Batch)
	mustBeFenced(t, err)
	w.mustBeApplied(t, fresh.Batch, false)
	_, err = w.RA.Certificate(ctx, r.Ref)
	mustNotFind(t, err)
	w.sequence(t)
	after, err := w.Log.Head(ctx)
	must(t, err)
	mustEqual(t, "the end of the log", after, head)
}

func recordBecomesCertificate(t *testing.T, w *world) {
	r := w.enrollNew(t)
	w.reopen(t)
	c := w.readCertificate(t, r.Ref)
	if string(c.DER) != string(r.DER) || !c.Delivered || c.Identity != r.Identity || c.Profile != r.Profile || c.KeyHash != r.KeyHash ||
		!c.NotBefore.Equal(r.NotBefore) || !c.NotAfter.Equal(r.NotAfter) || c.RequestID != r.RequestID || !c.Successor.IsZero() {
		t.Errorf("record %+v reads back as %+v", r, c)
	}
	mustEqual(t, "the status", c.Status, pki.Status{State: pki.Good, Version: 1})
}

func itemWithoutRecordIsRevoked(t *testing.T, w *world) {
	r := w.abandon(t)
	c := w.readCertificate(t, r.Ref)
	if c.Delivered || len(c.DER) != 0 || !c.Identity.IsZero() || !c.NotAfter.Equal(r.NotAfter) {
		t.Errorf("an undelivered certificate reads back as %+v", c)
	}
	want := pki.Status{State: pki.Revoked, Reason: pki.Unspecified, RevokedAt: w.now, Version: 1}
	mustEqual(t, "the status", c.Status, want)
	if st := w.issuanceState(t, ra.IssuanceQuery{Identity: r.Identity, Request: r.RequestID, Key: r.KeyHash}); st.Prior != nil {
		t.Errorf("the request returns %s", st.Prior.Certificate.Ref.Serial)
	}

	e := w.lastEntry(t)
	if e.Action != translog.CertificateAbandoned || !e.Time.Equal(w.now) {
		t.Errorf("log entry %+v", e)
	}
	mustEqual(t, "the logged change", e.Changes, []pki.StatusChange{{Ref: r.Ref, NotAfter: r.NotAfter, Status: want}})

	again := w.record(t, r.Identity)
	again.RequestID, again.KeyHash, again.Guard.Key = r.RequestID, r.KeyHash, r.KeyHash
	w.issue(t, again) // neither the request ID nor the key was used
}

func refusalDoesNotAffectBatch(t *testing.T, w *world) {
	id := w.register(t)
	good, bad, last := w.record(t, id.ID), w.enrollment(t, id), w.record(t, id.ID)
	bad.Guard.Revision++
	refusals := w.commitBatch(t, w.writeIntent(t, good, bad, last), good, bad, last)
	must(t, refusals[0])
	mustRefuse(t, refusals[1], pki.RuleIdentityStale)
	must(t, refusals[2])
	for _, r := range []ca.Record{good, last} {
		if c := w.readCertificate(t, r.Ref); !c.Delivered || c.Status.State != pki.Good {
			t.Errorf("certificate %s in the batch of a refused one: %+v", r.Ref.Serial, c)
		}
	}
	if c := w.readCertificate(t, bad.Ref); c.Delivered || c.Status.State != pki.Revoked {
		t.Errorf("the refused certificate: %+v", c)
	}
	for _, e := range w.entries(t) {
		if e.Action == translog.CertificateAbandoned && e.Facts()["rule"] == string(pki.RuleIdentityStale) && e.Identity == id.ID && e.Actor == bad.Actor {
			return
		}
	}
	t.Error("the log does not name rule, identity and actor of the refused certificate")
}

// refusalDoesNotAffectOthers commits a batch for different identities, which a store may write with few statements. One has a
// serial number that was used, and one the key of another in the batch.
func refusalDoesNotAffectOthers(t *testing.T, w *world) {
	before := w.enrollNew(t)
	var records []ca.Record
	for range 6 {
		records = append(records, w.record(t, w.register(t).ID))
	}
	used, foreign := &records[2], &records[4]
	used.Ref.Serial = before.Ref.Serial
	foreign.KeyHash, foreign.Guard.Key = records[0].KeyHash, records[0].KeyHash
	refusals := w.commitBatch(t, w.writeIntent(t, records...), records...)
	for i := range records {
		switch r := &records[i]; r {
		case used:
			if _, ok := pki.AsRefusal(refusals[i]); !ok {
				t.Errorf("a used serial number got the result %v", refusals[i])
			}
		case foreign:
			mustRefuse(t, refusals[i], pki.RuleKeyInUse)
			if c := w.readCertificate(t, r.Ref); c.Delivered || c.Status.State != pki.Revoked {
				t.Errorf("the refused certificate: %+v", c)
			}
		default:
			must(t, refusals[i])
			c := w.readCertificate(t, r.Ref)
			if !c.Delivered || c.Identity != r.Identity || c.KeyHash != r.KeyHash || c.RequestID != r.RequestID || string(c.DER) != string(r.DER) {
				t.Errorf("record %d of the batch reads back as %+v", i, c)
			}
			st := w.issuanceState(t, ra.IssuanceQuery{Identity: r.Identity, Request: r.RequestID, Key: r.KeyHash})
			if st.Prior == nil || st.Prior.Certificate.Ref != r.Ref {
				t.Errorf("the request of record %d has the prior certificate %+v", i, st.Prior)
			}
		}
	}
}

func intentIsCommittedOnce(t *testing.T, w *world) {
	ctx := context.Background()
	id := w.register(t).ID
	r, other := w.record(t, id), w.record(t, id)
	done := w.writeIntent(t, r)
	must(t, w.commitBatch(t, done, r)[0])
	pending := w.writeIntent(t, other)

	commits := []ca.BatchCommit{{Intent: pending, Records: []ca.Record{other}, At: w.now}, {Intent: done, At: w.now}}
	if _, err := w.Journal.Write(ctx, w.epoch, commits, nil); err == nil {
		t.Error("a batch was committed twice")
	}
	unknown := intentOf(w.record(t, id))
	if _, err := w.Journal.Write(ctx, w.epoch, []ca.BatchCommit{{Intent: unknown, At: w.now}}, []ca.Intent{intentOf(w.record(t, id))}); err == nil {
		t.Error("a batch without an intent was committed")
	}
	_, err := w.RA.Certificate(ctx, other.Ref)
	mustNotFind(t, err) // its transaction failed
	if c := w.readCertificate(t, r.Ref); c.Status.State != pki.Good {
		t.Errorf("the certificate of the committed batch: %+v", c)
	}
	mustEqual(t, "the pending intents", w.begin(t), []ca.Intent{pending})
}

func onlyIntendedIsIssued(t *testing.T, w *world) {
	id := w.register(t).ID
	intended, other := w.record(t, id), w.record(t, id)
	intent := w.writeIntent(t, intended)
	_, err := w.Journal.Write(context.Background(), w.epoch, []ca.BatchCommit{{Intent: intent, Records: []ca.Record{intended, other}, At: w.now}}, nil)
	if err == nil {
		t.Error("a certificate without an intent was issued")
	}
	_, err = w.RA.Certificate(context.Background(), other.Ref)
	mustNotFind(t, err)
	forged := ca.Intent{Batch: intent.Batch, Items: []ca.IntentItem{{Ref: intended.Ref}}}
	w.commitBatch(t, forged) // the durable intent counts, not the copy in the commit
	if c := w.readCertificate(t, intended.Ref); c.Delivered || c.Status.State != pki.Revoked {
		t.Errorf("an intended certificate without a record: %+v", c)
	}
	if c := w.readCertificate(t, intended.Ref); !c.NotAfter.Equal(intended.NotAfter) {
		t.Errorf("its notAfter is %v, want %v as in the intent", c.NotAfter, intended.NotAfter)
	}
}

func batchIsCommittedByItem(t *testing.T, w *world) {
	ctx := context.Background()
	id := w.register(t).ID
	first, second, third := w.record(t, id), w.record(t, id), w.record(t, id)
	whole := w.writeIntent(t, first, second, third)
	part := func(records ...ca.Record) ca.Intent {
		intent := intentOf(records...)
		intent.Batch = whole.Batch
		return intent
	}
	must(t, w.commitBatch(t, part(second), second)[0])
	if _, err := w.Journal.Write(ctx, w.epoch, []ca.BatchCommit{{Intent: part(second), Records: []ca.Record{second}, At: w.now}}, nil); err == nil {
		t.Error("an item was committed twice")
	}
	if _, err := w.Journal.Write(ctx, w.epoch, []ca.BatchCommit{{Intent: part(first), Records: []ca.Record{third}, At: w.now}}, nil); err == nil {
		t.Error("a certificate was issued in the commit of another item")
	}
	w.commitBatch(t, part(first)) // without a record
	w.reopen(t)
	mustEqual(t, "the pending intents", w.begin(t), []ca.Intent{part(third)})
	must(t, w.commitBatch(t, part(third), third)[0])
	for r, delivered := range map[*ca.Record]bool{&first: false, &second: true, &third: true} {
		if c := w.readCertificate(t, r.Ref); c.Delivered != delivered {
			t.Errorf("certificate %s is delivered: %v", r.Ref.Serial, c.Delivered)
		}
	}
	mustEqual(t, "the pending intents at the end", w.begin(t), nil)
}

// emptyIntent writes an intent without items. It shows a writer whether a transaction was applied, and is never pending.
func emptyIntent(t *testing.T, w *world) {
	empty := w.writeIntent(t)
	w.mustBeApplied(t, empty.Batch, true)
	mustEqual(t, "the pending intents", w.begin(t), nil)
}

func serialIsUsedOnce(t *testing.T, w *world) {
	first := w.enrollNew(t)
	for _, issuer := range []pki.IssuerID{issuerA, issuerB} { // a serial number is unique over all issuers
		again := w.record(t, first.Identity)
		again.Ref = pki.CertRef{Issuer: issuer, Serial: first.Ref.Serial}
		beside := w.record(t, first.Identity)
		refusals := w.commitBatch(t, w.writeIntent(t, again, beside), again, beside)
		if _, ok := pki.AsRefusal(refusals[0]); !ok {
			t.Errorf("the second certificate with one serial number got the result %v", refusals[0])
		}
		must(t, refusals[1])
	}
	w.commitBatch(t, w.writeIntent(t, first)) // in an intent again, without a record
	c, err := w.RA.CertificateBySerial(context.Background(), first.Ref.Serial)
	must(t, err)
	if string(c.DER) != string(first.DER) || c.Status.State != pki.Good || c.Ref != first.Ref {
		t.Errorf("the first certificate is now %+v", c)
	}
}

func writeCommitsManyBatches(t *testing.T, w *world) {
	ctx := context.Background()
	id := w.register(t).ID
	var commits []ca.BatchCommit
	var intents, next []ca.Intent
	for range 3 {
		one, two, refused := w.record(t, id), w.record(t, id), w.record(t, w.register(t).ID)
		refused.RequestID = pki.RequestID{}
		if len(commits) > 0 { // the certificate of the batch before is the predecessor
			two.Guard.Predecessor = commits[len(commits)-1].Records[0].Ref
		}
		intents = append(intents, intentOf(one, two, refused))
		commits = append(commits, ca.BatchCommit{Intent: intents[len(intents)-1], Records: []ca.Record{two, refused}, At: w.now})
		next = append(next, intentOf(w.record(t, id)))
	}
	_, err := w.Journal.Write(ctx, w.epoch, nil, intents)
	must(t, err)
	results, err := w.Journal.Write(ctx, w.epoch, commits, next)
	must(t, err)
	for i, s := range commits {
		must(t, results[i][0].Refusal)
		mustRefuse(t, results[i][1].Refusal, pki.RuleRequest)
		if c := w.readCertificate(t, s.Records[0].Ref); !c.Delivered {
			t.Errorf("record %s was not issued", c.Ref.Serial)
		}
		for _, lost := range []ca.IntentItem{s.Intent.Items[0], s.Intent.Items[2]} {
			if c := w.readCertificate(t, lost.Ref); c.Delivered || c.Status.State != pki.Revoked {
				t.Errorf("item %s has no record, or a refused one, and is %+v", c.Ref.Serial, c)
			}
		}
	}
	mustEqual(t, "the pending intents", inOrder(w.begin(t)), inOrder(next))
}

// newestWriteIsKnown checks that Applied knows the last intent of the newest write only, whatever became of its items.
func newestWriteIsKnown(t *testing.T, w *world) {
	ctx := context.Background()
	id := w.register(t).ID
	first, last := intentOf(w.record(t, id)), intentOf(w.record(t, id))
	_, err := w.Journal.Write(ctx, w.epoch, nil, []ca.Intent{first, last})
	must(t, err)
	w.mustBeApplied(t, ca.NewBatchID(), false)
	w.mustBeApplied(t, first.Batch, false)
	w.mustBeApplied(t, last.Batch, true)
	w.Store = w.Reopen(t)
	w.mustBeApplied(t, last.Batch, true)

	next := intentOf(w.record(t, id))
	_, err = w.Journal.Write(ctx, w.epoch, []ca.BatchCommit{{Intent: last, At: w.now}}, []ca.Intent{next})
	must(t, err)
	w.mustBeApplied(t, last.Batch, false)
	w.mustBeApplied(t, next.Batch, true)
	w.begin(t)
	w.mustBeApplied(t, next.Batch, false) // it was a write of an earlier epoch
	w.commitBatch(t, next)
	w.mustBeApplied(t, next.Batch, false) // a write without an intent
	w.mustBeApplied(t, ca.BatchID{}, false)
}

// inOrder sorts intents, which Begin returns in any order.
func inOrder(intents []ca.Intent) []ca.Intent {
	return slices.SortedFunc(slices.Values(intents), func(a, b ca.Intent) int { return bytes.Compare(a.Batch[:], b.Batch[:]) })
}

func issuanceIsLogged(t *testing.T, w *world) {
	predecessor := w.enrollNew(t)
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
	id := w.register(t).ID
	a, b := w.record(t, id), w.record(t, id)
	b.Ref.Issuer = issuerB
	refusals := w.commitBatch(t, w.writeIntent(t, a, b), a, b)
	must(t, refusals[0])
	must(t, refusals[1])
	w.apply(t, revocation.Change{Action: revocation.Revoke, Certificate: b.Ref})
	if c := w.readCertificate(t, a.Ref); c.Status.State != pki.Good {
		t.Errorf("a revocation under one issuer changed a certificate of the other: %+v", c)
	}
	_, err := w.RA.Certificate(context.Background(), pki.CertRef{Issuer: issuerB, Serial: a.Ref.Serial})
	mustNotFind(t, err)
}
