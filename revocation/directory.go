package revocation

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	// lockPatience bounds the wait for another process that publishes to the same directory.
	lockPatience = 10 * time.Second
	lockEvery    = 50 * time.Millisecond
	// unfinished begins the names of files that are being written in a further directory.
	unfinished = ".unfinished-"
)

// directory is a further place that CRLs are published to, for a web server that others run. Other processes may publish
// to it too.
type directory struct {
	path string
	wake chan struct{}

	mu      sync.Mutex
	waiting map[Scope]CRL // what is to be published there, the newest of each scope
	failure error         // of the last try
}

func newDirectory(path string) *directory {
	return &directory{path: path, wake: make(chan struct{}, 1), waiting: map[Scope]CRL{}}
}

// want has CRLs published there soon.
func (d *directory) want(crls []CRL) {
	d.mu.Lock()
	for _, c := range crls {
		d.waiting[c.Scope()] = c
	}
	d.mu.Unlock()
	select {
	case d.wake <- struct{}{}:
	default:
	}
}

// next returns what waits, the full CRLs first.
func (d *directory) next() []CRL {
	d.mu.Lock()
	defer d.mu.Unlock()
	var all []CRL
	for _, c := range d.waiting {
		all = append(all, c)
	}
	slices.SortFunc(all, func(a, b CRL) int {
		return strings.Compare(fmt.Sprintf("%05d", a.Partition)+a.Scope().Path(), fmt.Sprintf("%05d", b.Partition)+b.Scope().Path())
	})
	return all
}

// done takes away what was published, unless something newer waits meanwhile, and notes how that went.
func (d *directory) done(published []CRL, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, c := range published {
		if d.waiting[c.Scope()].Number.Cmp(c.Number) <= 0 {
			delete(d.waiting, c.Scope())
		}
	}
	d.failure = err
}

// keep publishes what is wanted until ctx is done.
func (d *directory) keep(ctx context.Context, from shelf, log *slog.Logger) {
	retry := newBackOff()
	for {
		wanted := d.next()
		published, err := d.publish(ctx, wanted, from, log)
		if ctx.Err() != nil {
			return
		}
		d.done(published, err)
		if err != nil {
			wait := retry.NextBackOff()
			log.Error("a directory does not get the newest CRLs, trying again", "directory", d.path, "wait", wait, "error", err)
			if !sleep(ctx, wait) {
				return
			}
			continue
		}
		retry.Reset()
		if len(published) > 0 {
			continue // something may have come meanwhile
		}
		select {
		case <-ctx.Done():
			return
		case <-d.wake:
		}
	}
}

// publish copies CRLs from the shelf, and returns those that are done with. It has the directory's lock meanwhile, an
// flock, which whoever publishes to it takes: so nobody's older CRL comes between a look and a renaming.
func (d *directory) publish(ctx context.Context, crls []CRL, from shelf, log *slog.Logger) (published []CRL, err error) {
	if len(crls) == 0 {
		return nil, nil
	}
	lock, err := os.Open(d.path)
	if err != nil {
		return nil, err
	}
	defer lock.Close() // which gives the lock back
	if err := lockDirectory(ctx, lock); err != nil {
		return nil, err
	}
	var failed []error
	for _, c := range crls {
		if err := ctx.Err(); err != nil {
			return published, err
		}
		newer, err := d.put(c, from)
		if err != nil {
			failed = append(failed, err)
			continue
		}
		if newer {
			log.Warn("a directory has a newer CRL, which stays: another process publishes to it", "directory", d.path, "crl", c.Scope().Path(), "number", c.Number)
		}
		published = append(published, c)
	}
	return published, errors.Join(failed...)
}

func lockDirectory(ctx context.Context, dir *os.File) error {
	for waited := time.Duration(0); ; waited += lockEvery {
		err := syscall.Flock(int(dir.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if !errors.Is(err, syscall.EWOULDBLOCK) && !errors.Is(err, syscall.EINTR) {
			return err
		}
		if waited >= lockPatience {
			return fmt.Errorf("another process has had the lock of %s for %v", dir.Name(), lockPatience)
		}
		if !sleep(ctx, lockEvery) {
			return ctx.Err()
		}
	}
}

// put copies a CRL to its place, unless there is one with this number or a higher one. It reports whether that is higher.
// What is there and is no CRL is replaced.
func (d *directory) put(c CRL, from shelf) (newer bool, err error) {
	source, err := os.Open(from.path(c.Scope()))
	if err != nil {
		return false, err
	}
	defer source.Close()
	info, err := source.Stat()
	if err != nil {
		return false, err
	}
	number, err := ReadNumber(source, info.Size())
	if err != nil {
		return false, fmt.Errorf("read %s: %w", source.Name(), err)
	}
	path := filepath.Join(d.path, filepath.FromSlash(c.Scope().Path()))
	if there := numberAt(path); there != nil && there.Cmp(number) >= 0 {
		return there.Cmp(number) > 0, syncDirectory(filepath.Dir(path)) // a try before may have come no further than its renaming
	}
	dir := filepath.Dir(path)
	if dir != filepath.Clean(d.path) {
		if err := makePublic(dir); err != nil {
			return false, err
		}
	}
	unfinished := filepath.Join(dir, unfinished+filepath.Base(path))
	if err := copyFile(unfinished, source, info.Size()); err != nil {
		return false, errors.Join(err, os.Remove(unfinished))
	}
	if err := os.Rename(unfinished, path); err != nil {
		return false, err
	}
	return false, syncDirectory(dir)
}

// copyFile writes and flushes a file that everybody may read.
func copyFile(path string, source io.ReaderAt, size int64) (err error) {
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o644) //nolint:gosec // a web server reads it
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	if err := file.Chmod(0o644); err != nil { // whatever the process masks
		return err
	}
	n, err := io.CopyBuffer(struct{ io.Writer }{file}, struct{ io.Reader }{io.NewSectionReader(source, 0, size)}, make([]byte, chunkSize))
	if err == nil && n != size {
		err = io.ErrUnexpectedEOF
	}
	return errors.Join(err, file.Sync())
}

// makePublic makes a directory that everybody may read, where it is not there yet.
func makePublic(path string) error {
	err := os.Mkdir(path, 0o755) //nolint:gosec // a web server reads it
	if errors.Is(err, os.ErrExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return errors.Join(os.Chmod(path, 0o755), syncDirectory(filepath.Dir(path))) //nolint:gosec // whatever the process masks
}

// Directories says of every further directory what the last try to publish to it failed with; nil where it did not.
func (a *Authority) Directories() map[string]error {
	all := map[string]error{}
	for _, d := range a.directories {
		d.mu.Lock()
		all[d.path] = d.failure
		d.mu.Unlock()
	}
	return all
}
