package storetest

import (
	"context"
	"maps"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra"
	"github.com/brevet-pki/brevet/revocation"
	"github.com/brevet-pki/brevet/revocation/crl"
	"github.com/brevet-pki/brevet/store/retention"
	"github.com/brevet-pki/brevet/translog"
)

const tenYears = 10 * 365 * 24 * time.Hour

func testRetention(t *testing.T, open func(t *testing.T) Store) {
	each(t, open, map[string]func(t *testing.T, w *world){
		"expired certificates": expiredAreRemoved, "mixed lifetimes": mixedLifetimes,
		"revoked certificates": revokedStayUntilCRL, "revoked certificates with partitions": revokedStayUntilAllCRLs,
		"keys": keysAreRemoved, "tokens": tokensAreRemoved, "clock ahead": clockAheadRemovesNothing, "age": ageAdvances,
		"lost commit": lostRetentionStep, "census": census,
	})
}

// passTime moves the time of the test, and writes a log entry at the new time.
func (w *world) passTime(t testing.TB, d time.Duration) {
	t.Helper()
	w.now = w.now.Add(d)
	id := w.newIdentity(t)
	_, err := w.RA.CreateIdentity(context.Background(), ra.Registration{Identity: id}, operator)
	must(t, err)
}

// sweep takes steps of at most limit records until none remain to be examined. It returns the numbers of removed
// records.
func (w *world) sweep(t testing.TB, before time.Time, limit int) retention.Expired {
	t.Helper()
	var all retention.Expired
	step := retention.Step{Before: before, At: w.now, Limit: limit}
	for {
		e, err := w.Retention.Expire(context.Background(), step)
		must(t, err)
		if e.Certificates > limit || e.Tokens > limit {
			t.Fatalf("a step of at most %d removed %+v", limit, e)
		}
		all.Certificates, all.Tokens, all.Keys = all.Certificates+e.Certificates, all.Tokens+e.Tokens, all.Keys+e.Keys
		step.After = e.Next
		if !e.More {
			return all
		}
	}
}

// recordValidFor returns a record with the given lifetime.
func (w *world) recordValidFor(t testing.TB, id pki.SPIFFEID, d time.Duration) ca.Record {
	t.Helper()
	r := w.record(t, id)
	r.NotAfter = w.now.Add(d)
	return r
}

func (w *world) mustBeRemoved(t testing.TB, refs ...pki.CertRef) {
	t.Helper()
	for _, ref := range refs {
		_, err := w.RA.Certificate(context.Background(), ref)
		mustNotFind(t, err)
	}
}

// publishCRL records a new complete CRL.
func (w *world) publishCRL(t *testing.T) {
	t.Helper()
	w.publishPartition(t, 0, false)
}

// publishPartition records a new CRL or delta CRL of a partition.
func (w *world) publishPartition(t *testing.T, partition uint16, delta bool) {
	t.Helper()
	n := w.takeNumber(t, issuerA)
	must(t, w.CRLs.PutCRLs(context.Background(), []crl.CRL{{
		Issuer: issuerA, Partition: partition, Delta: delta, Number: n, ThisUpdate: w.now, NextUpdate: w.now.Add(time.Hour),
		Base: crl.Base{Number: n, ThisUpdate: w.now},
	}}, operator, w.now))
}

// revokedStayUntilAllCRLs checks that an expired, revoked certificate stays until a complete CRL and a CRL of its
// partition were published after its expiry (RFC 5280 section 3.3).
func revokedStayUntilAllCRLs(t *testing.T, w *world) {
	r := w.enrollNew(t) // in partition 7
	must(t, w.CRLs.PutPoints(context.Background(), []crl.Point{
		{Issuer: issuerA, Partition: 7, URL: "http://pki.example/7.crl"}, {Issuer: issuerA, Partition: 8, URL: "http://pki.example/8.crl"},
	}, w.now))
	w.apply(t, revocation.Change{Action: revoke, Reason: pki.Superseded, Certificate: r.Ref})
	w.publishPartition(t, 7, false) // before it expires
	w.passTime(t, 2*time.Hour)
	w.publishCRL(t)
	w.publishPartition(t, 7, true)
	mustEqual(t, "the records removed before the CRL of the partition", w.sweep(t, w.now, 1), retention.Expired{})
	w.publishPartition(t, 8, false)
	mustEqual(t, "the records removed after a CRL of another partition", w.sweep(t, w.now, 1), retention.Expired{})
	w.publishPartition(t, 7, false)
	mustEqual(t, "the records removed after the CRL of the partition", w.sweep(t, w.now, 1), retention.Expired{Certificates: 1, Keys: 1})
	w.mustBeRemoved(t, r.Ref)
}

