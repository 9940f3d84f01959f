package crlindex

import (
	"bytes"
	"slices"

	"github.com/brevet-pki/brevet/pki"
)

const (
	// recordSize is the size of a packed record in octets: serial number, three times of 6 octets, the reason.
	recordSize = pki.SerialSize + 3*timeSize + 1
	timeSize   = 6
	// segmentRecords bounds a segment: what is rewritten for one change.
	segmentRecords = 1024
)

// pack appends a record. Times before 1970 become that, and none is beyond the year 9999, which 6 octets reach.
func (r *record) pack(b []byte) []byte {
	serial := r.serial.Array()
	b = append(b, serial[:]...)
	for _, at := range [...]int64{r.notAfter, r.revokedAt, r.invalidSince} {
		at = max(at, 0)
		b = append(b, byte(at>>40), byte(at>>32), byte(at>>24), byte(at>>16), byte(at>>8), byte(at)) //nolint:gosec // one octet of it each
	}
	return append(b, byte(r.reason))
}

// unpack reads the first record of some.
func (r *record) unpack(b []byte) error {
	var err error
	if r.serial, err = pki.SerialFromBytes(b[:pki.SerialSize]); err != nil {
		return err
	}
	r.notAfter = packedTime(b[pki.SerialSize:])
	r.revokedAt = packedTime(b[pki.SerialSize+timeSize:])
	r.invalidSince = packedTime(b[pki.SerialSize+2*timeSize:])
	r.reason, r.listed = pki.Reason(b[recordSize-1]), true
	return nil
}

func packedTime(b []byte) int64 {
	return int64(b[0])<<40 | int64(b[1])<<32 | int64(b[2])<<24 | int64(b[3])<<16 | int64(b[4])<<8 | int64(b[5])
}

func compareSerials(a, b pki.Serial) int {
	x, y := a.Array(), b.Array()
	return bytes.Compare(x[:], y[:])
}

// segment is a run of records, in the order of their serial numbers, of one partition.
type segment struct {
	first   []byte // the range begins with this serial number
	next    []byte // and ends before that of the next segment; nil for none
	records []record
}

// holds reports whether a serial number lies in the segment's range; it is not before its first.
func (s *segment) holds(serial pki.Serial) bool {
	octets := serial.Array()
	return s.next == nil || bytes.Compare(octets[:], s.next) < 0
}

// unpackAll reads the records of a segment.
func unpackAll(packed []byte) ([]record, error) {
	if len(packed)%recordSize != 0 {
		return nil, errDamagedSegment
	}
	all := make([]record, len(packed)/recordSize)
	for n := range all {
		if err := all[n].unpack(packed[n*recordSize:]); err != nil {
			return nil, err
		}
	}
	return all, nil
}

// fold has changes, in the order of serial numbers, replace what a segment says of the same certificates. What is not
// listed any more leaves, and so does what ended before a time.
func (s *segment) fold(changes []record, endedBefore int64) {
	merged := make([]record, 0, len(s.records)+len(changes))
	for len(s.records)+len(changes) > 0 {
		order := -1 // of the next record and the next change
		switch {
		case len(s.records) == 0:
			order = 1
		case len(changes) > 0:
			order = compareSerials(s.records[0].serial, changes[0].serial)
		}
		var r record
		if order >= 0 {
			r, changes = changes[0], changes[1:]
		} else {
			r = s.records[0]
		}
		if order <= 0 {
			s.records = s.records[1:]
		}
		if r.listed && r.notAfter >= endedBefore {
			merged = append(merged, r)
		}
	}
	s.records = merged
}

// split cuts a segment into ones of so many records at most. The first has its range begin where the whole had.
func (s *segment) split(most int) []segment {
	n := max(1, (len(s.records)+most-1)/most)
	parts := make([]segment, 0, n)
	first := s.first
	for i := range n {
		from, to := i*len(s.records)/n, (i+1)*len(s.records)/n
		if i > 0 {
			octets := s.records[from].serial.Array()
			first = octets[:]
			parts[i-1].next = first
		}
		parts = append(parts, segment{first: first, next: s.next, records: s.records[from:to:to]})
	}
	return parts
}

// wanesAt is when a quarter of the records has ended.
func (s *segment) wanesAt() int64 {
	ends := make([]int64, len(s.records))
	for n, r := range s.records {
		ends[n] = r.notAfter
	}
	slices.Sort(ends)
	return ends[len(ends)/4]
}

func (s *segment) packed() []byte {
	b := make([]byte, 0, len(s.records)*recordSize)
	for n := range s.records {
		b = s.records[n].pack(b)
	}
	return b
}
