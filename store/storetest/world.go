package storetest

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra"
	"github.com/brevet-pki/brevet/revocation"
	"github.com/brevet-pki/brevet/translog"
)

// epochStart is when the tests play: a store has no clock, so no test waits.
var epochStart = time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)

// operator stands for who may do everything: an actor that needs no authorization. What callers may do is tested by callers.
var operator = pki.ActorCommand("storetest")

// issuerA and issuerB are two CAs by name; no store asks to see them.
var (
	issuerA      = pki.IssuerOf(&x509.Certificate{RawSubject: []byte("CN=Issuing CA A")})
	issuerB      = pki.IssuerOf(&x509.Certificate{RawSubject: []byte("CN=Issuing CA B")})
	issuerNobody = pki.IssuerOf(&x509.Certificate{RawSubject: []byte("CN=Nobody")})
)

// world is a store with a journal that has begun, and a supply of things that are unlike each other.
type world struct {
	Store
	epoch ca.Epoch
	now   time.Time
	drawn uint64
}

func newWorld(t testing.TB, s Store) *world {
	t.Helper()
	w := &world{Store: s, now: epochStart}
	w.begin(t)
	return w
}

func (w *world) begin(t rapid.TB) []ca.Intent {
	t.Helper()
	epoch, left, err := w.Journal.Begin(context.Background())
	must(t, err)
	w.epoch = epoch
	return left
}

func (w *world) reopen(t *testing.T) {
	t.Helper()
	w.Store = w.Reopen(t)
}

// draw returns bytes that this world has not returned before.
func (w *world) draw() [32]byte {
	w.drawn++
	return sha256.Sum256(binary.BigEndian.AppendUint64(nil, w.drawn))
}

func (w *world) serial(t rapid.TB) pki.Serial {
	t.Helper()
	b := w.draw()
	at := epochStart.Add(time.Duration(b[31]) * time.Minute) // any: a store reads no time from serial numbers
	s, err := pki.MakeSerial(at, [pki.SerialRandomSize]byte(b[:]))
	must(t, err)
	return s
}

func (w *world) key() pki.KeyHash {
	b := w.draw()
	return pki.HashSPKI(b[:])
}

func (w *world) request(t rapid.TB) pki.RequestID {
	t.Helper()
	b := w.draw()
	id, err := pki.RequestIDFromBytes(b[:16])
	must(t, err)
	return id
}

// identity registers a new device.
func (w *world) identity(t rapid.TB) ra.Identity {
	t.Helper()
	id, err := w.RA.CreateIdentity(context.Background(), w.newIdentity(t), operator)
	must(t, err)
	return id
}

func (w *world) newIdentity(t rapid.TB) ra.Identity {
	t.Helper()
	b := w.draw()
	id, err := pki.ParseSPIFFEID(fmt.Sprintf("spiffe://fleet.example/device/%x", b[:8]))
	must(t, err)
	return ra.Identity{ID: id, Kind: pki.Device, Profile: "device", CreatedAt: w.now}
}

func (w *world) create(t rapid.TB, token ra.Token) {
	t.Helper()
	_, err := w.RA.CreateToken(context.Background(), token)
	must(t, err)
}

// token makes a token for an identity, which lives for an hour, bound to what a record will ask with.
func (w *world) token(t rapid.TB, id pki.SPIFFEID) ra.Token {
	t.Helper()
	b := w.draw()
	tokenID, err := pki.TokenIDFromBytes(b[:])
	must(t, err)
	token := ra.Token{
		ID: tokenID, Identity: id, Profile: "device", ExpiresAt: w.now.Add(time.Hour), CreatedBy: operator, CreatedAt: w.now,
	}
	w.create(t, token)
	return token
}