func expiredAreRemoved(t *testing.T, w *world) {
	ctx := context.Background()
	first := w.enrollNew(t)
	second := w.issue(t, w.recordValidFor(t, first.Identity, 2*time.Hour))
	w.passTime(t, 3*time.Hour)
	before := len(w.entries(t))
	if e := w.sweep(t, first.NotAfter, 10); e != (retention.Expired{}) || len(w.entries(t)) != before {
		t.Errorf("with nothing to remove, the sweep removed %+v and wrote %d log entries", e, len(w.entries(t))-before)
	}
	e := w.sweep(t, first.NotAfter.Add(time.Second), 10)
	mustEqual(t, "the removed records", e, retention.Expired{Certificates: 1, Keys: 1})
	w.mustBeRemoved(t, first.Ref)
	w.readCertificate(t, second.Ref)
	entry := w.lastEntry(t)
	want := map[string]string{
		"certificates": "1", "tokens": "0", "keys": "1",
		"not_after_to": first.NotAfter.Format(time.RFC3339),
	}
	if entry.Action != translog.RecordsExpired || !entry.Time.Equal(w.now) || entry.Outcome != translog.Done || !maps.Equal(entry.Facts(), want) {
		t.Errorf("log entry %+v", entry)
	}
	mustEqual(t, "the records removed by a second sweep", w.sweep(t, first.NotAfter.Add(time.Second), 10), retention.Expired{})
	st, err := w.RA.IssuanceState(ctx, ra.IssuanceQuery{Identity: first.Identity, Request: first.RequestID, Key: first.KeyHash})
	must(t, err)
	if st.Prior != nil || st.KeyRefusal != nil {
		t.Errorf("the request of a removed certificate returns %v, its key is refused by %v", st.Prior, st.KeyRefusal)
	}
	w.reopen(t)
	w.mustBeRemoved(t, first.Ref)
	w.readCertificate(t, second.Ref)
	_, err = w.Retention.Expire(ctx, retention.Step{Before: w.now, At: w.now})
	mustRefuse(t, err, pki.RuleRequest)
}

// mixedLifetimes removes certificates with a lifetime of a minute among others with ten years, while more of both are
// issued.
func mixedLifetimes(t *testing.T, w *world) {
	const each, step = 60, 7
	id := w.enrollNew(t).Identity
	var short, long []pki.CertRef
	issueBoth := func() {
		s, l := w.issue(t, w.recordValidFor(t, id, time.Minute)), w.issue(t, w.recordValidFor(t, id, tenYears))
		short, long = append(short, s.Ref), append(long, l.Ref)
	}
	for range each {
		issueBoth()
	}
	w.passTime(t, 2*time.Hour)
	expired, before, at := slices.Clone(short), w.now.Add(-90*time.Minute), w.now
	var e retention.Expired
	together(
		func() {
			for range each {
				issueBoth()
			}
		},
		func() {
			s := retention.Step{Before: before, At: at, Limit: step}
			for {
				one, err := w.Retention.Expire(context.Background(), s)
				if err != nil {
					t.Errorf("a step: %v", err)
					return
				}
				e.Certificates += one.Certificates
				if s.After = one.Next; !one.More {
					return
				}
			}
		},
	)
	if e.Certificates != each {
		t.Errorf("%d certificates were removed, want %d", e.Certificates, each)
	}
	w.mustBeRemoved(t, expired...)
	for _, ref := range slices.Concat(long, short[each:]) {
		w.readCertificate(t, ref)
	}
	statuses, _ := w.snapshot(t, time.Time{})
	if n := len(statuses); n != 3*each+1 {
		t.Errorf("%d certificates are on record, want %d", n, 3*each+1)
	}
	var steps, counted int
	for _, entry := range w.entries(t) {
		if entry.Action == translog.RecordsExpired {
			n, err := strconv.Atoi(entry.Facts()["certificates"])
			must(t, err)
			steps, counted = steps+1, counted+n
		}
	}
	if counted != each || steps < each/step {
		t.Errorf("the log counts %d certificates in %d steps", counted, steps)
	}
}

func revokedStayUntilCRL(t *testing.T, w *world) {
	revoked, held, undelivered, good := w.enrollNew(t), w.enrollNew(t), w.abandon(t), w.enrollNew(t)
	w.apply(t, revocation.Change{Action: revoke, Reason: pki.Superseded, Certificate: revoked.Ref})
	w.apply(t, revocation.Change{Action: hold, Certificate: held.Ref})
	w.passTime(t, 59*time.Minute)
	w.publishCRL(t) // before they expire, so they must also be on a later CRL
	w.passTime(t, time.Hour)
	e := w.sweep(t, w.now, 1)
	mustEqual(t, "the records removed before the CRL", e, retention.Expired{Certificates: 1, Keys: 1})
	w.mustBeRemoved(t, good.Ref)
	for _, r := range []ca.Record{revoked, held, undelivered} {
		w.readCertificate(t, r.Ref)
	}
	mustEqual(t, "the number of entries of the next CRL", len(w.revokedEntries(t, issuerA, revoked.NotAfter)), 3)
	w.publishCRL(t)
	e = w.sweep(t, w.now, 2)
	mustEqual(t, "the records removed after the CRL", e, retention.Expired{Certificates: 3, Keys: 2})
	w.mustBeRemoved(t, revoked.Ref, held.Ref, undelivered.Ref)
}

