package tables_test

import (
	"testing"
	"time"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/store/tables"
)

// TestIndependentRecords checks which records of a batch may be read together. Two keys with the same first 8 bytes of their
// hashes have the same row, so the second must be read after the first is written.
func TestIndependentRecords(t *testing.T) {
	serials := byte(0)
	record := func(n uint64, first, last byte) ca.Record {
		key := make([]byte, 32)
		key[0], key[31] = first, last
		hash, err := pki.KeyHashFromBytes(key)
		if err != nil {
			t.Fatal(err)
		}
		serials++
		serial, err := pki.MakeSerial(time.Now(), [pki.SerialRandomSize]byte{serials})
		if err != nil {
			t.Fatal(err)
		}
		return ca.Record{Ref: pki.CertRef{Serial: serial}, Identity: device(n).ID, KeyHash: hash}
	}
	again := record(2, 2, 0)
	again.Ref = record(1, 1, 0).Ref
	first := record(1, 1, 0)
	first.Ref = again.Ref
	for name, c := range map[string]struct {
		records []ca.Record
		want    int
	}{
		"none":              {nil, 0},
		"all":               {[]ca.Record{record(1, 1, 0), record(2, 2, 0), record(3, 3, 0)}, 3},
		"the same identity": {[]ca.Record{record(1, 1, 0), record(2, 2, 0), record(1, 3, 0)}, 2},
		"the same serial":   {[]ca.Record{first, again}, 1},
		"the same key":      {[]ca.Record{record(1, 1, 0), record(2, 1, 0)}, 1},
		"keys that collide": {[]ca.Record{record(1, 1, 1), record(2, 1, 2)}, 1},
	} {
		if n := tables.Independent(c.records...); n != c.want {
			t.Errorf("%s: %d, want %d", name, n, c.want)
		}
	}
}
