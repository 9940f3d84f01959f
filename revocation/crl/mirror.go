package crl

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/brevet-pki/brevet/files"
	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/revocation/internal/retry"
)

const (
	// slowAfter is how long copying to a mirror may take before the mirror is reported as failing.
	slowAfter = time.Minute
	// stopTimeout is how long a shutdown waits until copying to a mirror ends.
	stopTimeout = 5 * time.Second
	// publicMode is the mode of copied files, for a web server to read.
	publicMode = 0o644
	// lockTimeout is how long copying waits for another process that copies to the same directory.
	lockTimeout = 10 * time.Second
	lockEvery   = 50 * time.Millisecond
)

// mirror is a directory to which CRLs are copied, for another web server. Other processes may also copy CRLs to it.
type mirror struct {
	path   string
	from   publishedDirectory
	bundle []pki.IssuerID // CAs whose full CRLs are in chain.crl.pem, in this order
	wake   chan struct{}
	// publish is publishTo, or a test's wrapper of it. Only one call runs at a time, so unflushable needs no lock.
	publish     func(ctx context.Context, crls []CRL, log *slog.Logger) ([]CRL, error)
	unflushable bool // whether the log already says that the directory cannot be flushed

	mu      sync.Mutex
	queue   map[Scope]CRL // CRLs to copy: the newest of each scope
	failure error         // error of the last attempt
}

func newMirror(path string, from publishedDirectory, bundle []pki.IssuerID) *mirror {
	m := &mirror{path: path, from: from, bundle: bundle, wake: make(chan struct{}, 1), queue: map[Scope]CRL{}}
	m.publish = m.publishTo
	return m
}

// enqueue queues CRLs for copying.
func (m *mirror) enqueue(crls []CRL) {
	m.mu.Lock()
	for _, c := range crls {
		m.queue[c.Scope()] = c
	}
	m.mu.Unlock()
	select {
	case m.wake <- struct{}{}:
	default:
	}
}

// queued returns the CRLs to copy. Full CRLs come first.
func (m *mirror) queued() []CRL {
	m.mu.Lock()
	defer m.mu.Unlock()
	var all []CRL
	for _, c := range m.queue {
		all = append(all, c)
	}
	slices.SortFunc(all, func(a, b CRL) int {
		return strings.Compare(fmt.Sprintf("%05d", a.Partition)+a.Scope().Path(), fmt.Sprintf("%05d", b.Partition)+b.Scope().Path())
	})
	return all
}

// dequeue removes the copied CRLs from the queue, unless a newer CRL was queued meanwhile. It stores the result of the
// attempt.
func (m *mirror) dequeue(published []CRL, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, c := range published {
		if m.queue[c.Scope()].Number.Cmp(c.Number) <= 0 {
			delete(m.queue, c.Scope())
		}
	}
	m.failure = err
}

// run copies queued CRLs until ctx ends.
func (m *mirror) run(ctx context.Context, log *slog.Logger) {
	waits := retry.NewBackOff()
	for {
		published, err := m.attempt(ctx, log)
		if ctx.Err() != nil {
			return
		}
		m.dequeue(published, err)
		if err != nil {
			wait := waits.NextBackOff()
			log.Error("copying CRLs to a directory failed, retrying", "directory", m.path, "wait", wait, "error", err)
			if !retry.Sleep(ctx, wait) {
				return
			}
			continue
		}
		waits.Reset()
		if len(published) > 0 {
			continue // more CRLs may have been queued meanwhile
		}
		select {
		case <-ctx.Done():
			return
		case <-m.wake:
		}
	}
}

// attempt copies the queued CRLs in another goroutine, because a file system that does not respond may block it
// forever. After slowAfter the mirror is reported as failing until publish returns. If ctx ends, attempt waits for
// stopTimeout at most, and then abandons the goroutine.
func (m *mirror) attempt(ctx context.Context, log *slog.Logger) ([]CRL, error) {
	wanted := m.queued()
	if len(wanted) == 0 {
		return nil, nil
	}
	var published []CRL
	ended := make(chan error, 1)
	go func() {
		var err error
		published, err = m.publish(ctx, wanted, log)
		ended <- err
	}()
	slow := time.NewTimer(slowAfter)
	defer slow.Stop()
	for stopping, stopped := ctx.Done(), (<-chan time.Time)(nil); ; {
		select {
		case err := <-ended:
			return published, err
		case <-slow.C:
			err := fmt.Errorf("the file system of %s has not responded for %v", m.path, slowAfter)
			m.dequeue(nil, err)
			log.Error("copying CRLs to a directory is blocked, waiting", "directory", m.path, "error", err)
		case <-stopping:
			stopping, stopped = nil, time.After(stopTimeout)
		case <-stopped:
			log.Warn("copying CRLs to a directory is blocked, stopping without it", "directory", m.path)
			return nil, ctx.Err()
		}
	}
}

