package translog

import (
	"errors"
	"fmt"
	"time"
)

// ErrLocked says that another process holds the archive open.
var ErrLocked = errors.New("another process has the archive open: stop it, or give this one an archive of its own")

// ErrNotArchive says that a file does not begin as an archive of this version does.
var ErrNotArchive = errors.New("not a log archive, or one of another version: check the path, or use the brevet that wrote it")

// ChainError is the error of a record that does not continue the log: its index leaves a gap, or its chain value is
// not the one that its entry gives.
type ChainError struct {
	Index  uint64 // the index that was due
	Detail string // what the record has instead
}

// Error names the index at which the log stops making sense.
func (e *ChainError) Error() string {
	return fmt.Sprintf("translog: the log does not verify at entry %d: %s", e.Index, e.Detail)
}

// CorruptError is the error of an archive that was damaged or altered. Everything before Offset verifies.
type CorruptError struct {
	Offset int64  // in octets from the start of the file: where the bad batch begins
	Index  uint64 // of the entry that was due there, as the batch's first
	Detail string
}

// Error names the place, and what to do about it.
func (e *CorruptError) Error() string {
	return fmt.Sprintf("translog: the archive is damaged or was altered in the batch at offset %d, from entry %d on: %s; nothing was changed: "+
		"keep the file as evidence, and put a copy of it in its place, or move it away and have it written anew from the store",
		e.Offset, e.Index, e.Detail)
}

// TornError is the error of an archive that ends within a batch: the machine lost power during the last append, or
// the file was copied during one. Everything before Offset verifies.
type TornError struct {
	Offset int64  // in octets from the start of the file: where the incomplete batch begins
	Index  uint64 // of the entry that was due there, as the batch's first
}

// Error names the place, and what to do about it.
func (e *TornError) Error() string {
	return fmt.Sprintf("translog: the archive ends within the batch at offset %d, which begins with entry %d; the entries before it verify: "+
		"start the server, which completes it, or copy the file again", e.Offset, e.Index)
}

// MismatchError is the error of an archive and a store that do not hold the same log. A server that finds one must
// not start: what it would say about a certificate may be older than what it said before.
type MismatchError struct {
	Archive Head
	Store   Head
	Index   uint64 // the first entry on which the two are known to differ
	Detail  string
}

// Error says which of the two is behind or differs, and what to do about it.
func (e *MismatchError) Error() string {
	if e.Store.Size < e.Archive.Size {
		return fmt.Sprintf("translog: the archive holds %d entries and the store %d: the store was restored from an older backup; "+
			"what lies between would be forgotten, revocations among it; restore the newest backup, or the store itself", e.Archive.Size, e.Store.Size)
	}
	return fmt.Sprintf("translog: the archive and the store differ at entry %d: %s; check that both belong to the same CA, "+
		"see 'brevet log verify', and restore the one that was altered", e.Index, e.Detail)
}

const retryAfter = 5 * time.Second

// unavailable is a failure that may pass: of the disk, the store, or the caller's patience.
type unavailable struct {
	what  string
	cause error
}

func (e *unavailable) Error() string {
	if e.cause == nil {
		return "translog: " + e.what
	}
	return "translog: " + e.what + ": " + e.cause.Error()
}

func (e *unavailable) Unwrap() error { return e.cause }

// Temporary reports that the same call may succeed later. Nothing is lost or written twice by calling again.
func (e *unavailable) Temporary() bool { return true }

// RetryAfter returns how long to wait before that: disks take somebody to look after them.
func (e *unavailable) RetryAfter() time.Duration { return retryAfter }
