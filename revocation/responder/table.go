package responder

import (
	"bytes"
	"encoding/binary"
	"hash/maphash"
	"math"

	"golang.org/x/sys/unix"

	"github.com/brevet-pki/brevet/pki"
)

// A table is an open-addressing hash table that maps serial numbers to the expiry and the marks of their certificates.
// Each entry has 28 bytes. The table is split into parts, so that each step of growing, shrinking or sweeping is short. Concurrent
// reads are safe, but a write needs a lock. A table that is no longer used must be emptied, because its memory is not
// garbage collected.
type table struct {
	hash  func(pki.Serial) uint64
	parts []part
}

const (
	// partCount is the number of parts. With a million certificates, each part holds about eight thousand.
	partCount = 128
	// slotSize is the size of a slot in bytes: a serial number, an expiry in seconds since 1970, and a byte with marks. A
	// slot is free if its serial number is zero, which is not allowed for certificates.
	slotSize = pki.SerialSize + 4 + 1
	// marksAt is the place of the marks in a slot.
	marksAt = slotSize - 1
)

// A part is a hash table with linear probing. If a slot is freed, later slots move up, so there are no tombstones.
//
// The slots are not in the garbage-collected heap. Before each collection, the heap grows to about twice the memory in
// use. Each byte outside the heap therefore saves a second one.
type part struct {
	slots []byte
	used  int
	hash  func(pki.Serial) uint64
}

// fitsTable reports whether a table can hold an expiry. The last possible one is in the year 2106.
func fitsTable(seconds int64) bool { return seconds >= 0 && seconds <= math.MaxUint32 }

func newTable(hash func(pki.Serial) uint64) table {
	t := table{hash, make([]part, partCount)}
	for i := range t.parts {
		t.parts[i].hash = hash
	}
	return t
}

// newHash returns a hash function with a random seed, so that an attacker cannot choose serial numbers that collide.
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

// get returns the expiry and the marks of a serial number, or false if the table does not have it.
func (t *table) get(serial pki.Serial) (end uint32, marks uint8, found bool) {
	hash := t.hash(serial)
	p := t.part(hash)
	key := serial.Array()
	at, found := p.find(key[:], hash)
	if !found {
		return 0, 0, false
	}
	slot := p.slot(at)
	return binary.BigEndian.Uint32(slot[pki.SerialSize:]), slot[marksAt], true
}

// mark adds marks to a serial number. It returns false if the table does not have it.
func (t *table) mark(serial pki.Serial, marks uint8) bool {
	hash := t.hash(serial)
	p := t.part(hash)
	key := serial.Array()
	at, found := p.find(key[:], hash)
	if found {
		p.slot(at)[marksAt] |= marks
	}
	return found
}

// put adds a serial number without marks, or changes its expiry.
func (t *table) put(serial pki.Serial, end uint32) {
	hash, key := t.hash(serial), serial.Bytes()
	p := t.part(hash)
	at, found := p.find(key, hash)
	if !found {
		if p.used++; 16*p.used > 15*p.len() {
			p.resize(p.used + p.used/8 + 2)
			at, _ = p.find(key, hash)
		}
	}
	slot := p.slot(at)
	copy(slot, key)
	binary.BigEndian.PutUint32(slot[pki.SerialSize:], end)
}

func (t *table) remove(serial pki.Serial) {
	hash := t.hash(serial)
	p := t.part(hash)
	if at, found := p.find(serial.Bytes(), hash); found {
		p.free(at)
	}
}

// size returns the memory that a table uses, in bytes.
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

// home returns the index at which the search for a hash begins. It scales the lower half of the hash to the number of
// slots.
func (p *part) home(hash uint64) int {
	return int((hash & math.MaxUint32) * uint64(p.len()) >> 32) //nolint:gosec // below the number of slots
}

// homeOf returns the home of the serial number in a slot.
func (p *part) homeOf(at int) int {
	serial, _ := pki.SerialFromBytes(p.slot(at)[:pki.SerialSize]) // valid, because put wrote it
	return p.home(p.hash(serial))
}

func (p *part) next(at int) int {
	if at++; at < p.len() {
		return at
	}
	return 0
}

// find returns the slot of a serial number, or a free slot for it. A part that has slots always has a free one.
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

// free empties a slot. It moves up later slots that a search would otherwise no longer find, because it ends at an
// empty slot.
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

// resize moves all slots to new memory for n slots.
func (p *part) resize(n int) {
	old := *p
	p.slots = mapMemory(n * slotSize)
	for at := range old.len() {
		if old.isFree(at) {
			continue
		}
		slot := old.slot(at)
		serial, _ := pki.SerialFromBytes(slot[:pki.SerialSize]) // valid, because put wrote it
		to, _ := p.find(slot[:pki.SerialSize], p.hash(serial))
		copy(p.slot(to), slot)
	}
	unmapMemory(old.slots)
}

// unmark removes marks from all slots.
func (p *part) unmark(marks uint8) {
	for at := range p.len() {
		p.slot(at)[marksAt] &^= marks
	}
}

// sweep frees the slots of certificates that expired before limit. If more than half of the slots are then free, it
// shrinks the part.
func (p *part) sweep(limit int64) {
	for at := 0; at < p.len(); {
		if p.isFree(at) || int64(binary.BigEndian.Uint32(p.slot(at)[pki.SerialSize:])) >= limit {
			at++
			continue
		}
		p.free(at) // look at this slot again, because another one may have moved here
	}
	switch {
	case p.used == 0:
		unmapMemory(p.slots)
		p.slots = nil
	case 2*p.used < p.len():
		p.resize(p.used + p.used/8 + 2)
	}
}

// mapMemory returns n zero bytes outside of the heap. If mmap fails, it returns bytes on the heap.
func mapMemory(n int) []byte {
	b, err := unix.Mmap(-1, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		return make([]byte, n)
	}
	return b
}

func unmapMemory(b []byte) {
	if len(b) > 0 {
		_ = unix.Munmap(b) // fails for memory on the heap, which is garbage collected
	}
}
