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
		"what has ended leaves": endedLeaves, "a minute and ten years": mixedLifetimes, "revoked until the CRL after": revokedUntilCRL,
		"revoked until all CRLs after": revokedUntilAllCRLs,
		"keys":                         keysLeave, "tokens": tokensLeave, "never past the log": neverPastTheLog, "age": ageGrows, "a lost step": lostStep,
		"census": census,
	})
}

// pass lets time go by, and the log with it.
func (w *world) pass(t testing.TB, d time.Duration) {
	t.Helper()
	w.now = w.now.Add(d)
	id := w.newIdentity(t)
	_, err := w.RA.CreateIdentity(context.Background(), id, operator)
	must(t, err)
}

// sweep takes steps of a size until nothing is left to look at, and returns what left.
func (w *world) sweep(t testing.TB, before time.Time, limit int) retention.Expired {
	t.Helper()
	var all retention.Expired
	step := retention.Step{Before: before, At: w.now, Limit: limit}
	for {
		e, err := w.Retention.Expire(context.Background(), step)
		must(t, err)
		if e.Certificates > limit || e.Tokens > limit {
			t.Fatalf("a step of %d took %+v", limit, e)
		}
		all.Certificates, all.Tokens, all.Keys = all.Certificates+e.Certificates, all.Tokens+e.Tokens, all.Keys+e.Keys
		step.After = e.Next
		if !e.More {
			return all
		}
	}
}

// living is a record that lives as long as it is told.
func (w *world) living(t testing.TB, id pki.SPIFFEID, d time.Duration) ca.Record {
	t.Helper()
	r := w.record(t, id)
	r.NotAfter = w.now.Add(d)
	return r
}

func (w *world) mustBeGone(t testing.TB, refs ...pki.CertRef) {
	t.Helper()
	for _, ref := range refs {
		_, err := w.RA.Certificate(context.Background(), ref)
		mustMiss(t, err)
	}
}

func (w *world) publish(t *testing.T) {
	t.Helper()
	w.publishIn(t, 0, false)
}

// publishIn records a new CRL of a partition, or its delta.
func (w *world) publishIn(t *testing.T, partition uint16, delta bool) {
	t.Helper()
	n := w.number(t, issuerA)
	must(t, w.CRLs.PutCRLs(context.Background(), []crl.CRL{{
		Issuer: issuerA, Partition: partition, Delta: delta, Number: n, ThisUpdate: w.now, NextUpdate: w.now.Add(time.Hour),
		Base: crl.Base{Number: n, ThisUpdate: w.now},
	}}, operator, w.now))
}

// revokedUntilAllCRLs has a revoked certificate stay until it was in the CRL of its partition too.
func revokedUntilAllCRLs(t *testing.T, w *world) {
	r := w.issued(t) // in partition 7
	must(t, w.CRLs.PutPoints(context.Background(), []crl.Point{
		{Issuer: issuerA, Partition: 7, URL: "http://pki.example/7.crl"}, {Issuer: issuerA, Partition: 8, URL: "http://pki.example/8.crl"},
	}, w.now))
	w.apply(t, revocation.Change{Action: revoke, Reason: pki.Superseded, Certificate: r.Ref})
	w.publishIn(t, 7, false) // before its end
	w.pass(t, 2*time.Hour)
	w.publish(t)
	w.publishIn(t, 7, true)
	mustEqual(t, "what left before the partition's CRL", w.sweep(t, w.now, 1), retention.Expired{})
	w.publishIn(t, 8, false)
	mustEqual(t, "what left with another partition's", w.sweep(t, w.now, 1), retention.Expired{})
	w.publishIn(t, 7, false)
	mustEqual(t, "what left after it", w.sweep(t, w.now, 1), retention.Expired{Certificates: 1, Keys: 1})
	w.mustBeGone(t, r.Ref)
}

func endedLeaves(t *testing.T, w *world) {
	ctx := context.Background()
	first := w.issued(t)
	second := w.issue(t, w.living(t, first.Identity, 2*time.Hour))
	w.pass(t, 3*time.Hour)
	before := len(w.entries(t))
	if e := w.sweep(t, first.NotAfter, 10); e != (retention.Expired{}) || len(w.entries(t)) != before {
		t.Errorf("with nothing to leave, %+v left, and the log has %d entries more", e, len(w.entries(t))-before)
	}
	e := w.sweep(t, first.NotAfter.Add(time.Second), 10)
	mustEqual(t, "what left", e, retention.Expired{Certificates: 1, Keys: 1})
	w.mustBeGone(t, first.Ref)
	w.certificate(t, second.Ref)
	entry := w.lastEntry(t)
	want := map[string]string{
		"certificates": "1", "tokens": "0", "keys": "1",
		"not_after_to": first.NotAfter.Format(time.RFC3339),
	}
	if entry.Action != translog.RecordsExpired || !entry.Time.Equal(w.now) || entry.Outcome != translog.Done || !maps.Equal(entry.Facts(), want) {
		t.Errorf("log entry %+v", entry)
	}
	mustEqual(t, "what leaves twice", w.sweep(t, first.NotAfter.Add(time.Second), 10), retention.Expired{})
	st, err := w.RA.IssuanceState(ctx, ra.IssuanceQuery{Identity: first.Identity, Request: first.RequestID, Key: first.KeyHash})
	must(t, err)
	if st.Prior != nil || st.KeyRefusal != nil {
		t.Errorf("the request of a certificate that has left is answered with %v, its key refused by %v", st.Prior, st.KeyRefusal)
	}
	w.reopen(t)
	w.mustBeGone(t, first.Ref)
	w.certificate(t, second.Ref)
	_, err = w.Retention.Expire(ctx, retention.Step{Before: w.now, At: w.now})
	mustRefuse(t, err, pki.RuleRequest)
}