func keysAreRemoved(t *testing.T, w *world) {
	ctx := context.Background()
	id, other := w.enrollNew(t).Identity, w.register(t)
	keyRefusal := func(r ca.Record, whose pki.SPIFFEID) *pki.Refusal {
		t.Helper()
		st, err := w.RA.IssuanceState(ctx, ra.IssuanceQuery{Identity: whose, Request: w.requestID(t), Key: r.KeyHash})
		must(t, err)
		return st.KeyRefusal
	}
	// short and long have the same key. long is renewed with a key whose certificate, next, expires earlier than long.
	short, long := w.recordValidFor(t, id, time.Minute), w.recordValidFor(t, id, tenYears)
	long.KeyHash, long.Guard.Key = short.KeyHash, short.KeyHash
	w.issue(t, short)
	w.issue(t, long)
	next := w.recordValidFor(t, id, time.Minute)
	next.Guard.Predecessor = long.Ref
	w.issue(t, next)
	compromised := w.issue(t, w.recordValidFor(t, id, time.Minute))
	w.apply(t, revocation.Change{Action: revoke, Reason: pki.KeyCompromise, Certificate: compromised.Ref})
	only := w.issue(t, w.recordValidFor(t, id, time.Minute))
	w.passTime(t, time.Hour/2)
	w.publishCRL(t)
	mustRefuse(t, keyRefusal(only, other.ID), pki.RuleKeyInUse)
	mustEqual(t, "the removed records", w.sweep(t, w.now, 3), retention.Expired{Certificates: 4, Keys: 1})
	w.mustBeRemoved(t, short.Ref, next.Ref, compromised.Ref, only.Ref)
	mustEqual(t, "the successor of the remaining certificate", w.readCertificate(t, long.Ref).Successor, next.KeyHash)
	mustEqual(t, "the key of the remaining certificate", w.readCertificate(t, long.Ref).KeyHash, short.KeyHash)
	mustRefuse(t, keyRefusal(short, other.ID), pki.RuleKeyInUse)
	mustRefuse(t, keyRefusal(next, other.ID), pki.RuleKeyInUse)
	mustRefuse(t, keyRefusal(compromised, id), pki.RuleKeyCompromised)
	if why := keyRefusal(only, other.ID); why != nil {
		t.Errorf("a key without certificates is refused: %v", why)
	}
	again := w.record(t, other.ID)
	again.KeyHash, again.Guard.Key = only.KeyHash, only.KeyHash
	w.issue(t, again)
	w.passTime(t, 2*tenYears)
	w.publishCRL(t)
	w.sweep(t, w.now, 100)
	mustRefuse(t, keyRefusal(compromised, id), pki.RuleKeyCompromised)
	for _, r := range []ca.Record{short, next, only} {
		if why := keyRefusal(r, w.register(t).ID); why != nil {
			t.Errorf("a key without certificates and renewals is refused: %v", why)
		}
	}
}

func tokensAreRemoved(t *testing.T, w *world) {
	ctx := context.Background()
	id := w.register(t)
	var old []pki.TokenID
	for range 5 {
		old = append(old, w.createToken(t, id.ID).ID)
	}
	r := w.enrollment(t, id)
	r.Guard.Token = old[0]
	_, err := w.RA.BindToken(ctx, old[0], ra.Binding{Request: r.RequestID, Key: r.KeyHash, At: w.now})
	must(t, err)
	w.issue(t, r)
	w.passTime(t, 30*time.Minute)
	young := w.createToken(t, id.ID)
	w.passTime(t, time.Hour)
	e := w.sweep(t, young.ExpiresAt, 2)
	mustEqual(t, "the number of removed tokens", e.Tokens, len(old))
	for _, token := range old {
		_, err := w.RA.Token(ctx, token)
		mustNotFind(t, err)
	}
	_, err = w.RA.Token(ctx, young.ID)
	must(t, err)
	mustEqual(t, "the identity", w.readIdentity(t, id.ID).State, pki.Enrolled)
}

