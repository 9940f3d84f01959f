package crlindex

import (
	"bytes"
	"slices"

	"github.com/brevet-pki/brevet/pki"
)

const (
	// recordSize is the size of a packed record in bytes: serial number, three times of 6 bytes, and the reason.
	recordSize = pki.SerialSize + 3*timeSize + 1
	timeSize   = 6
	// segmentRecords is the maximum number of records in a segment. A change rewrites a whole segment.
	segmentRecords = 1024
)

// pack appends the encoded record. A time before 1970 becomes 1970. The 6 bytes reach beyond the year 9999.
func (r *record) pack(b []byte) []byte {
	serial := r.serial.Array()
	b = append(b, serial[:]...)
	for _, at := range [...]int64{r.notAfter, r.revokedAt, r.invalidSince} {
		at = max(at, 0)
		b = append(b, byte(at>>40), byte(at>>32), byte(at>>24), byte(at>>16), byte(at>>8), byte(at)) //nolint:gosec // one byte each
	}
	return append(b, byte(r.reason))
}

// unpack decodes the record at the start of b.
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

// segment is a range of records of one partition, in the order of their serial numbers.
type segment struct {
	first   []byte // first serial number of the range
	next    []byte // first serial number of the next segment's range; nil for none
	records []record
}

// holds reports whether the segment's range contains a serial number that is not less than first.
func (s *segment) holds(serial pki.Serial) bool {
	b := serial.Array()
	return s.next == nil || bytes.Compare(b[:], s.next) < 0
}

// unpackAll decodes the records of a segment.
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

// merge merges changes, in the order of serial numbers, into the segment. A change replaces the record of the same
// certificate. Records that are no longer listed, or that expired before a time, are removed.
func (s *segment) merge(changes []record, endedBefore int64) {
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

// split splits a segment into segments of at most most records. The first part keeps the start of the range.
func (s *segment) split(most int) []segment {
	n := max(1, (len(s.records)+most-1)/most)
	parts := make([]segment, 0, n)
	first := s.first
	for i := range n {
		from, to := i*len(s.records)/n, (i+1)*len(s.records)/n
		if i > 0 {
			b := s.records[from].serial.Array()
			first = b[:]
			parts[i-1].next = first
		}
		parts = append(parts, segment{first: first, next: s.next, records: s.records[from:to:to]})
	}
	return parts
}

// compactAt returns the time at which a quarter of the records has expired.
func (s *segment) compactAt() int64 {
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
