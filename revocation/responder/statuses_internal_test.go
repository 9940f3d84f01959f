package responder

import (
	"encoding/binary"
	"maps"
	"math"
	"math/rand/v2"
	"runtime"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/brevet-pki/brevet/pki"
)

var epoch = time.Unix(1_800_000_000, 0).UTC()

// serialNumber returns a serial number with a fixed time and with random bits that are derived from n.
func serialNumber(tb rapid.TB, n uint64) pki.Serial {
	tb.Helper()
	var random [pki.SerialRandomSize]byte
	binary.BigEndian.PutUint64(random[:], rand.New(rand.NewPCG(n, n)).Uint64())
	binary.BigEndian.PutUint32(random[10:], uint32(n))
	s, err := pki.MakeSerial(epoch, random)
	if err != nil {
		tb.Fatal(err)
	}
	return s
}

// A statusModel implements the methods of statuses with one map.
type statusModel map[pki.Serial]pki.StatusChange

func (p statusModel) apply(c pki.StatusChange, forgotten time.Time) {
	old, known := p[c.Ref.Serial]
	if known && c.Status.Version <= old.Status.Version || !known && c.NotAfter.Before(forgotten) {
		return
	}
	p[c.Ref.Serial] = c
}

func TestStatusesMatchMap(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s, want, marks := newStatuses(), statusModel{}, map[pki.Serial]uint8{}
		serials := make([]pki.Serial, rapid.IntRange(1, 40).Draw(t, "serials"))
		for i := range serials {
			serials[i] = serialNumber(t, uint64(i))
		}
		// Use a hash function with collisions, in the middle of a part and around its end.
		few, apart, hash := rapid.Uint64Range(1, 20).Draw(t, "hashes"), rapid.Uint64Range(0, 27).Draw(t, "apart"), newHash()
		s.good = newTable(func(serial pki.Serial) uint64 { return math.MaxUint32 - hash(serial)%few<<apart })
		defer s.sweep(time.Unix(math.MaxUint32+1, 0)) // frees the memory
		ends := rapid.SampledFrom([]time.Time{epoch, epoch.Add(time.Minute), epoch.Add(time.Hour), time.Unix(1<<33, 0).UTC()})
		apply := func(c pki.StatusChange, forgotten time.Time) {
			s.apply([]pki.StatusChange{c}, forgotten)
			want.apply(c, forgotten)
		}
		t.Repeat(map[string]func(*rapid.T){
			"issue": func(t *rapid.T) {
				for _, serial := range rapid.SliceOf(rapid.SampledFrom(serials)).Draw(t, "serials") {
					apply(pki.StatusChange{Ref: pki.CertRef{Serial: serial}, NotAfter: ends.Draw(t, "end"), Status: pki.Status{State: pki.Good, Version: 1}}, epoch)
				}
			},
			"change": func(t *rapid.T) {
				c := pki.StatusChange{Ref: pki.CertRef{Serial: rapid.SampledFrom(serials).Draw(t, "serial")}, NotAfter: ends.Draw(t, "end")}
				c.Status = pki.Status{State: pki.Good, Version: rapid.Uint64Range(1, 4).Draw(t, "version")}
				if rapid.Bool().Draw(t, "revoked") {
					c.Status.State, c.Status.Reason, c.Status.RevokedAt = pki.Revoked, pki.KeyCompromise, epoch
				}
				apply(c, ends.Draw(t, "forgotten"))
			},
			"sweep": func(t *rapid.T) {
				forgotten := ends.Draw(t, "forgotten")
				s.sweep(forgotten)
				maps.DeleteFunc(want, func(_ pki.Serial, c pki.StatusChange) bool { return c.NotAfter.Before(forgotten) })
				maps.DeleteFunc(marks, func(serial pki.Serial, _ uint8) bool { return want[serial].NotAfter.IsZero() })
			},
			"mark": func(t *rapid.T) {
				serial, mark := rapid.SampledFrom(serials).Draw(t, "serial"), rapid.Uint8().Draw(t, "marks")
				_, known := want[serial]
				if unknown := s.mark(mark, []pki.CertRef{{Serial: serial}}); known != (len(unknown) == 0) {
					t.Fatalf("marking %s found these unknown: %v, want known: %v", serial, unknown, known)
				}
				if known {
					marks[serial] |= mark
				}
			},
			"unmark": func(t *rapid.T) {
				mark := rapid.Uint8().Draw(t, "marks")
				s.unmark(mark)
				for serial := range marks {
					marks[serial] &^= mark
				}
			},
			"": func(t *rapid.T) {
				for _, serial := range append(serials, pki.Serial{}) {
					status, known := s.get(serial)
					if c, ok := want[serial]; ok != known || status != c.Status || s.version(serial) != c.Status.Version {
						t.Fatalf("%s is %+v, %v, want %+v, %v", serial, status, known, c.Status, ok)
					}
					r, found := s.record(serial)
					if found != known || found && (r != Record{status, want[serial].NotAfter, marks[serial]}) {
						t.Fatalf("the record of %s is %+v, %v, want %+v with the marks %b", serial, r, found, want[serial], marks[serial])
					}
				}
			},
		})
	})
}

// heapInUse returns the size of the heap after a garbage collection, in bytes.
func heapInUse() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// TestMemoryPerStatus checks that each status needs at most 30 bytes, for any number of statuses, and that sweep frees
// the memory.
func TestMemoryPerStatus(t *testing.T) {
	const most, steps, perStep, few = 30, 20, 25_000, 100
	empty := heapInUse()
	s := newStatuses()
	change := make([]pki.StatusChange, 1)
	for step := range steps {
		for i := range perStep {
			n := step*perStep + i
			end := epoch.Add(time.Hour)
			if n < few {
				end = epoch.Add(2 * time.Hour)
			}
			change[0] = pki.StatusChange{Ref: pki.CertRef{Serial: serialNumber(t, uint64(n))}, NotAfter: end, Status: pki.Status{State: pki.Good, Version: 1}}
			s.apply(change, epoch)
		}
		each := float64(heapInUse()-empty+int64(s.good.size())) / float64((step+1)*perStep)
		if step%5 == 4 {
			t.Logf("%.1f bytes for each of %d", each, (step+1)*perStep)
		}
		if each > most {
			t.Errorf("each of %d statuses takes %.1f bytes, want at most %d", (step+1)*perStep, each, most)
		}
	}
	s.sweep(epoch.Add(90 * time.Minute))
	if left := heapInUse() - empty + int64(s.good.size()); left > 200<<10 {
		t.Errorf("%d bytes are in use for the remaining %d statuses", left, few)
	}
	for n := range uint64(2 * few) {
		if _, known := s.get(serialNumber(t, n)); known != (n < few) {
			t.Errorf("after sweep, status %d is known: %v", n, known)
		}
	}
}
