package tables_test

import (
	"bytes"
	"context"
	"fmt"
	"math/big"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/revocation"
	"github.com/brevet-pki/brevet/revocation/crl"
	"github.com/brevet-pki/brevet/store/tables"
	"pgregory.net/rapid"
)

// listed is what a view lists, held to ascending serial numbers within a partition and to yielding the same twice.
func listed(t rapid.TB, db *tables.DB, l crl.Listing) (all []crl.Entry) {
	t.Helper()
	err := db.Revocation().View(context.Background(), issuer, func(v crl.View) error {
		for e, err := range v.Entries(l) {
			if err != nil {
				return err
			}
			all = append(all, e)
		}
		n := 0
		for e, err := range v.Entries(l) {
			if err != nil || n >= len(all) || e != all[n] {
				return fmt.Errorf("the second pass differs at %d: %v, %w", n, e, err)
			}
			n++
		}
		if n != len(all) {
			return fmt.Errorf("the second pass has %d entries, and the first one %d", n, len(all))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func bySerial(a, b crl.Entry) int { return bytes.Compare(a.Serial.Bytes(), b.Serial.Bytes()) }

// packWorld is a store whose certificates change their statuses, and what of that CRLs have to list.
type packWorld struct {
	*mill
	id   pki.SPIFFEID
	all  []ca.Record
	want map[pki.Serial]crl.Entry
}

func newPackWorld(t *testing.T, open opener, partitions int) *packWorld {
	t.Helper()
	w := &packWorld{mill: newMillOn(t, open(t)), want: map[pki.Serial]crl.Entry{}}
	w.id = w.identity(1)
	w.partitions = partitions
	return w
}

func (w *packWorld) issueMore(n int) {
	ids := make([]pki.SPIFFEID, n)
	for i := range ids {
		ids[i] = w.id
	}
	w.all = append(w.all, w.issue(ids, nil)...)
}

func (w *packWorld) order(t rapid.TB, r ca.Record, action revocation.Action, reason pki.Reason) {
	t.Helper()
	changes, err := w.db.Revocation().Apply(context.Background(), revocation.Change{
		Action: action, Reason: reason, Certificate: r.Ref, Actor: pki.ActorCommand("test"), At: w.at,
	})
	if _, refused := pki.AsRefusal(err); err != nil && !refused {
		t.Fatal(err)
	}
	for _, c := range changes.All() {
		delete(w.want, c.Ref.Serial)
		if c.Status.State != pki.Good {
			w.want[c.Ref.Serial] = crl.Entry{Serial: c.Ref.Serial, RevokedAt: c.Status.RevokedAt, Reason: c.Status.Reason}
		}
	}
}

// check holds what the store lists, all together and by partitions, against what was done.
func (w *packWorld) check(t rapid.TB, notExpiredAt time.Time) {
	t.Helper()
	var want []crl.Entry
	partition := map[pki.Serial]uint16{}
	for _, r := range w.all {
		partition[r.Ref.Serial] = r.Partition
		if e, ok := w.want[r.Ref.Serial]; ok && !r.NotAfter.Before(notExpiredAt) {
			want = append(want, e)
		}
	}
	slices.SortFunc(want, bySerial)
	got := listed(t, w.db, crl.Listing{NotExpiredAt: notExpiredAt})
	slices.SortFunc(got, bySerial)
	if !slices.Equal(got, want) {
		t.Fatalf("all together %d are listed, want %d", len(got), len(want))
	}
	for p := range uint16(w.partitions) {
		if p == 0 {
			continue
		}
		part := slices.DeleteFunc(slices.Clone(want), func(e crl.Entry) bool { return partition[e.Serial] != p })
		if got := listed(t, w.db, crl.Listing{Partition: p, NotExpiredAt: notExpiredAt}); !slices.Equal(got, part) {
			t.Fatalf("%d are listed of partition %d, want %d, in the order of serial numbers", len(got), p, len(part))
		}
	}
}

func (w *packWorld) pack(t rapid.TB) {
	t.Helper()
	if err := w.db.Revocation().Compact(context.Background(), issuer); err != nil {
		t.Fatal(err)
	}
}

// segments returns the number of segments and of their records, and the number of records in the longest one.
func (w *packWorld) segments(t *testing.T) (segments, records, longest int) {
	t.Helper()
	err := w.db.OnReader(context.Background(), `
		SELECT count(*), CAST(coalesce(sum(length(entries)), 0) / 39 AS BIGINT), coalesce(max(length(entries)), 0) / 39 FROM crl_segments`,
		&segments, &records, &longest)
	if err != nil {
		t.Fatal(err)
	}
	return segments, records, longest
}

// TestPackedOrNot plays random histories of changes, packing, lost segments and ends, and compares with what was done.
func TestPackedOrNot(t *testing.T) { onEngines(t, packedOrNot) }

func packedOrNot(t *testing.T, open opener) {
	w := newPackWorld(t, open, 3)
	w.db.PackSmall(8)
	w.issueMore(100)
	rapid.Check(t, func(r *rapid.T) {
		for range rapid.IntRange(1, 4).Draw(r, "steps") {
			switch rapid.IntRange(0, 7).Draw(r, "step") {
			case 0:
				w.issueMore(rapid.IntRange(1, 20).Draw(r, "more"))
			case 1, 2, 3:
				action := rapid.SampledFrom([]revocation.Action{revocation.Revoke, revocation.Hold, revocation.Unhold}).Draw(r, "action")
				for range rapid.IntRange(1, 6).Draw(r, "orders") {
					reason := pki.Unspecified
					if action == revocation.Revoke {
						reason = rapid.SampledFrom([]pki.Reason{pki.Superseded, pki.KeyCompromise}).Draw(r, "reason")
					}
					w.order(r, rapid.SampledFrom(w.all).Draw(r, "certificate"), action, reason)
				}
			case 4, 5:
				w.pack(r)
			case 6:
				if rapid.IntRange(0, 9).Draw(r, "lose") == 0 {
					for _, table := range []string{"crl_packed", "crl_segments"} {
						if err := w.db.OnWriter(context.Background(), "DELETE FROM "+table); err != nil {
							r.Fatal(err)
						}
					}
				}
			case 7:
				w.at = w.at.Add(time.Duration(rapid.IntRange(0, 3).Draw(r, "hours")) * time.Hour)
			}
		}
		w.check(r, w.at)
	})
	w.pack(t)
	w.check(t, w.at)
	if segments, packed, _ := w.segments(t); segments < 3 || packed == 0 {
		t.Errorf("%d segments with %d records are left: packing was not tried", segments, packed)
	}
}

// TestSegmentsAreBoundedAndShrink revokes many certificates with random serial numbers. Segments must have a maximum size, and
// be removed when the certificates have expired.
func TestSegmentsAreBoundedAndShrink(t *testing.T) { onEngines(t, segmentsAreBoundedAndShrink) }

func segmentsAreBoundedAndShrink(t *testing.T, open opener) {
	const many = 3000
	w := newPackWorld(t, open, 1)
	w.db.PackSmall(100)
	for range many / 500 {
		w.issueMore(500)
	}
	noise := rand.New(rand.NewPCG(1, 2))
	noise.Shuffle(len(w.all), func(i, j int) { w.all[i], w.all[j] = w.all[j], w.all[i] })
	for i, r := range w.all {
		w.order(t, r, revocation.Revoke, pki.Superseded)
		if i%900 == 899 {
			w.pack(t)
			w.check(t, w.at)
		}
	}
	w.pack(t)
	if segments, records, longest := w.segments(t); records < many*9/10 || longest > 100 || segments > many/40 {
		t.Errorf("%d records are packed in %d segments of %d at most", records, segments, longest)
	}
	end := w.all[0].NotAfter
	for n, at := range []time.Time{end, end.Add(time.Hour)} { // in the last second of their validity, and after it
		number, err := w.db.Revocation().TakeNumber(context.Background(), issuer, at)
		if err != nil {
			t.Fatal(err)
		}
		err = w.db.Revocation().PutCRLs(context.Background(), []crl.CRL{{Issuer: issuer, Number: number, ThisUpdate: at, NextUpdate: at.Add(time.Hour)}}, pki.ActorCommand("test"), at)
		if err != nil {
			t.Fatal(err)
		}
		w.pack(t)
		if _, records, _ := w.segments(t); (records == 0) != (n == 1) {
			t.Errorf("%d records are packed once a CRL of %v is out, and all end at %v", records, at, end)
		}
	}
	w.check(t, end.Add(time.Second))
}

// TestNoPartitionOutgrowsPacking checks that the number of changes that triggers packing never exceeds the number it reads.
func TestNoPartitionOutgrowsPacking(t *testing.T) {
	db := mustOpen(t, filepath.Join(t.TempDir(), "brevet.db"))
	last := 0
	for packed := 1; packed < 1<<40; packed *= 2 {
		worth, looked := db.WorthPacking(packed)
		if worth < last || worth > looked/2 {
			t.Errorf("beside %d records %d changes are worth packing, of %d that are looked at", packed, worth, looked)
		}
		last = worth
	}
}

// TestOthersWriteWhilePacking holds and unholds certificates while segments are written.
func TestOthersWriteWhilePacking(t *testing.T) { onEngines(t, othersWriteWhilePacking) }

func othersWriteWhilePacking(t *testing.T, open opener) {
	w := newPackWorld(t, open, 2)
	w.db.PackSmall(4)
	w.issueMore(400)
	for _, r := range w.all {
		w.order(t, r, revocation.Hold, pki.CertificateHold)
	}
	done := make(chan error, 1)
	go func() { done <- w.db.Revocation().Compact(context.Background(), issuer) }()
	for n := range w.all {
		w.order(t, w.all[(n*7)%len(w.all)], revocation.Unhold, pki.Unspecified)
		if n%50 == 0 {
			w.check(t, w.at)
		}
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	w.check(t, w.at)
	w.pack(t)
	w.check(t, w.at)
	gone, cancel := context.WithCancel(context.Background())
	cancel()
	if err := w.db.Revocation().Compact(gone, issuer); err == nil {
		t.Error("packing succeeds with a canceled context")
	}
}

// TestDamagedSegmentIsAnError checks that reading fails at a segment that does not contain whole records.
func TestDamagedSegmentIsAnError(t *testing.T) { onEngines(t, damagedSegmentIsAnError) }

func damagedSegmentIsAnError(t *testing.T, open opener) {
	w := newPackWorld(t, open, 1)
	w.db.PackSmall(8)
	w.issueMore(20)
	for _, r := range w.all {
		w.order(t, r, revocation.Revoke, pki.Superseded)
	}
	w.pack(t)
	if err := w.db.OnWriter(context.Background(), `UPDATE crl_segments SET entries = substr(entries, 1, length(entries) - 1)`); err != nil {
		t.Fatal(err)
	}
	err := w.db.Revocation().View(context.Background(), issuer, func(v crl.View) error {
		for _, err := range v.Entries(crl.Listing{NotExpiredAt: w.at}) {
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err == nil {
		t.Error("reading a damaged segment succeeded")
	}
}

// TestClockAheadDropsNothing packs while the clock is a year ahead. After the clock is corrected, all revoked certificates are
// still listed.
func TestClockAheadDropsNothing(t *testing.T) { onEngines(t, clockAheadDropsNothing) }

func clockAheadDropsNothing(t *testing.T, open opener) {
	w := newPackWorld(t, open, 1)
	w.db.PackSmall(8)
	w.issueMore(50)
	for _, r := range w.all {
		w.order(t, r, revocation.Revoke, pki.Superseded)
	}
	w.pack(t)
	number := int64(0)
	put := func(at time.Time) {
		t.Helper()
		number++
		c := crl.CRL{Issuer: issuer, Number: big.NewInt(number), ThisUpdate: at, NextUpdate: at.Add(time.Hour)}
		if err := w.db.Revocation().PutCRLs(context.Background(), []crl.CRL{c}, pki.ActorCommand("test"), at); err != nil {
			t.Fatal(err)
		}
	}
	put(w.at.AddDate(100, 0, 0))
	w.pack(t)
	w.check(t, w.at) // the clock is right again, and this is read for the first CRL
	put(w.at)
	for range 3 {
		w.check(t, w.at)
		w.pack(t)
	}
	w.check(t, w.at)
}
