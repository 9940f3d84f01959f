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

// file is what an Archive needs of an *os.File to append to it.
type file interface {
	io.WriterAt
	io.Closer
	Sync() error
	Truncate(size int64) error
}

// Archive is the log's copy outside the database: a file that only grows. When Append has returned, the entries
// survive a crash of the machine. Methods are safe for concurrent use; one process at a time has it open.
type Archive struct {
	mu   sync.Mutex
	file file // nil once closed
	end  Verifier
	size int64 // octets that are durable; what lies beyond is left over from a failed append
	left bool  // something may lie beyond size
}

// OpenArchive opens the archive at a path, or makes one with mode 0600, and verifies all of it. A last batch that
// power loss cut short is cut off, with a warning: the Sequencer appends it again. Errors are a *CorruptError,
// ErrNotArchive, ErrLocked, or of the file system; after each of them the file is as it was.
func OpenArchive(path string, log *slog.Logger) (*Archive, error) {
	f, err := files.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("translog: open archive: %w", err)
	}
	a, err := openArchive(f, log)
	if err != nil {
		_ = locked{f}.Close() // the error that matters is the first one
		return nil, fmt.Errorf("%w (archive %s)", err, path)
	}
	return a, nil
}

func openArchive(f *os.File, log *slog.Logger) (*Archive, error) {
	if err := lock(f); err != nil {
		return nil, err
	}
	if err := begin(f); err != nil {
		return nil, err
	}
	// A new file is lost with its directory's unwritten page; so may one be that an interrupted start made.
	if err := files.Flush(filepath.Dir(f.Name())); err != nil {
		return nil, &unavailable{"make the archive's name durable", err}
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return nil, fmt.Errorf("translog: open archive: %w", err)
	}
	sc, err := newScanner(f)
	for err == nil {
		_, err = sc.next()
	}
	var torn *TornError
	switch {
	case errors.Is(err, io.EOF):
	case errors.As(err, &torn):
		log.Warn("cut off the archive's last batch, which is incomplete: an append was interrupted",
			"archive", f.Name(), "index", torn.Index, "offset", torn.Offset)
		if err := errors.Join(f.Truncate(torn.Offset), f.Sync()); err != nil {
			return nil, fmt.Errorf("translog: cut off the archive's incomplete batch: %w", err)
		}
	default:
		return nil, err
	}
	return &Archive{file: locked{f}, end: Verifier{sc.verified}, size: sc.offset}, nil
}

// locked is an archive's file, whose lock goes when it is closed. Closing alone would not do: a process that is being started
// just now has the file open, too, until it runs its program.
type locked struct{ *os.File }

// Close gives the lock back, and closes the file.
func (l locked) Close() error {
	return errors.Join(syscall.Flock(int(l.Fd()), syscall.LOCK_UN), l.File.Close())
}

func lock(f *os.File) error {
	err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		return fmt.Errorf("translog: %w", ErrLocked)
	}
	if err != nil {
		return fmt.Errorf("translog: lock archive: %w", err)
	}
	return nil
}

// begin writes the header of a new archive, or of one whose making was interrupted.
func begin(f *os.File) error {
	got, err := io.ReadAll(io.LimitReader(f, int64(len(archiveHeader))))
	if err != nil {
		return fmt.Errorf("translog: read archive: %w", err)
	}
	if len(got) == len(archiveHeader) || !strings.HasPrefix(archiveHeader, string(got)) {
		return nil // whatever this is, it is not ours to write over
	}
	_, err = f.WriteAt([]byte(archiveHeader), 0)
	if err = errors.Join(err, f.Sync()); err != nil {
		return &unavailable{"make the archive", err}
	}
	return nil
}

// Head returns the end of what is durably archived.
func (a *Archive) Head() Head {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.end.Head()
}

// Append adds records, all of them or none. Records that do not continue the archive are refused with a *ChainError. A
// failure of the disk is Temporary: nothing was appended, and the same call may succeed later. The context is
// looked at before the first octet is written, and no more.
func (a *Archive) Append(ctx context.Context, records []Sequenced) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.file == nil {
		return fmt.Errorf("translog: append to archive: %w", os.ErrClosed)
	}
	end := a.end
	for _, s := range records {
		if n := len(s.Entry); n == 0 || n > MaxEntrySize {
			return &ChainError{Index: s.Index, Detail: fmt.Sprintf("its entry has %d octets, and one has from 1 to %d", n, MaxEntrySize)}
		}
		if err := end.Add(s); err != nil {
			return err
		}
	}
	if len(records) == 0 {
		return nil
	}
	if err := a.cut(); err != nil {
		return &unavailable{"clean up after a failed append to the archive", err}
	}
	size, err := a.write(records)
	if err == nil {
		err = a.file.Sync()
	}
	if err != nil {
		// After a failed Sync nobody knows what the disk holds, and a second Sync may succeed without writing it
		// (the kernel drops the dirty pages): so everything is written anew, now or on the next call.
		a.left = true
		_ = a.cut()
		return &unavailable{"append to the archive", err}
	}
	a.end, a.size = end, size
	return nil
}

// cut removes what a failed append left behind.
func (a *Archive) cut() error {
	if !a.left {
		return nil
	}
	err := a.file.Truncate(a.size)
	a.left = err != nil
	return err
}

// write writes records from the end on, a batch at a time, and returns the new end.
func (a *Archive) write(records []Sequenced) (int64, error) {
	var buf []byte
	at := a.size
	for batch := range batches(records) {
		buf = appendBatch(buf[:0], batch)
		if _, err := a.file.WriteAt(buf, at); err != nil {
			return 0, err
		}
		at += int64(len(buf))
	}
	return at, nil
}

// Close releases the file to other processes. Everything appended is durable already.
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
