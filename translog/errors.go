package translog

import (
	"errors"
	"fmt"
	"time"
)

// ErrLocked means that another process has the archive open.
var ErrLocked = errors.New("another process has the archive open: stop it, or configure another archive")

// ErrNotArchive means that a file does not start with the header of this version's archives.
var ErrNotArchive = errors.New("not a log archive of this version: check the path, or use the version of brevet that " +
	"wrote it")

// ChainError is the error for a record that does not continue the log: its index leaves a gap, or its chain value is
// wrong.
type ChainError struct {
	Index  uint64 // the expected index
	Detail string // what the record contains instead
}

// Error names the index of the first record that does not verify.
func (e *ChainError) Error() string {
	return fmt.Sprintf("the log does not verify at entry %d: %s", e.Index, e.Detail)
}

// CorruptError is the error for an archive that was damaged or altered. Everything before Offset verifies.
type CorruptError struct {
	Offset int64  // start of the bad batch, in bytes from the start of the file
	Index  uint64 // index expected for the first entry of the batch
	Detail string
}

// Error describes the damage and what the operator can do.
func (e *CorruptError) Error() string {
	return fmt.Sprintf("the archive is damaged or was altered in the batch at offset %d, from entry %d on: %s; nothing was changed: "+
		"keep the file as evidence, and put a copy of it in its place; if no entry has left the store, an empty file will do, and the server "+
		"writes it again from the store",
		e.Offset, e.Index, e.Detail)
}

// TornError is the error for an archive that ends within a batch. Either the machine lost power during the last append,
// or the file was copied during one. Everything before Offset verifies.
type TornError struct {
	Offset int64  // start of the incomplete batch, in bytes from the start of the file
	Index  uint64 // index expected for the first entry of the batch
}

// Error describes the position and what the operator can do.
func (e *TornError) Error() string {
	return fmt.Sprintf("the archive ends within the batch at offset %d, which begins with entry %d; the entries before it verify: "+
		"start the server, which completes it, or copy the file again", e.Offset, e.Index)
}

// MismatchError is the error for an archive and a store with different logs. The server must not start: it could report
// a certificate's status as it was before a revocation.
type MismatchError struct {
	Archive Head
	Store   Head
	Index   uint64 // the first entry known to differ
	Detail  string
}

// Error says whether the store is behind or differs, and what the operator can do.
func (e *MismatchError) Error() string {
	if e.Store.Size < e.Archive.Size {
		return fmt.Sprintf("the archive holds %d entries and the store %d: the store was restored from an older backup; "+
			"the entries between them, with their revocations, would be lost; run brevet restore with this archive", e.Archive.Size, e.Store.Size)
	}
	return fmt.Sprintf("the archive and the store differ at entry %d: %s; check that both belong to the same CA, "+
		"see 'brevet log verify', and restore the one that was altered", e.Index, e.Detail)
}

// RemovedError is the error for an entry that has left the store, because it is old. The archive has it.
type RemovedError struct {
	Index uint64 // of the entry
	First uint64 // the index of the first entry in the store
}

// Error names the first entry in the store.
func (e *RemovedError) Error() string {
	return fmt.Sprintf("entry %d has left the store, whose first entry is %d: read it from the archive", e.Index, e.First)
}

// NeedsSnapshot returns true: a reader that follows changes must start again with a snapshot, because it has missed some.
func (*RemovedError) NeedsSnapshot() bool { return true }

// BehindError is the error for an archive that lacks entries that have left the store. The server must not start,
// because nothing could complete its archive.
type BehindError struct {
	Archive Head
	First   uint64 // the index of the first entry in the store
}

// Error says what the operator can do.
func (e *BehindError) Error() string {
	return fmt.Sprintf("the archive ends with entry %d, and the store begins with entry %d, because older entries have left it: put a newer "+
		"archive in its place, from the directory in archive.copy, from a backup, or from another server of this store", e.Archive.Size, e.First)
}

// EpochError is the error for an archive and a store of different logs. The server must not start.
type EpochError struct{ Archive, Store Epoch }

// Error says what the operator can do.
func (e *EpochError) Error() string {
	return fmt.Sprintf("the archive has the epoch %s and the store %s: they are of different logs; check the paths of both, "+
		"and keep the archive of a store that is gone, or of before a restore, in another place", e.Archive, e.Store)
}

// CopyAheadError is the error for a second copy that has entries which neither the archive nor the store has. The server
// must not start.
type CopyAheadError struct {
	Path          string // of the copy
	Copy, Archive Head
}

// Error says what the operator can do.
func (e *CopyAheadError) Error() string {
	return fmt.Sprintf("the copy %s of the archive holds %d entries, and store and archive %d: both were restored from an older backup; the entries "+
		"between them, with their revocations, would be lost; restore the newest backup of the store, with the copy as its archive",
		e.Path, e.Copy.Size, e.Archive.Size)
}

const retryAfter = 5 * time.Second

// unavailable is a temporary failure: of the disk, of the store, or because the caller's context ended.
type unavailable struct {
	what  string
	cause error
}

func (e *unavailable) Error() string {
	if e.cause == nil {
		return e.what
	}
	return e.what + ": " + e.cause.Error()
}

func (e *unavailable) Unwrap() error { return e.cause }

// Temporary reports that the same call may succeed later. A retry loses and duplicates nothing.
func (e *unavailable) Temporary() bool { return true }

// RetryAfter returns how long to wait before a retry. A full disk is not repaired sooner.
func (e *unavailable) RetryAfter() time.Duration { return retryAfter }
