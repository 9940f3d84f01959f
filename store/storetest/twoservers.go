package storetest

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/revocation"
)

// testTwoServers uses one store as two servers, if the engine allows it.
func testTwoServers(t *testing.T, open func(t *testing.T) Store) {
	for name, test := range map[string]func(t *testing.T, first, second *world){
		"both issue": bothIssue, "a server is fenced after its lease": fencedAfterLease, "a fenced server begins again": fencedBeginsAgain,
		"a lease is renewed": leaseIsRenewed, "an open bulk revocation is in the feed": feedHasOpenBulk,
		"an open bulk hold is in the feed": feedHasOpenHold,
		"one server leads an issuer":       oneServerLeads, "CRLs are passed on": crlsArePassedOn, "a CRL is recorded with its bytes": crlNeedsBytes,
		"an intent outlives a takeover that fails": intentOutlivesTakeOver,
		"an older process stays replaced":          olderStaysReplaced, "the oldest server leads": oldestLeads,
		"a server without an epoch follows": withoutEpochFollows, "an operator ends a rotation anywhere": operatorEndsRotation,
		"one server advances the age": oneAges, "requests for delegates are passed on": delegateRequestsArePassedOn,
		"refusals of delegates are passed back": refusalsArePassedBack, "leaders are listed": leadersAreListed, "servers get their delegates": serversGetTheirDelegates,
		"a removal waits for the archives of others": removalWaitsForOthers,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel() // leases end by the clock of the database
			s := open(t)
			need(t, s.Another != nil, "second server")
			first := newWorld(t, s)
			second := &world{Store: s.Another(t), now: first.now, uniqueCount: 1 << 32}
			mustEqual(t, "the number of pending intents", len(second.begin(t)), 0)
			test(t, first, second)
		})
	}
}

// waitForLease waits until a lease has ended that its server does not renew.
func waitForLease() { time.Sleep(ca.Lease + 200*time.Millisecond) }

func bothIssue(t *testing.T, first, second *world) {
	intent := first.writeIntent(t, first.record(t, first.register(t).ID))
	r := second.enrollNew(t)
	if have := first.readCertificate(t, r.Ref); !have.Delivered {
		t.Errorf("the certificate of the other server is %+v", have)
	}
	s := first.enrollNew(t)
	if have := second.readCertificate(t, s.Ref); !have.Delivered {
		t.Errorf("the certificate of the other server is %+v", have)
	}
	_, err := second.Journal.Write(context.Background(), second.epoch, []ca.BatchCommit{{Intent: intent, At: second.now}}, nil)
	if err == nil {
		t.Error("a server committed the intent of another one, which is not fenced")
	}
	mustEqual(t, "the log", len(first.entries(t)), len(second.sequenced(t)))
}

func fencedAfterLease(t *testing.T, first, second *world) {
	ctx := context.Background()
	r := first.enrollment(t, first.register(t))
	intent := first.writeIntent(t, r)
	waitForLease()
	second.mustSeeEnd(t, true)
	left, err := second.Journal.TakeOver(ctx, second.epoch)
	must(t, err)
	mustEqual(t, "the number of pending intents", len(left), 1)
	mustEqual(t, "the batch", left[0].Batch, intent.Batch)
	_, err = first.Journal.Write(ctx, first.epoch, []ca.BatchCommit{{Intent: intent, Records: []ca.Record{r}, At: first.now}}, nil)
	mustBeFenced(t, err)
	if errors.Is(err, ca.ErrReplaced) {
		t.Errorf("the error of a server whose lease has ended is %v", err)
	}
	_, err = first.Journal.Applied(ctx, first.epoch, intent.Batch)
	mustBeFenced(t, err)
	_, err = first.Journal.Renew(ctx, first.epoch)
	mustBeFenced(t, err)
	_, err = second.Journal.Write(ctx, second.epoch, []ca.BatchCommit{{Intent: left[0], At: second.now}}, nil)
	must(t, err)
	if have := second.readCertificate(t, r.Ref); have.Delivered || have.Status.State != pki.Revoked {
		t.Errorf("the certificate that was not delivered is %+v", have)
	}
	second.mustSeeEnd(t, false)
	left, err = second.Journal.TakeOver(ctx, second.epoch)
	must(t, err)
	mustEqual(t, "the number of intents that are left", len(left), 0)
	_, err = first.Journal.TakeOver(ctx, first.epoch)
	mustBeFenced(t, err)
}

func fencedBeginsAgain(t *testing.T, first, second *world) {
	process := first.epoch
	waitForLease()
	second.fenceOthers(t)
	epoch, left, err := first.Journal.BeginAgain(context.Background(), process)
	must(t, err)
	mustEqual(t, "the number of pending intents", len(left), 0)
	if epoch <= second.epoch {
		t.Errorf("the epoch %d follows the epoch %d", epoch, second.epoch)
	}
	first.epoch = epoch
	first.enrollNew(t)
	second.enrollNew(t)
}

func leaseIsRenewed(t *testing.T, first, second *world) {
	r := first.enrollment(t, first.register(t))
	intent := first.writeIntent(t, r)
	for range 5 {
		time.Sleep(ca.Lease / 3)
		for _, w := range []*world{first, second} {
			w.mustSeeEnd(t, false)
		}
	}
	must(t, first.commitBatch(t, intent, r)[0])
}