// record is a signed certificate for an identity, which lives for an hour, with the least of guards.
func (w *world) record(t rapid.TB, id pki.SPIFFEID) ca.Record {
	t.Helper()
	r := ca.Record{
		Ref: pki.CertRef{Issuer: issuerA, Serial: w.serial(t)}, Identity: id, Profile: "device", KeyHash: w.key(),
		IssuedAt: w.now, NotBefore: w.now.Add(-time.Minute), NotAfter: w.now.Add(time.Hour), Partition: 7,
		RequestID: w.request(t), Actor: operator,
	}
	r.DER = []byte("certificate " + r.Ref.Serial.String())
	r.Guard = pki.Guard{Key: r.KeyHash}
	return r
}

// enrollment is a record that enrolls an identity as it stands.
func (w *world) enrollment(t rapid.TB, id ra.Identity) ca.Record {
	t.Helper()
	r := w.record(t, id.ID)
	r.Guard.Identity, r.Guard.Revision, r.Guard.Enrolls = id.ID, id.Revision, true
	return r
}

// itemOf announces a record.
func itemOf(r ca.Record) ca.IntentItem {
	digest := sha256.Sum256(r.DER)
	return ca.IntentItem{Ref: r.Ref, Digest: digest[:], IssuedAt: r.IssuedAt, NotAfter: r.NotAfter, Partition: r.Partition}
}

func intentOf(records ...ca.Record) ca.Intent {
	intent := ca.Intent{Batch: ca.NewBatchID()}
	for _, r := range records {
		intent.Items = append(intent.Items, itemOf(r))
	}
	return intent
}

// announce makes an intent durable.
func (w *world) announce(t rapid.TB, records ...ca.Record) ca.Intent {
	t.Helper()
	intent := intentOf(records...)
	_, err := w.Journal.Write(context.Background(), w.epoch, nil, []ca.Intent{intent})
	must(t, err)
	return intent
}

// settle settles one batch and returns what refuses its records.
func (w *world) settle(t rapid.TB, intent ca.Intent, records ...ca.Record) []error {
	t.Helper()
	var refusals []error
	for _, v := range w.judge(t, intent, records...) {
		refusals = append(refusals, v.Refusal)
	}
	return refusals
}

// judge settles one batch and returns its verdicts.
func (w *world) judge(t rapid.TB, intent ca.Intent, records ...ca.Record) ca.Results {
	t.Helper()
	verdicts, err := w.Journal.Write(context.Background(), w.epoch, []ca.BatchCommit{{Intent: intent, Records: records, At: w.now}}, nil)
	must(t, err)
	if len(verdicts) != 1 || len(verdicts[0]) != len(records) {
		t.Fatalf("verdicts %v for one settlement of %d records", verdicts, len(records))
	}
	return verdicts[0]
}

// try announces and settles one record and returns its verdict.
func (w *world) try(t rapid.TB, r ca.Record) error {
	t.Helper()
	return w.settle(t, w.announce(t, r), r)[0]
}

// issue issues a record, which no guard may refuse.
func (w *world) issue(t rapid.TB, r ca.Record) ca.Record {
	t.Helper()
	must(t, w.try(t, r))
	return r
}

// issued registers an identity and issues one certificate that enrolls it.
func (w *world) issued(t rapid.TB) ca.Record {
	t.Helper()
	return w.issue(t, w.enrollment(t, w.identity(t)))
}

// abandon announces a record and settles its batch without it.
func (w *world) abandon(t rapid.TB) ca.Record {
	t.Helper()
	r := w.record(t, w.identity(t).ID)
	w.settle(t, w.announce(t, r))
	return r
}

// need skips a test whose part of the store is missing.
func need(t rapid.TB, has bool, part string) {
	t.Helper()
	if !has {
		t.Skipf("the store has no %s", part)
	}
}

// grow has the records be as old as the clock.
func (w *world) grow(t rapid.TB) {
	t.Helper()
	need(t, w.Retention != nil, "retention")
	_, err := w.Retention.Advance(context.Background(), 365*24*time.Hour, w.now)
	must(t, err)
}