// publishTo copies CRLs from the published directory. It returns those that it copied, and those that need not be
// copied. While a process copies CRLs to the mirror, it holds an flock on the directory. No other process can therefore
// rename a CRL after the numbers were compared.
func (m *mirror) publishTo(ctx context.Context, crls []CRL, log *slog.Logger) (published []CRL, err error) {
	dir, err := files.OpenDirectory(m.path)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, dir.Close()) }()
	lock, err := dir.Handle()
	if err != nil {
		return nil, err
	}
	defer lock.Close() // releases the lock
	if err := lockDirectory(ctx, lock); err != nil {
		return nil, err
	}
	var failed []error
	for _, c := range crls {
		if err := ctx.Err(); err != nil {
			return published, err
		}
		newer, err := m.copy(dir, c)
		if err != nil {
			failed = append(failed, err)
			continue
		}
		if newer {
			log.Warn("the directory has a newer CRL from another process, keeping it", "directory", m.path, "crl", c.Scope().Path(), "number", c.Number)
		}
		published = append(published, c)
	}
	if slices.ContainsFunc(published, func(c CRL) bool { return c.Partition == 0 }) {
		if err := m.writeBundle(dir); err != nil {
			return nil, errors.Join(append(failed, err)...)
		}
	}
	err = m.flush(dir, published, log)
	return published, errors.Join(append(failed, err)...)
}

func lockDirectory(ctx context.Context, dir *os.File) error {
	for waited := time.Duration(0); ; waited += lockEvery {
		err := syscall.Flock(int(dir.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if !errors.Is(err, syscall.EWOULDBLOCK) && !errors.Is(err, syscall.EINTR) {
			return err
		}
		if waited >= lockTimeout {
			return fmt.Errorf("another process has held the lock of %s for %v", dir.Name(), lockTimeout)
		}
		if !retry.Sleep(ctx, lockEvery) {
			return ctx.Err()
		}
	}
}

// copy copies a CRL, unless the mirror contains one with the same or a higher number. It reports whether the number is
// higher. It replaces a file that is not a CRL. It also writes a full CRL in PEM, unless the mirror's CRL is newer: the
// process that copied that one has also written its PEM file.
func (m *mirror) copy(dir *files.Directory, c CRL) (newer bool, err error) {
	source, err := files.Open(m.from.path(c.Scope()))
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
	name := c.Scope().Path()
	if parent := path.Dir(name); parent != "." {
		if err := dir.Make(parent, 0o755); err != nil { // a web server must be able to read the directory
			return false, err
		}
	}
	if there := numberOf(dir.Open(name)); there != nil && there.Cmp(number) >= 0 {
		newer = there.Cmp(number) > 0
	} else if err := dir.Replace(name, publicMode, func(w io.Writer) error { return copyAll(w, source, info.Size()) }); err != nil {
		return false, err
	}
	if c.Partition > 0 || newer {
		return newer, nil
	}
	return false, m.writePEM(dir, name+pemSuffix, c.Issuer)
}

// copyAll copies size bytes from source.
func copyAll(w io.Writer, source io.ReaderAt, size int64) error {
	n, err := io.CopyBuffer(struct{ io.Writer }{w}, struct{ io.Reader }{io.NewSectionReader(source, 0, size)}, make([]byte, chunkSize))
	if err == nil && n != size {
		err = io.ErrUnexpectedEOF
	}
	return err
}

// flush makes the names of copied CRLs durable. If the file system cannot flush directories, flush logs that once:
// after a power failure, the next start copies the CRLs again.
func (m *mirror) flush(dir *files.Directory, published []CRL, log *slog.Logger) error {
	parents := map[string]bool{".": true}
	for _, c := range published {
		parents[path.Dir(c.Scope().Path())] = true
	}
	for parent := range parents {
		err := dir.Flush(parent)
		if err != nil && !files.Unsupported(err) {
			return fmt.Errorf("flush the directory %s: %w", path.Join(m.path, parent), err)
		}
		if err != nil && !m.unflushable {
			m.unflushable = true
			log.Warn("the directory cannot be flushed and may have old CRLs after a power failure",
				"directory", m.path, "error", err)
		}
	}
	return nil
}

// Mirrors returns the error of the last attempt for each mirror, keyed by its path. The error is nil if the attempt
// succeeded.
func (u *Updater) Mirrors() map[string]error {
	all := map[string]error{}
	for _, m := range u.mirrors {
		m.mu.Lock()
		all[m.path] = m.failure
		m.mu.Unlock()
	}
	return all
}
