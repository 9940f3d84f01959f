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

// epochStart is the time at which the tests begin. A store has no clock, so no test waits.
var epochStart = time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)

// operator is an actor that needs no authorization. The authorization of callers is tested in callers.go.
var operator = pki.ActorCommand("storetest")

// These are the identifiers of CAs. A store does not need their certificates.
var (
	issuerA       = pki.IssuerOf(&x509.Certificate{RawSubject: []byte("CN=Issuing CA A")})
	issuerB       = pki.IssuerOf(&x509.Certificate{RawSubject: []byte("CN=Issuing CA B")})
	issuerUnknown = pki.IssuerOf(&x509.Certificate{RawSubject: []byte("CN=Unknown")})
)

// world is a store with an open epoch of its journal, and the time of the test. Its methods generate distinct
// identities, keys and certificates.
type world struct {
	Store
	epoch       ca.Epoch
	now         time.Time
	uniqueCount uint64
}

func newWorld(t testing.TB, s Store) *world {
	t.Helper()
	w := &world{Store: s, now: epochStart}
	w.begin(t)
	return w
}

// begin opens a new epoch of the journal and returns the pending intents.
func (w *world) begin(t rapid.TB) []ca.Intent {
	t.Helper()
	epoch, pending, err := w.Journal.Begin(context.Background())
	must(t, err)
	w.epoch = epoch
	return pending
}

// reopen opens the store again as a new process, with an epoch of its own.
func (w *world) reopen(t *testing.T) {
	t.Helper()
	w.Store = w.Reopen(t)
	w.begin(t)
}

// close closes the store before the test ends, if its engine allows that.
func (w *world) close(t testing.TB) {
	t.Helper()
	if w.Close != nil {
		w.Close(t)
	}
}

// unique returns 32 bytes that are different at each call.
func (w *world) unique() [32]byte {
	w.uniqueCount++
	return sha256.Sum256(binary.BigEndian.AppendUint64(nil, w.uniqueCount))
}

func (w *world) serial(t rapid.TB) pki.Serial {
	t.Helper()
	b := w.unique()
	at := epochStart.Add(time.Duration(b[31]) * time.Minute) // a store does not read the time in a serial number
	s, err := pki.MakeSerial(at, [pki.SerialRandomSize]byte(b[:]))
	must(t, err)
	return s
}

func (w *world) key() pki.KeyHash {
	b := w.unique()
	return pki.HashSPKI(b[:])
}

func (w *world) requestID(t rapid.TB) pki.RequestID {
	t.Helper()
	b := w.unique()
	id, err := pki.RequestIDFromBytes(b[:16])
	must(t, err)
	return id
}

// register registers a new device.
func (w *world) register(t rapid.TB) ra.Identity {
	t.Helper()
	id, err := w.RA.CreateIdentity(context.Background(), ra.Registration{Identity: w.newIdentity(t)}, operator)
	must(t, err)
	return id
}

func (w *world) newIdentity(t rapid.TB) ra.Identity {
	t.Helper()
	b := w.unique()
	id, err := pki.ParseSPIFFEID(fmt.Sprintf("spiffe://fleet.example/device/%x", b[:8]))
	must(t, err)
	return ra.Identity{ID: id, Kind: pki.Device, Profile: "device", CreatedAt: w.now}
}

func (w *world) storeToken(t rapid.TB, token ra.Token) {
	t.Helper()
	_, err := w.RA.CreateToken(context.Background(), token)
	must(t, err)
}

// createToken creates a token for an identity, valid for an hour.
func (w *world) createToken(t rapid.TB, id pki.SPIFFEID) ra.Token {
	t.Helper()
	b := w.unique()
	tokenID, err := pki.TokenIDFromBytes(b[:])
	must(t, err)
	token := ra.Token{
		ID: tokenID, Identity: id, Profile: "device", ExpiresAt: w.now.Add(time.Hour), CreatedBy: operator, CreatedAt: w.now,
	}
	w.storeToken(t, token)
	return token
}

// record returns the record of a certificate for an identity, valid for an hour. Its only guard is the key.
func (w *world) record(t rapid.TB, id pki.SPIFFEID) ca.Record {
	t.Helper()
	r := ca.Record{
		Ref: pki.CertRef{Issuer: issuerA, Serial: w.serial(t)}, Identity: id, Profile: "device", KeyHash: w.key(),
		IssuedAt: w.now, NotBefore: w.now.Add(-time.Minute), NotAfter: w.now.Add(time.Hour), Partition: 7,
		RequestID: w.requestID(t), Actor: operator,
	}
	r.DER = []byte("certificate " + r.Ref.Serial.String())
	r.Guard = pki.Guard{Key: r.KeyHash}
	return r
}

// enrollment returns a record that enrolls the current revision of an identity.
func (w *world) enrollment(t rapid.TB, id ra.Identity) ca.Record {
	t.Helper()
	r := w.record(t, id.ID)
	r.Guard.Identity, r.Guard.Revision, r.Guard.Enrolls = id.ID, id.Revision, true
	return r
}

// itemOf returns the intent item of a record.
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

// writeIntent writes one intent with an item for each record.
func (w *world) writeIntent(t rapid.TB, records ...ca.Record) ca.Intent {
	t.Helper()
	intent := intentOf(records...)
	_, err := w.Journal.Write(context.Background(), w.epoch, nil, []ca.Intent{intent})
	must(t, err)
	return intent
}

