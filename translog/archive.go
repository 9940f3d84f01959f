package translog

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"

	"github.com/brevet-pki/brevet/files"
)

// file is the part of *os.File that an Archive uses.
//
//nolint:interfacebloat // methods of *os.File
type file interface {
	io.ReaderAt
	io.WriterAt
	io.Closer
	Sync() error
	Truncate(size int64) error
}

// Archive is the copy of the log outside the database, an append-only file. When Append has returned, the entries
// survive a crash of the machine. Its methods are safe for concurrent use. Only one process can open an archive at a
// time.
type Archive struct {
	epoch Epoch

	mu    sync.Mutex
	file  file // nil once closed
	end   Verifier
	size  int64 // durable bytes; anything beyond them was left by a failed append
	marks marks
	dirty bool // there may be bytes beyond size
}

// OpenArchive opens the archive at a path, or creates it with mode 0600 for the log of an epoch, and verifies it
// completely. An existing archive keeps its own epoch, and the [Sequencer] compares it with the store's. If a power
// failure cut the last batch short, OpenArchive removes that batch and logs a warning; the Sequencer appends it again.
// Errors are a [*CorruptError], ErrNotArchive, ErrLocked or an error of the file system. After an error the file is
// unchanged.
func OpenArchive(path string, epoch Epoch, log *slog.Logger) (*Archive, error) {
	f, err := files.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open archive: %w", err)
	}
	a, err := openArchive(f, epoch, log, func() {})
	if err != nil {
		_ = lockedFile{f}.Close() // the first error is the one to report
		return nil, fmt.Errorf("%w (archive %s)", err, path)
	}
	return a, nil
}

// openArchive locks and verifies an open archive. It calls progress after each batch.
func openArchive(f *os.File, epoch Epoch, log *slog.Logger, progress func()) (*Archive, error) {
	if err := lock(f); err != nil {
		return nil, err
	}
	if err := writeHeader(f, epoch); err != nil {
		return nil, err
	}
	// A crash loses a new file whose directory was not flushed. An earlier start may have been interrupted before that.
	if err := files.Flush(filepath.Dir(f.Name())); err != nil {
		return nil, &unavailable{"make the archive's name durable", err}
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return nil, fmt.Errorf("open archive: %w", err)
	}
	sc, err := newScanner(f)
	var found marks
	for err == nil {
		found.add(mark{sc.verified, sc.offset})
		_, err = sc.next()
		progress()
	}
	var torn *TornError
	switch {
	case errors.Is(err, io.EOF):
	case errors.As(err, &torn):
		log.Warn("removed the incomplete last batch of the archive, an append was interrupted",
			"archive", f.Name(), "index", torn.Index, "offset", torn.Offset)
		if err := errors.Join(f.Truncate(torn.Offset), f.Sync()); err != nil {
			return nil, fmt.Errorf("remove the archive's incomplete batch: %w", err)
		}
	default:
		return nil, err
	}
	return &Archive{epoch: sc.epoch, file: lockedFile{f}, end: Verifier{sc.verified}, size: sc.offset, marks: found}, nil
}

// lockedFile is the file of an open archive. Close unlocks it, because closing alone is not enough: a process that is
// being started shares the open file until it executes its program.
type lockedFile struct{ *os.File }

// Close unlocks and closes the file.
func (l lockedFile) Close() error {
	return errors.Join(syscall.Flock(int(l.Fd()), syscall.LOCK_UN), l.File.Close())
}

// lock takes the lock of an archive, or returns ErrLocked.
func lock(f *os.File) error {
	err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		return ErrLocked
	}
	if err != nil {
		return fmt.Errorf("lock archive: %w", err)
	}
	return nil
}

// writeHeader writes the header of a new archive, or completes one that was interrupted.
func writeHeader(f *os.File, epoch Epoch) error {
	got, err := io.ReadAll(io.LimitReader(f, int64(headerSize)))
	if err != nil {
		return fmt.Errorf("read archive: %w", err)
	}
	line := got[:min(len(got), len(archiveHeader))]
	if len(got) == headerSize || !strings.HasPrefix(archiveHeader, string(line)) {
		return nil // a complete header, or another file, which must not be overwritten
	}
	_, err = f.WriteAt(appendHeader(nil, epoch), 0)
	if err = errors.Join(err, f.Sync()); err != nil {
		return &unavailable{"make the archive", err}
	}
	return nil
}

// Epoch returns the epoch of the log.
func (a *Archive) Epoch() Epoch { return a.epoch }

// Head returns the end of the durable log.
func (a *Archive) Head() Head {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.end.Head()
}

// Append appends either all records or none. It refuses records that do not continue the archive with a [*ChainError].
// Failures of the disk are temporary: nothing was appended and the caller may retry. The context is checked only before
// the first write.
func (a *Archive) Append(ctx context.Context, records []Sequenced) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.file == nil {
		return fmt.Errorf("append to archive: %w", os.ErrClosed)
	}
	end := a.end
	for _, s := range records {
		if n := len(s.Entry); n == 0 || n > MaxEntrySize {
			return &ChainError{Index: s.Index, Detail: fmt.Sprintf("its entry has %d bytes instead of 1 to %d", n, MaxEntrySize)}
		}
		if err := end.Add(s); err != nil {
			return err
		}
	}
	if len(records) == 0 {
		return nil
	}
	if err := a.truncate(); err != nil {
		return &unavailable{"clean up after a failed append to the archive", err}
	}
	starts, size, err := a.write(records)
	if err == nil {
		err = a.file.Sync()
	}
	if err != nil {
		// After a failed Sync the content of the disk is unknown. A second Sync could succeed without writing, because
		// the kernel drops the dirty pages. So the records are written again, now or in the next call.
		a.dirty = true
		_ = a.truncate()
		return &unavailable{"append to the archive", err}
	}
	a.end, a.size = end, size
	for _, at := range starts {
		a.marks.add(at)
	}
	return nil
}

// truncate removes what a failed append left.
func (a *Archive) truncate() error {
	if !a.dirty {
		return nil
	}
	err := a.file.Truncate(a.size)
	a.dirty = err != nil
	return err
}

// write writes records at the end, one batch at a time. It returns where the batches start, and the new size.
func (a *Archive) write(records []Sequenced) (starts []mark, size int64, err error) {
	var buf []byte
	at := mark{a.end.Head(), a.size}
	for batch := range batches(records) {
		buf = appendBatch(buf[:0], batch)
		if _, err := a.file.WriteAt(buf, at.offset); err != nil {
			return nil, 0, err
		}
		starts = append(starts, at)
		last := batch[len(batch)-1]
		at = mark{Head{Size: last.Index, Chain: last.Chain}, at.offset + int64(len(buf))}
	}
	return starts, at.offset, nil
}

// Close unlocks and closes the file. All appended records are already durable.
func (a *Archive) Close() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.file == nil {
		return nil
	}
	err := a.file.Close()
	a.file = nil
	return err
}
