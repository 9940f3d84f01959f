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

// sector is what a disk writes whole or not at all.
const sector = 512

// OpenArchiveOf opens the archive that belongs to a store as OpenArchive does, and mends it before where that takes the
// store's word: where power loss kept the later sectors of the last append and lost earlier ones. Such an archive looks
// altered; but every sector beyond its good batches is as an append of the store's next entries makes it, or empty. The append is cut
// off, and the Sequencer repeats it. What is anything else, or longer than one append, is the *CorruptError that it was, and
// stays as evidence.
func OpenArchiveOf(ctx context.Context, records Store, path string, log *slog.Logger) (*Archive, error) {
	a, err := OpenArchive(path, log)
	var corrupt *CorruptError
	if !errors.As(err, &corrupt) {
		return a, err
	}
	mended, merr := mend(ctx, records, path)
	if merr != nil {
		return nil, errors.Join(err, merr)
	}
	if !mended {
		return nil, err
	}
	log.Warn("cut off the archive's last append, of which power loss kept a part: the store has all of it",
		"archive", path, "index", corrupt.Index, "offset", corrupt.Offset)
	return OpenArchive(path, log)
}

// mend cuts off a torn append, and reports whether it was one.
func mend(ctx context.Context, records Store, path string) (bool, error) {
	f, err := files.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return false, fmt.Errorf("translog: open archive: %w", err)
	}
	defer func() { _ = locked{f}.Close() }() // what was cut off is durable by then
	if err := lock(f); err != nil {
		return false, err
	}
	head, err := Read(f, nil)
	var corrupt *CorruptError
	if !errors.As(err, &corrupt) {
		return false, err
	}
	next, err := following(ctx, records, head)
	if err != nil {
		return false, err
	}
	tail, err := io.ReadAll(io.NewSectionReader(f, corrupt.Offset, longest(next)+1))
	if err != nil {
		return false, fmt.Errorf("translog: read archive: %w", err)
	}
	if !isTorn(tail, corrupt.Offset, next) {
		return false, nil
	}
	if err := errors.Join(f.Truncate(corrupt.Offset), f.Sync()); err != nil {
		return false, &unavailable{"cut off the archive's torn append", err}
	}
	return true, nil
}

// following returns what an append after a head could write, as the store has it: nothing where the store ends there, or
// does not continue that head.
func following(ctx context.Context, records Store, head Head) ([]Sequenced, error) {
	next, err := records.Entries(ctx, head.Size+1, batchSize)
	if err != nil {
		return nil, fmt.Errorf("translog: read entries from %d on: %w", head.Size+1, err)
	}
	good := 0
	for v := NewVerifier(head); good < len(next) && v.Add(next[good]) == nil; {
		good++
	}
	return next[:good], nil
}

// longest returns how many octets an append of records takes.
func longest(records []Sequenced) (size int64) {
	for batch := range batches(records) {
		size += frameSize + int64(len(Hash{}))
		for _, s := range batch {
			size += int64(sizeOf(s.Entry))
		}
	}
	return size
}

// isTorn reports whether an append of the next entries, of one or several or all of them, explains a file's tail from an
// offset on: each sector is what was to be written there, or empty. How many entries the append had is not known, as the
// store may have more by now: an append of more goes on from the same whole batches, and only its last one differs.
func isTorn(tail []byte, offset int64, next []Sequenced) bool {
	var written []byte // of the append, from where the tail now begins
	for batch := range batches(next) {
		for n := range batch {
			if all := appendBatch(written, batch[:n+1]); len(tail) <= len(all) && isWritten(tail, all, offset) {
				return true
			}
		}
		written = appendBatch(written, batch)
		whole := len(written) - int((offset+int64(len(written)))%sector) // to the end of the last whole sector
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

// isWritten reports whether each sector of a tail is the beginning of what was written, or empty.
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