// commitBatch commits one batch and returns the refusals of its records.
func (w *world) commitBatch(t rapid.TB, intent ca.Intent, records ...ca.Record) []error {
	t.Helper()
	var refusals []error
	for _, r := range w.results(t, intent, records...) {
		refusals = append(refusals, r.Refusal)
	}
	return refusals
}

// results commits one batch and returns its results.
func (w *world) results(t rapid.TB, intent ca.Intent, records ...ca.Record) ca.Results {
	t.Helper()
	results, err := w.Journal.Write(context.Background(), w.epoch, []ca.BatchCommit{{Intent: intent, Records: records, At: w.now}}, nil)
	must(t, err)
	if len(results) != 1 || len(results[0]) != len(records) {
		t.Fatalf("committing one batch of %d records returned %v", results, len(records))
	}
	return results[0]
}

// commit writes the intent of one record, commits the record and returns its refusal.
func (w *world) commit(t rapid.TB, r ca.Record) error {
	t.Helper()
	return w.commitBatch(t, w.writeIntent(t, r), r)[0]
}

// issue issues a record. The test fails if its guard refuses it.
func (w *world) issue(t rapid.TB, r ca.Record) ca.Record {
	t.Helper()
	must(t, w.commit(t, r))
	return r
}

// enrollNew registers a device and issues the certificate that enrolls it.
func (w *world) enrollNew(t rapid.TB) ca.Record {
	t.Helper()
	return w.issue(t, w.enrollment(t, w.register(t)))
}

// abandon writes the intent of a record and commits its batch without the record.
func (w *world) abandon(t rapid.TB) ca.Record {
	t.Helper()
	r := w.record(t, w.register(t).ID)
	w.commitBatch(t, w.writeIntent(t, r))
	return r
}

// need skips a test if the store lacks a part that it needs.
func need(t rapid.TB, has bool, part string) {
	t.Helper()
	if !has {
		t.Skipf("the store has no %s", part)
	}
}

// advanceAge advances the age of the records to the time of the test.
func (w *world) advanceAge(t rapid.TB) {
	t.Helper()
	need(t, w.Retention != nil, "retention")
	for range 2 { // the first call of an epoch does not advance it
		_, err := w.Retention.Advance(context.Background(), 365*24*time.Hour, w.now)
		must(t, err)
	}
}

// apply makes a change as operator. It checks that the returned statuses equal those on record, and returns the
// statuses that changed.
func (w *world) apply(t rapid.TB, change revocation.Change) []pki.StatusChange {
	t.Helper()
	before := map[pki.CertRef]pki.Status{}
	_, err := w.Feed.Snapshot(context.Background(), time.Time{}, func(c pki.StatusChange) error {
		before[c.Ref] = c.Status
		return nil
	})
	must(t, err)
	change.Actor, change.At = operator, w.now
	result, err := w.Statuses.Apply(context.Background(), change)
	must(t, err)
	var changed []pki.StatusChange
	for _, c := range result.All() {
		mustEqual(t, "the status", w.readCertificate(t, c.Ref).Status, c.Status)
		if before[c.Ref] != c.Status {
			changed = append(changed, c)
		}
	}
	return changed
}

func (w *world) readIdentity(t rapid.TB, id pki.SPIFFEID) ra.Identity {
	t.Helper()
	have, err := w.RA.Identity(context.Background(), id)
	must(t, err)
	return have
}

func (w *world) readCertificate(t rapid.TB, ref pki.CertRef) ra.Certificate {
	t.Helper()
	c, err := w.RA.Certificate(context.Background(), ref)
	must(t, err)
	return c
}

// sequence sequences all log entries.
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

// entries sequences the log and returns all entries.
func (w *world) entries(t rapid.TB) []translog.Entry {
	t.Helper()
	w.sequence(t)
	return w.sequenced(t)
}

// sequenced returns the entries that are sequenced.
func (w *world) sequenced(t rapid.TB) []translog.Entry {
	t.Helper()
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
		t.Fatalf("got the error %v, want a refusal with the rule %s", err, want)
	}
	if refusal.Rule != want {
		t.Fatalf("refused with the rule %s (%v), want %s", refusal.Rule, refusal, want)
	}
	if refusal.Detail == "" {
		t.Fatalf("the refusal with the rule %s has no detail", refusal.Rule)
	}
}

func mustNotFind(t rapid.TB, err error) {
	t.Helper()
	refusal, ok := pki.AsRefusal(err)
	if !ok || refusal.Rule.Class() != pki.NotFound {
		t.Fatalf("got the error %v, want a refusal of the class NotFound", err)
	}
}

func mustBeTemporary(t rapid.TB, err error) {
	t.Helper()
	if err == nil || !pki.IsTemporary(err) {
		t.Fatalf("got the error %v, want a temporary one", err)
	}
}

func mustBeFenced(t rapid.TB, err error) {
	t.Helper()
	if !errors.Is(err, ca.ErrFenced) {
		t.Fatalf("got the error %v, want one that wraps ca.ErrFenced", err)
	}
}

// mustEqual compares values. An empty slice or map equals nil.
func mustEqual[T any](t rapid.TB, what string, got, want T) {
	t.Helper()
	if diff := cmp.Diff(want, got, equateValues...); diff != "" {
		t.Fatalf("%s differs (- want, + got):\n%s", what, diff)
	}
}

var equateValues = []cmp.Option{
	cmpopts.EquateEmpty(),
	cmpopts.EquateComparable(pki.Serial{}, pki.IssuerID{}, pki.KeyHash{}, pki.RequestID{}, pki.TokenID{}, pki.SPIFFEID{}, pki.Actor{}, netip.Addr{}, netip.Prefix{}),
}