// mixedLifetimes has certificates of a minute between ones of ten years leave, while more of both are issued.
func mixedLifetimes(t *testing.T, w *world) {
	const each, step = 60, 7
	id := w.issued(t).Identity
	var short, long []pki.CertRef
	mixed := func() {
		s, l := w.issue(t, w.living(t, id, time.Minute)), w.issue(t, w.living(t, id, tenYears))
		short, long = append(short, s.Ref), append(long, l.Ref)
	}
	for range each {
		mixed()
	}
	w.pass(t, 2*time.Hour)
	expired, before, at := slices.Clone(short), w.now.Add(-90*time.Minute), w.now
	var e retention.Expired
	together(
		func() {
			for range each {
				mixed()
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
		t.Errorf("%d certificates left, want %d", e.Certificates, each)
	}
	w.mustBeGone(t, expired...)
	for _, ref := range slices.Concat(long, short[each:]) {
		w.certificate(t, ref)
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

func revokedUntilCRL(t *testing.T, w *world) {
	revoked, held, unreleased, good := w.issued(t), w.issued(t), w.abandon(t), w.issued(t)
	w.apply(t, revocation.Change{Action: revoke, Reason: pki.Superseded, Certificate: revoked.Ref})
	w.apply(t, revocation.Change{Action: hold, Certificate: held.Ref})
	w.pass(t, 59*time.Minute)
	w.publish(t) // before their end: they are on it, and have to be on another
	w.pass(t, time.Hour)
	e := w.sweep(t, w.now, 1)
	mustEqual(t, "what left before the CRL", e, retention.Expired{Certificates: 1, Keys: 1})
	w.mustBeGone(t, good.Ref)
	for _, r := range []ca.Record{revoked, held, unreleased} {
		w.certificate(t, r.Ref)
	}
	mustEqual(t, "what the next CRL has", len(w.revoked(t, issuerA, revoked.NotAfter)), 3)
	w.publish(t)
	e = w.sweep(t, w.now, 2)
	mustEqual(t, "what left after the CRL", e, retention.Expired{Certificates: 3, Keys: 2})
	w.mustBeGone(t, revoked.Ref, held.Ref, unreleased.Ref)
}

func keysLeave(t *testing.T, w *world) {
	ctx := context.Background()
	id, other := w.issued(t).Identity, w.identity(t)
	question := func(r ca.Record, whose pki.SPIFFEID) *pki.Refusal {
		t.Helper()
		st, err := w.RA.IssuanceState(ctx, ra.IssuanceQuery{Identity: whose, Request: w.request(t), Key: r.KeyHash})
		must(t, err)
		return st.KeyRefusal
	}
	// One key in two certificates, the second of which lives on; it was renewed with a key whose certificate ends first.
	short, long := w.living(t, id, time.Minute), w.living(t, id, tenYears)
	long.KeyHash, long.Guard.Key = short.KeyHash, short.KeyHash
	w.issue(t, short)
	w.issue(t, long)
	next := w.living(t, id, time.Minute)
	next.Guard.Predecessor = long.Ref
	w.issue(t, next)
	compromised := w.issue(t, w.living(t, id, time.Minute))
	w.apply(t, revocation.Change{Action: revoke, Reason: pki.KeyCompromise, Certificate: compromised.Ref})
	free := w.issue(t, w.living(t, id, time.Minute))
	w.pass(t, time.Hour/2)
	w.publish(t)
	mustRefuse(t, question(free, other.ID), pki.RuleKeyInUse)
	mustEqual(t, "what left", w.sweep(t, w.now, 3), retention.Expired{Certificates: 4, Keys: 1})
	w.mustBeGone(t, short.Ref, next.Ref, compromised.Ref, free.Ref)
	mustEqual(t, "the successor of the one that lives", w.certificate(t, long.Ref).Successor, next.KeyHash)
	mustEqual(t, "its key", w.certificate(t, long.Ref).KeyHash, short.KeyHash)
	mustRefuse(t, question(short, other.ID), pki.RuleKeyInUse)
	mustRefuse(t, question(next, other.ID), pki.RuleKeyInUse)
	mustRefuse(t, question(compromised, id), pki.RuleKeyCompromised)
	if why := question(free, other.ID); why != nil {
		t.Errorf("a key whose last certificate has left is refused: %v", why)
	}
	again := w.record(t, other.ID)
	again.KeyHash, again.Guard.Key = free.KeyHash, free.KeyHash
	w.issue(t, again)
	w.pass(t, 2*tenYears)
	w.publish(t)
	w.sweep(t, w.now, 100)
	mustRefuse(t, question(compromised, id), pki.RuleKeyCompromised)
	for _, r := range []ca.Record{short, next, free} {
		if why := question(r, w.identity(t).ID); why != nil {
			t.Errorf("a key that nothing names is refused: %v", why)
		}
	}
}

func tokensLeave(t *testing.T, w *world) {
	ctx := context.Background()
	id := w.identity(t)
	var old []pki.TokenID
	for range 5 {
		old = append(old, w.token(t, id.ID).ID)
	}
	r := w.enrollment(t, id)
	r.Guard.Token = old[0]
	_, err := w.RA.BindToken(ctx, old[0], r.RequestID, r.KeyHash, w.now)
	must(t, err)
	w.issue(t, r)
	w.pass(t, 30*time.Minute)
	young := w.token(t, id.ID)
	w.pass(t, time.Hour)
	e := w.sweep(t, young.ExpiresAt, 2)
	mustEqual(t, "the tokens that left", e.Tokens, len(old))
	for _, token := range old {
		_, err := w.RA.Token(ctx, token)
		mustMiss(t, err)
	}
	_, err = w.RA.Token(ctx, young.ID)
	must(t, err)
	mustEqual(t, "the identity", w.stateOf(t, id.ID).State, pki.Enrolled)
}

// neverPastTheLog asks with the time of a clock that is a year ahead.
func neverPastTheLog(t *testing.T, w *world) {
	none, err := w.Retention.Expire(context.Background(), retention.Step{Before: w.now, At: w.now, Limit: 10})
	must(t, err)
	mustEqual(t, "what left an empty store", none, retention.Expired{})
	id := w.issued(t).Identity
	short, long := w.issue(t, w.living(t, id, time.Minute)), w.issue(t, w.living(t, id, 30*24*time.Hour))
	w.pass(t, 2*time.Minute)
	mustEqual(t, "what left", w.sweep(t, w.now.Add(365*24*time.Hour), 10).Certificates, 1)
	w.mustBeGone(t, short.Ref)
	w.certificate(t, long.Ref)
}

func ageGrows(t *testing.T, w *world) {
	advance := func(by time.Duration, now time.Time) time.Time {
		t.Helper()
		age, err := w.Retention.Advance(context.Background(), by, now)
		must(t, err)
		return age
	}
	if age := advance(time.Hour, w.now); !age.IsZero() {
		t.Errorf("a store in which nothing has happened is of the age %v", age)
	}
	w.identity(t)
	start, year := w.now, 365*24*time.Hour
	mustEqual(t, "the age at first", advance(0, start.Add(year)), start)
	mustEqual(t, "the age under a clock a year ahead", advance(time.Hour, start.Add(year)), start.Add(time.Hour))
	w.reopen(t)
	mustEqual(t, "the age after a restart", advance(0, start.Add(year)), start.Add(time.Hour))
	mustEqual(t, "the age under a clock a year behind", advance(time.Hour, start.Add(-year)), start.Add(-year))
	mustEqual(t, "the age after that", advance(0, start.Add(year)), start.Add(time.Hour))
	mustEqual(t, "the age under a right clock", advance(time.Hour, start.Add(90*time.Minute)), start.Add(90*time.Minute))
}

// lostStep repeats a step whose commit was lost, as the next sweep does.
func lostStep(t *testing.T, w *world) {
	for _, applies := range []bool{true, false} {
		id := w.issued(t).Identity
		r := w.issue(t, w.living(t, id, time.Minute))
		w.pass(t, 2*time.Minute)
		step := retention.Step{Before: w.now, At: w.now, Limit: 10}
		w.LoseCommit(applies)
		_, err := w.Retention.Expire(context.Background(), step)
		mustPass(t, err)
		before := len(w.entries(t))
		e, err := w.Retention.Expire(context.Background(), step)
		must(t, err)
		w.mustBeGone(t, r.Ref)
		if left := e.Certificates == 1; left == applies || len(w.entries(t))-before != e.Certificates {
			t.Errorf("a step whose commit was lost (applied: %v) and was repeated took %+v", applies, e)
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
	good, held, revoked := w.issued(t), w.issued(t), w.issued(t)
	short := w.issue(t, w.living(t, good.Identity, time.Minute))
	w.issue(t, w.living(t, good.Identity, 10*time.Minute))
	w.abandon(t)
	w.apply(t, revocation.Change{Action: hold, Certificate: held.Ref})
	w.apply(t, revocation.Change{Action: revoke, Reason: pki.KeyCompromise, Certificate: revoked.Ref})
	w.token(t, good.Identity)
	w.pass(t, 30*time.Minute)
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
	mustEqual(t, "what waits", waiting, 2)
	waiting, err = w.Retention.Waiting(ctx, w.now, 1)
	must(t, err)
	mustEqual(t, "what waits, of one at most", waiting, 1)
}
