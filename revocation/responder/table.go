package responder

import (
	"bytes"
	"encoding/binary"
	"hash/maphash"
	"math"

	"golang.org/x/sys/unix"

	"github.com/brevet-pki/brevet/pki"
)

// A table holds serial numbers and the ends of their certificates in 27 octets each: an open-addressing hash table. It is
// split, so that what grows, shrinks or is swept at a time is small. It is not safe for concurrent use, but for any
// number of readers. Whoever drops one empties it before.
type table struct {
	hash  func(pki.Serial) uint64
	parts []part
}

const (
	// partCount is how many parts a table has; of a million certificates each holds about eight thousand.
	partCount = 128
	// A slot is a serial number, and an end in seconds since 1970. It is free where its serial number is zero, which is none.
	slotSize = pki.SerialSize + 4
)

// A part probes linearly, and closes the gap where something is removed.
//
// Its slots lie outside of the collector's heap. For every octet of that the collector lets another one lie about before
// it collects, and here there is nothing to collect.
type part struct {
	slots []byte
	used  int
	hash  func(pki.Serial) uint64
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

func (t *table) part(hash uint64) *part { return &t.parts[hash>>32%partCount] }

func (t *table) has(serial pki.Serial) bool {
	hash := t.hash(serial)
	_, found := t.part(hash).find(serial.Bytes(), hash)
	return found
}

// put adds a serial number, or changes its end.
func (t *table) put(serial pki.Serial, end uint32) {
	hash, octets := t.hash(serial), serial.Bytes()
	p := t.part(hash)
	at, found := p.find(octets, hash)
	if !found {
		if p.used++; 16*p.used > 15*p.len() {
			p.resize(p.used + p.used/8 + 2)
			at, _ = p.find(octets, hash)
		}
	}
	slot := p.slot(at)
	copy(slot, octets)
	binary.BigEndian.PutUint32(slot[pki.SerialSize:], end)
}

func (t *table) remove(serial pki.Serial) {
	hash := t.hash(serial)
	p := t.part(hash)
	if at, found := p.find(serial.Bytes(), hash); found {
		p.free(at)
	}
}

// size is what a table takes of the memory, in octets.
func (t *table) size() (n int) {
	for _, p := range t.parts {
		n += len(p.slots)
	}
	return n
}

func (p *part) len() int { return len(p.slots) / slotSize }

func (p *part) slot(at int) []byte { return p.slots[at*slotSize : (at+1)*slotSize] }

func (p *part) isFree(at int) bool {
	var none [pki.SerialSize]byte
	return [pki.SerialSize]byte(p.slot(at)) == none
}

// home is where the search for a hash begins: its lower half, as a fraction of the slots.
func (p *part) home(hash uint64) int {
	return int((hash & math.MaxUint32) * uint64(p.len()) >> 32) //nolint:gosec // below the number of slots
}

// homeOf is home for what is in a slot.
func (p *part) homeOf(at int) int {
	serial, _ := pki.SerialFromBytes(p.slot(at)[:pki.SerialSize]) // it was one when it was put there
	return p.home(p.hash(serial))
}

func (p *part) next(at int) int {
	if at++; at < p.len() {
		return at
	}
	return 0
}

// find returns where a serial number is, or the free slot where it would be; there is always one where there are any.
func (p *part) find(serial []byte, hash uint64) (at int, found bool) {
	if p.len() == 0 {
		return 0, false
	}
	at = p.home(hash)
	for !p.isFree(at) {
		if bytes.Equal(p.slot(at)[:pki.SerialSize], serial) {
			return at, true
		}
		at = p.next(at)
	}
	return at, false
}

// free empties a slot, and moves up what was put behind it for want of it.
func (p *part) free(gap int) {
	p.used--
	n := p.len()
	for at := p.next(gap); !p.isFree(at); at = p.next(at) {
		if (at-p.homeOf(at)+n)%n >= (at-gap+n)%n {
			copy(p.slot(gap), p.slot(at))
			gap = at
		}
	}
	clear(p.slot(gap))
}

// resize moves everything into other memory, of n slots.
func (p *part) resize(n int) {
	old := *p
	p.slots = mapMemory(n * slotSize)
	for at := range old.len() {
		if old.isFree(at) {
			continue
		}
		slot := old.slot(at)
		serial, _ := pki.SerialFromBytes(slot[:pki.SerialSize]) // it was one when it was put there
		to, _ := p.find(slot[:pki.SerialSize], p.hash(serial))
		copy(p.slot(to), slot)
	}
	unmapMemory(old.slots)
}

// sweep frees what ended before a time, and the memory where much of it is free then.
func (p *part) sweep(limit int64) {
	for at := 0; at < p.len(); {
		if p.isFree(at) || int64(binary.BigEndian.Uint32(p.slot(at)[pki.SerialSize:])) >= limit {
			at++
			continue
		}
		p.free(at) // and look at what has moved here
	}
	switch {
	case p.used == 0:
		unmapMemory(p.slots)
		p.slots = nil
	case 2*p.used < p.len():
		p.resize(p.used + p.used/8 + 2)
	}
}

// mapMemory returns that many zero octets of memory, of the heap where the system gives none.
func mapMemory(n int) []byte {
	b, err := unix.Mmap(-1, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		return make([]byte, n)
	}
	return b
}

func unmapMemory(b []byte) {
	if len(b) > 0 {
		_ = unix.Munmap(b) // what is not of the system is none of its, and is collected
	}
}
