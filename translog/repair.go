package translog

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"

	"github.com/brevet-pki/brevet/files"
)

// sector is the unit, in bytes, that a disk writes completely or not at all.
const sector = 512

// OpenArchiveOf opens the archive of a store like OpenArchive, and first repairs one kind of damage that only the store
// can explain. A power failure can keep later sectors of the last append and lose earlier ones, so that the archive
// looks altered. OpenArchiveOf removes that append if each of its sectors is either empty or as an append of the
// store's next entries writes it. The Sequencer repeats the append. Any other damage remains a [*CorruptError], and the
// file is unchanged as evidence.
func OpenArchiveOf(ctx context.Context, records Store, path string, log *slog.Logger) (*Archive, error) {
	epoch, err := records.Epoch(ctx)
	if err != nil {
		return nil, fmt.Errorf("read the store's epoch: %w", err)
	}
	a, err := OpenArchive(path, epoch, log)
	var corrupt *CorruptError
	if !errors.As(err, &corrupt) {
		return a, err
	}
	repaired, repairErr := repair(ctx, records, path)
	if repairErr != nil {
		return nil, errors.Join(err, repairErr)
	}
	if !repaired {
		return nil, err
	}
	log.Warn("removed an append from the archive that a power failure damaged, the store has its entries",
		"archive", path, "index", corrupt.Index, "offset", corrupt.Offset)
	return OpenArchive(path, epoch, log)
}

// repair removes a torn append and reports whether there was one.
func repair(ctx context.Context, records Store, path string) (bool, error) {
	f, err := files.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return false, fmt.Errorf("open archive: %w", err)
	}
	defer func() { _ = lockedFile{f}.Close() }() // the truncation is already durable
	if err := lock(f); err != nil {
		return false, err
	}
	head, err := Read(f, nil)
	var corrupt *CorruptError
	if !errors.As(err, &corrupt) {
		return false, err
	}
	next, err := nextAppend(ctx, records, head)
	if err != nil {
		return false, err
	}
	tail, err := io.ReadAll(io.NewSectionReader(f, corrupt.Offset, appendSize(next)+1))
	if err != nil {
		return false, fmt.Errorf("read archive: %w", err)
	}
	if !isTorn(tail, corrupt.Offset, next) {
		return false, nil
	}
	if err := errors.Join(f.Truncate(corrupt.Offset), f.Sync()); err != nil {
		return false, &unavailable{"remove the archive's torn append", err}
	}
	return true, nil
}

// nextAppend returns the store's entries after a head that one append could write. It returns none if the store ends
// there or does not continue that head.
func nextAppend(ctx context.Context, records Store, head Head) ([]Sequenced, error) {
	next, err := records.Entries(ctx, head.Size+1, batchSize)
	if left := new(RemovedError); errors.As(err, &left) {
		return nil, nil // this part of the archive was complete when its entries left the store
	}
	if err != nil {
		return nil, fmt.Errorf("read entries from %d on: %w", head.Size+1, err)
	}
	good := 0
	for v := NewVerifier(head); good < len(next) && v.Add(next[good]) == nil; {
		good++
	}
	return next[:good], nil
}

// appendSize returns the size in bytes of an append of the records.
func appendSize(records []Sequenced) (size int64) {
	for batch := range batches(records) {
		size += frameSize + int64(len(Hash{}))
		for _, s := range batch {
			size += int64(sizeOf(s.Entry))
		}
	}
	return size
}

// isTorn reports whether the tail of a file, from an offset on, is a torn append of the first of the next entries. Each
// sector must be empty or as that append writes it. The number of appended entries is unknown, because the store may
// have more by now, so isTorn tries every number. Longer appends have the same complete batches and differ only in the
// last one.
func isTorn(tail []byte, offset int64, next []Sequenced) bool {
	var written []byte // the append from the start of the tail on
	for batch := range batches(next) {
		for n := range batch {
			if all := appendBatch(written, batch[:n+1]); len(tail) <= len(all) && isWritten(tail, all, offset) {
				return true
			}
		}
		written = appendBatch(written, batch)
		whole := len(written) - int((offset+int64(len(written)))%sector) // up to the end of the last complete sector
		if whole <= 0 {
			continue
		}
		if len(tail) < whole || !isWritten(tail[:whole], written, offset) {
			return false
		}
		tail, written, offset = tail[whole:], written[whole:], offset+int64(whole)
	}
	return false
}

// isWritten reports whether each sector of a tail is empty or equals what was written.
func isWritten(tail, written []byte, offset int64) bool {
	for len(tail) > 0 {
		n := min(len(tail), sector-int(offset%sector))
		if part := tail[:n]; !bytes.Equal(part, written[:n]) && len(bytes.Trim(part, "\x00")) > 0 {
			return false
		}
		tail, written, offset = tail[n:], written[n:], offset+int64(n)
	}
	return true
}