// apply carries out an order, checks that what it returns is how things stand, and returns what of it has changed.
func (w *world) apply(t rapid.TB, o revocation.Change) []pki.StatusChange {
	t.Helper()
	before := map[pki.CertRef]pki.Status{}
	_, err := w.Feed.Snapshot(context.Background(), time.Time{}, func(c pki.StatusChange) error {
		before[c.Ref] = c.Status
		return nil
	})
	must(t, err)
	o.Actor, o.At = operator, w.now
	standing, err := w.Orders.Apply(context.Background(), o)
	must(t, err)
	var changed []pki.StatusChange
	for _, c := range standing.All() {
		mustEqual(t, "the status", w.certificate(t, c.Ref).Status, c.Status)
		if before[c.Ref] != c.Status {
			changed = append(changed, c)
		}
	}
	return changed
}

func (w *world) stateOf(t rapid.TB, id pki.SPIFFEID) ra.Identity {
	t.Helper()
	have, err := w.RA.Identity(context.Background(), id)
	must(t, err)
	return have
}

func (w *world) certificate(t rapid.TB, ref pki.CertRef) ra.Certificate {
	t.Helper()
	c, err := w.RA.Certificate(context.Background(), ref)
	must(t, err)
	return c
}

// sequence sequences all there is.
func (w *world) sequence(t rapid.TB) {
	t.Helper()
	for {
		batch, err := w.Log.Sequence(context.Background(), 100)
		must(t, err)
		if len(batch) == 0 {
			return
		}
	}
}

// entries sequences the log and returns all of it.
func (w *world) entries(t rapid.TB) []translog.Entry {
	t.Helper()
	w.sequence(t)
	var all []translog.Entry
	for from := uint64(1); ; {
		page, err := w.Log.Entries(context.Background(), from, 50)
		must(t, err)
		if len(page) == 0 {
			return all
		}
		for _, s := range page {
			e, err := translog.ParseEntry(s.Entry)
			must(t, err)
			all = append(all, e)
		}
		from = page[len(page)-1].Index + 1
	}
}

// lastEntry returns the newest entry of the log.
func (w *world) lastEntry(t rapid.TB) translog.Entry {
	t.Helper()
	all := w.entries(t)
	if len(all) == 0 {
		t.Fatalf("the log is empty")
	}
	return all[len(all)-1]
}

func must(t rapid.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatalf("unexpected error: %v", err)
	}
}

func mustRefuse(t rapid.TB, err error, want pki.Rule) {
	t.Helper()
	refusal, ok := pki.AsRefusal(err)
	if !ok {
		t.Fatalf("got the error %v, want a refusal by %s", err, want)
	}
	if refusal.Rule != want {
		t.Fatalf("refused by %s (%v), want %s", refusal.Rule, refusal, want)
	}
	if refusal.Detail == "" {
		t.Fatalf("the refusal by %s has no detail", refusal.Rule)
	}
}

func mustMiss(t rapid.TB, err error) {
	t.Helper()
	refusal, ok := pki.AsRefusal(err)
	if !ok || refusal.Rule.Class() != pki.NotFound {
		t.Fatalf("got the error %v, want a refusal of the class Missing", err)
	}
}

func mustPass(t rapid.TB, err error) {
	t.Helper()
	if err == nil || !pki.IsTemporary(err) {
		t.Fatalf("got the error %v, want a Temporary one", err)
	}
}

func mustFence(t rapid.TB, err error) {
	t.Helper()
	if !errors.Is(err, ca.ErrFenced) {
		t.Fatalf("got the error %v, want one that wraps ca.ErrFenced", err)
	}
}

// mustEqual compares values; a slice or map without elements equals none.
func mustEqual[T any](t rapid.TB, what string, got, want T) {
	t.Helper()
	if diff := cmp.Diff(want, got, values...); diff != "" {
		t.Fatalf("%s is not what it should be (- want, + got):\n%s", what, diff)
	}
}

var values = []cmp.Option{
	cmpopts.EquateEmpty(),
	cmpopts.EquateComparable(pki.Serial{}, pki.IssuerID{}, pki.KeyHash{}, pki.RequestID{}, pki.TokenID{}, pki.SPIFFEID{}, pki.Actor{}, netip.Addr{}),
}
