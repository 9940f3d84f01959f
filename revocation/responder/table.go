package responder

import (
	"hash/maphash"
	"math"

	"github.com/brevet-pki/brevet/pki"
)

// A table holds serial numbers and the ends of their certificates, in 24 octets each and room of between an eighth and
// three tenths: an open-addressing hash table without pointers. It is split, so that what grows, shrinks or is swept at
// a time is small. It is not safe for concurrent use.
type table struct {
	hash  func(pki.Serial) uint64
	parts []part
}

// partCount is how many parts a table has; of a million certificates each holds about four thousand.
const partCount = 256

// A part probes linearly, and closes the gap where something is removed.
type part struct {
	slots []slot
	used  int
	hash  func(pki.Serial) uint64
}

// A slot is free where its serial is zero, which is no serial.
type slot struct {
	serial pki.Serial
	end    uint32 // seconds since 1970
}

// fitsTable reports whether a table can keep a time: until the year 2106.
func fitsTable(seconds int64) bool { return seconds >= 0 && seconds <= math.MaxUint32 }

func newTable(hash func(pki.Serial) uint64) table {
	t := table{hash, make([]part, partCount)}
	for i := range t.parts {
		t.parts[i].hash = hash
	}
	return t
}

// newHash returns a hash function that nobody outside can foresee.
func newHash() func(pki.Serial) uint64 {
	seed := maphash.MakeSeed()
	return func(serial pki.Serial) uint64 { return maphash.Comparable(seed, serial) }
}

func (t *table) part(hash uint64) *part { return &t.parts[hash>>56] }

func (t *table) has(serial pki.Serial) bool {
	hash := t.hash(serial)
	_, found := t.part(hash).find(serial, hash)
	return found
}

// put adds a serial number, or changes its end.
func (t *table) put(serial pki.Serial, end uint32) {
	hash := t.hash(serial)
	p := t.part(hash)
	at, found := p.find(serial, hash)
	if !found {
		if p.used++; 8*p.used > 7*len(p.slots) {
			p.resize(len(p.slots) + len(p.slots)/4 + 4)
			at, _ = p.find(serial, hash)
		}
	}
	p.slots[at] = slot{serial, end}
}

func (t *table) remove(serial pki.Serial) {
	hash := t.hash(serial)
	p := t.part(hash)
	if at, found := p.find(serial, hash); found {
		p.free(at)
	}
}

// home is where the search for a hash begins: its lower half, as a fraction of the slots.
func (p *part) home(hash uint64) int {
	return int((hash & math.MaxUint32) * uint64(len(p.slots)) >> 32) //nolint:gosec // below the number of slots
}

func (p *part) next(at int) int {
	if at++; at < len(p.slots) {
		return at
	}
	return 0
}

// find returns where a serial number is, or the free slot where it would be; there is always one where there are any.
func (p *part) find(serial pki.Serial, hash uint64) (at int, found bool) {
	if len(p.slots) == 0 {
		return 0, false
	}
	at = p.home(hash)
	for !p.slots[at].serial.IsZero() {
		if p.slots[at].serial == serial {
			return at, true
		}
		at = p.next(at)
	}
	return at, false
}

// free empties a slot, and moves up what was put behind it for want of it.
func (p *part) free(gap int) {
	p.used--
	n := len(p.slots)
	for at := p.next(gap); !p.slots[at].serial.IsZero(); at = p.next(at) {
		if home := p.home(p.hash(p.slots[at].serial)); (at-home+n)%n >= (at-gap+n)%n {
			p.slots[gap], gap = p.slots[at], at
		}
	}
	p.slots[gap] = slot{}
}

func (p *part) resize(n int) {
	old := p.slots
	p.slots = make([]slot, n)
	for _, s := range old {
		if !s.serial.IsZero() {
			at, _ := p.find(s.serial, p.hash(s.serial))
			p.slots[at] = s
		}
	}
}

// sweep frees what ended before a time, and the memory where most of it is free then.
func (p *part) sweep(limit int64) {
	for at := 0; at < len(p.slots); {
		if s := p.slots[at]; s.serial.IsZero() || int64(s.end) >= limit {
			at++
			continue
		}
		p.free(at) // and look at what has moved here
	}
	if 2*p.used < len(p.slots) {
		p.resize(p.used + p.used/4 + 4)
	}
}
