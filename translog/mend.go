package translog

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
)

// sector is what a disk writes whole or not at all.
const sector = 512

// OpenArchiveOf opens the archive that belongs to a store as OpenArchive does, and mends it before where that takes the
// store's word: where power loss kept the later sectors of the last append and lost earlier ones. Such an archive looks
// altered; but every sector beyond its good records is as the store's next entries make it, or empty. The append is cut
// off, and the Sequencer repeats it. What is anything else, or longer than one append, is the *CorruptError that it was, and
// stays as evidence.
func OpenArchiveOf(ctx context.Context, records Records, path string, log *slog.Logger) (*Archive, error) {
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
func mend(ctx context.Context, records Records, path string) (bool, error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
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
	explained, err := isTorn(f, corrupt.Offset, next)
	if err != nil || !explained {
		return false, err
	}
	if err := errors.Join(f.Truncate(corrupt.Offset), f.Sync()); err != nil {
		return false, &unavailable{"cut off the archive's torn append", err}
	}
	return true, nil
}

// following returns what an append after a head would write, as the store has it: nothing where the store ends there, or
// does not continue that head.
func following(ctx context.Context, records Records, head Head) ([]byte, error) {
	next, err := records.Entries(ctx, head.Size+1, batchSize)
	if err != nil {
		return nil, fmt.Errorf("translog: read entries from %d on: %w", head.Size+1, err)
	}
	var written []byte
	for v := NewVerifier(head); len(next) > 0 && v.Add(next[0]) == nil; next = next[1:] {
		written = appendRecord(written, next[0])
	}
	return written, nil
}

// isTorn reports whether each sector of a file from an offset on is what was to be written there, or empty.
func isTorn(f *os.File, offset int64, written []byte) (bool, error) {
	info, err := f.Stat()
	if err != nil {
		return false, fmt.Errorf("translog: read archive: %w", err)
	}
	size := info.Size() - offset
	if size > int64(len(written)) {
		return false, nil
	}
	tail := make([]byte, size)
	if _, err := f.ReadAt(tail, offset); err != nil && !errors.Is(err, io.EOF) {
		return false, fmt.Errorf("translog: read archive: %w", err)
	}
	for len(tail) > 0 {
		n := min(len(tail), sector-int(offset%sector))
		if part := tail[:n]; !bytes.Equal(part, written[:n]) && len(bytes.Trim(part, "\x00")) > 0 {
			return false, nil
		}
		tail, written, offset = tail[n:], written[n:], offset+int64(n)
	}
	return true, nil
}
