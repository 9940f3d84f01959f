package floor

import "crypto/sha256"

// entrySize is the size in bytes of the store's log entry about a renewed certificate of the device "device/1".
// itemSize is the size of a certificate in an intent: issuer, serial number, times, partition, and digest with its
// length.
const (
	entrySize = 230
	itemSize  = 1 + 20 + 6 + 6 + 1 + 1 + 32
)

// journal is a database with the tables of Brevet's store that issuing writes to. It is used by one goroutine at a time.
type journal interface {
	// write writes rows in a durable transaction. It also writes an intent for the same number of certificates, and
	// deletes it.
	write(rows []row) error
	// writeEntry writes an entry of the log in a durable transaction.
	writeEntry() error
	close() error
}

// run writes rows in transactions of maxBatch until the queue is closed, and returns the number of durable rows. After
// an error it only empties the queue. It waits for full batches, because the goroutines that fill the queue do not wait
// for it.
func run(j journal, queue <-chan row) (durable int, err error) {
	var rows []row
	write := func() {
		if err == nil && len(rows) > 0 {
			if err = j.write(rows); err == nil {
				durable += len(rows)
			}
		}
		rows = rows[:0]
	}
	for r := range queue {
		if rows = append(rows, r); len(rows) == maxBatch {
			write()
		}
	}
	write()
	return durable, err
}

// newEntry returns an entry of the log about a certificate, and the chain value after it.
func newEntry(chain [32]byte, r row) (entry []byte, next [32]byte) {
	entry = make([]byte, entrySize)
	copy(entry, r.serial)
	leaf := sha256.Sum256(entry)
	return entry, sha256.Sum256(append(chain[:], leaf[:]...))
}