// feedHasOpenBulk has one server create a bulk revocation, and change no record. The feed of the other one must have the new
// statuses, and keep them when the records are changed.
func feedHasOpenBulk(t *testing.T, first, second *world) {
	records := first.issueLabelled(t, 5)
	all := follow(t, first, second, statuses{}, 0)
	bulk, _, err := first.Revocation.CreateBulk(context.Background(), first.bulkByLabel("7", pki.Superseded))
	must(t, err)
	after := first.issueCertificates(t, records[0].Identity, 1)
	all = follow(t, first, second, all.known, all.index)
	want := pki.Status{State: pki.Revoked, Reason: pki.Superseded, RevokedAt: first.now, Version: 2}
	for _, r := range records {
		mustEqual(t, "the status", all.known[r.Ref].Status, want)
	}
	mustEqual(t, "the status of a later certificate", all.known[after[0].Ref].Status, pki.Status{State: pki.Good, Version: 1})
	first.applyBulk(t, bulk.ID)
	all = follow(t, first, second, all.known, all.index)
	now, _ := second.snapshot(t, second.now)
	mustEqual(t, "the statuses at the end", all.known, now)
}

// feedHasOpenHold suspends and resumes an identity with too many certificates for one transaction.
func feedHasOpenHold(t *testing.T, first, second *world) {
	records := first.issueCertificates(t, first.register(t).ID, 130)
	all := follow(t, first, second, statuses{}, 0)
	for _, step := range []struct {
		action revocation.Action
		to     pki.IdentityState
		want   pki.State
	}{{hold, pki.Suspended, pki.Hold}, {unhold, pki.Enrolled, pki.Good}} {
		out, err := first.Revocation.Apply(context.Background(), revocation.Change{
			Action: step.action, Identity: records[0].Identity, State: step.to, Actor: operator, At: first.now,
		})
		must(t, err)
		if out.BulkRevocation == 0 {
			t.Fatal("the change created no bulk revocation")
		}
		all = follow(t, first, second, all.known, all.index)
		for _, r := range records {
			mustEqual(t, "the state", all.known[r.Ref].Status.State, step.want)
		}
	}
}

// followed has the statuses that a responder has read from a feed.
type followed struct {
	known statuses
	index uint64
}

// follow has the leader sequence the log, and reads the changes after an index at another server.
func follow(t *testing.T, leader, w *world, known statuses, index uint64) followed {
	t.Helper()
	leader.sequence(t)
	changes, last := w.changes(t, index, 1000)
	for _, c := range changes {
		known.keepNewer(c)
	}
	return followed{known, last}
}

// intentOutlivesTakeOver loses the result of a takeover, as an error of its COMMIT does. The next epoch must get the intent.
func intentOutlivesTakeOver(t *testing.T, first, second *world) {
	intent := first.writeIntent(t, first.enrollment(t, first.register(t)))
	own := second.writeIntent(t, second.record(t, second.register(t).ID))
	waitForLease()
	second.fenceOthers(t)
	epoch, left, err := second.Journal.BeginAgain(context.Background(), second.epoch)
	must(t, err)
	mustEqual(t, "the pending intents", inOrder(left), inOrder([]ca.Intent{intent, own}))
	second.epoch = epoch
	second.commitBatch(t, intent)
	second.commitBatch(t, own)
}

// olderStaysReplaced has a newer process of a server begin and lose its epoch. The older process, which stood still meanwhile,
// must not begin again.
func olderStaysReplaced(t *testing.T, first, second *world) {
	ctx := context.Background()
	older := first.epoch
	first.begin(t)
	waitForLease()
	second.fenceOthers(t)
	_, err := first.Journal.Renew(ctx, first.epoch)
	mustBeFenced(t, err)
	if errors.Is(err, ca.ErrReplaced) {
		t.Errorf("the error of the newer process is %v", err)
	}
	for name, err := range map[string]error{
		"Renew":      func() error { _, err := first.Journal.Renew(ctx, older); return err }(),
		"Write":      func() error { _, err := first.Journal.Write(ctx, older, nil, nil); return err }(),
		"BeginAgain": func() error { _, _, err := first.Journal.BeginAgain(ctx, older); return err }(),
	} {
		if !errors.Is(err, ca.ErrReplaced) {
			t.Errorf("%s of the older process: %v", name, err)
		}
	}
	newer := first.epoch
	for range 2 { // the second call is that after an error of COMMIT
		epoch, _, err := first.Journal.BeginAgain(ctx, newer)
		must(t, err)
		first.epoch = epoch
	}
	first.enrollNew(t)
}

// mustSeeEnd renews the lease, and fails unless the result is as wanted.
func (w *world) mustSeeEnd(t *testing.T, want bool) {
	t.Helper()
	hasEnded, err := w.Journal.Renew(context.Background(), w.epoch)
	must(t, err)
	mustEqual(t, "that the lease of another server has ended", hasEnded, want)
}

// fenceOthers fences the servers whose lease has ended.
func (w *world) fenceOthers(t *testing.T) {
	t.Helper()
	w.mustSeeEnd(t, true)
	_, err := w.Journal.TakeOver(context.Background(), w.epoch)
	must(t, err)
}