// clockAheadRemovesNothing sweeps with a clock that is a year ahead. Only certificates that expired before the newest
// log entry may be removed.
func clockAheadRemovesNothing(t *testing.T, w *world) {
	none, err := w.Retention.Expire(context.Background(), retention.Step{Before: w.now, At: w.now, Limit: 10})
	must(t, err)
	mustEqual(t, "the records removed from an empty store", none, retention.Expired{})
	id := w.enrollNew(t).Identity
	short, long := w.issue(t, w.recordValidFor(t, id, time.Minute)), w.issue(t, w.recordValidFor(t, id, 30*24*time.Hour))
	w.passTime(t, 2*time.Minute)
	mustEqual(t, "the removed certificates", w.sweep(t, w.now.Add(365*24*time.Hour), 10).Certificates, 1)
	w.mustBeRemoved(t, short.Ref)
	w.readCertificate(t, long.Ref)
}

func ageAdvances(t *testing.T, w *world) {
	advance := func(by time.Duration, now time.Time) time.Time {
		t.Helper()
		age, err := w.Retention.Advance(context.Background(), by, now)
		must(t, err)
		return age
	}
	if age := advance(time.Hour, w.now); !age.IsZero() {
		t.Errorf("an empty store has the age %v", age)
	}
	w.register(t)
	start, year := w.now, 365*24*time.Hour
	mustEqual(t, "the first age", advance(0, start.Add(year)), start)
	mustEqual(t, "the age with a clock a year ahead", advance(time.Hour, start.Add(year)), start.Add(time.Hour))
	w.reopen(t)
	mustEqual(t, "the age after a restart", advance(0, start.Add(year)), start.Add(time.Hour))
	mustEqual(t, "the age with a clock a year behind", advance(time.Hour, start.Add(-year)), start.Add(-year))
	mustEqual(t, "the age after a clock that was behind", advance(0, start.Add(year)), start.Add(time.Hour))
	mustEqual(t, "the age with a correct clock", advance(time.Hour, start.Add(90*time.Minute)), start.Add(90*time.Minute))
}

// lostRetentionStep repeats a step whose commit failed, as the next sweep does.
func lostRetentionStep(t *testing.T, w *world) {
	for _, applies := range []bool{true, false} {
		id := w.enrollNew(t).Identity
		r := w.issue(t, w.recordValidFor(t, id, time.Minute))
		w.passTime(t, 2*time.Minute)
		step := retention.Step{Before: w.now, At: w.now, Limit: 10}
		w.LoseCommit(applies)
		_, err := w.Retention.Expire(context.Background(), step)
		mustBeTemporary(t, err)
		before := len(w.entries(t))
		e, err := w.Retention.Expire(context.Background(), step)
		must(t, err)
		w.mustBeRemoved(t, r.Ref)
		if removed := e.Certificates == 1; removed == applies || len(w.entries(t))-before != e.Certificates {
			t.Errorf("repeating a step whose commit failed (applied: %v) removed %+v", applies, e)
		}
	}
}

func census(t *testing.T, w *world) {
	ctx := context.Background()
	c, err := w.Retention.Census(ctx, w.now, w.now)
	must(t, err)
	if !c.OldestNotAfter.IsZero() || c.Good.N+c.Keys.N+c.LogEntries != 0 || c.Bytes == 0 {
		t.Errorf("an empty store has %+v", c)
	}
	good, held, revoked := w.enrollNew(t), w.enrollNew(t), w.enrollNew(t)
	short := w.issue(t, w.recordValidFor(t, good.Identity, time.Minute))
	w.issue(t, w.recordValidFor(t, good.Identity, 10*time.Minute))
	w.abandon(t)
	w.apply(t, revocation.Change{Action: hold, Certificate: held.Ref})
	w.apply(t, revocation.Change{Action: revoke, Reason: pki.KeyCompromise, Certificate: revoked.Ref})
	w.createToken(t, good.Identity)
	w.passTime(t, 30*time.Minute)
	c, err = w.Retention.Census(ctx, w.now, short.NotAfter.Add(time.Second))
	must(t, err)
	n := func(n uint64) retention.Count { return retention.Count{N: n} }
	want := retention.Census{
		Good: n(3), OnHold: n(1), Revoked: n(1), Unreleased: n(1), Unexpired: n(4), Expired: n(1), Waiting: n(1),
		OldestNotAfter: short.NotAfter, OpenTokens: n(1), Keys: n(5), CompromisedKeys: n(1),
		Identities: map[pki.IdentityState]retention.Count{pki.Registered: n(2), pki.Enrolled: n(3)},
		LogEntries: uint64(len(w.entries(t))), Bytes: c.Bytes, FreeBytes: c.FreeBytes,
	}
	mustEqual(t, "the census", c, want)
	waiting, err := w.Retention.Waiting(ctx, w.now, 100)
	must(t, err)
	mustEqual(t, "the number of waiting records", waiting, 2)
	waiting, err = w.Retention.Waiting(ctx, w.now, 1)
	must(t, err)
	mustEqual(t, "the number of waiting records, at most one", waiting, 1)
}
