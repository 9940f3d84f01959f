package revocation

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
)

const (
	// slowAfter is how long a directory has to publish before it counts as failing.
	slowAfter = time.Minute
	// stopTimeout is how long a stop waits for a directory that is being published to.
	stopTimeout = 5 * time.Second
	// publicMode is that of published files: a web server reads them.
	publicMode = 0o644
	// lockPatience bounds the wait for another process that publishes to the same directory.
	lockPatience = 10 * time.Second
	lockEvery    = 50 * time.Millisecond
)

// directory is a further place that CRLs are published to, for a web server that others run. Other processes may publish
// to it too.
type directory struct {
	path  string
	from  shelf
	chain []pki.IssuerID // of which its file of all full CRLs is, in that order
	wake  chan struct{}
	// publish is publishTo. One call at a time uses unflushable.
	publish     func(ctx context.Context, crls []CRL, log *slog.Logger) ([]CRL, error)
	unflushable bool // that it cannot be flushed was logged

	mu      sync.Mutex
	waiting map[Scope]CRL // what is to be published there, the newest of each scope
	failure error         // of the last try
}

func newDirectory(path string, from shelf, chain []pki.IssuerID) *directory {
	d := &directory{path: path, from: from, chain: chain, wake: make(chan struct{}, 1), waiting: map[Scope]CRL{}}
	d.publish = d.publishTo
	return d
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
func (d *directory) keep(ctx context.Context, log *slog.Logger) {
	retry := newBackOff()
	for {
		published, err := d.attempt(ctx, log)
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

// attempt publishes what waits, in a goroutine of its own: a file system that does not respond blocks its caller for good.
// After slowAfter the directory counts as failing until publish returns. Once ctx is done, attempt waits for stopTimeout
// at most, and leaves that goroutine behind.
func (d *directory) attempt(ctx context.Context, log *slog.Logger) ([]CRL, error) {
	wanted := d.next()
	if len(wanted) == 0 {
		return nil, nil
	}
	var published []CRL
	ended := make(chan error, 1)
	go func() {
		var err error
		published, err = d.publish(ctx, wanted, log)
		ended <- err
	}()
	slow := time.NewTimer(slowAfter)
	defer slow.Stop()
	for stopping, stopped := ctx.Done(), (<-chan time.Time)(nil); ; {
		select {
		case err := <-ended:
			return published, err
		case <-slow.C:
			err := fmt.Errorf("the file system of %s has not responded for %v", d.path, slowAfter)
			d.done(nil, err)
			log.Error("a directory does not get the newest CRLs, waiting for it", "directory", d.path, "error", err)
		case <-stopping:
			stopping, stopped = nil, time.After(stopTimeout)
		case <-stopped:
			log.Warn("a directory does not respond, stopping without it", "directory", d.path)
			return nil, ctx.Err()
		}
	}
}

// publishTo copies CRLs from the shelf, and returns those that are done with. It has the directory's lock meanwhile, an
// flock, which whoever publishes to it takes: so nobody's older CRL comes between a look and a renaming.
func (d *directory) publishTo(ctx context.Context, crls []CRL, log *slog.Logger) (published []CRL, err error) {
	dir, err := files.OpenDirectory(d.path)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, dir.Close()) }()
	lock, err := dir.Handle()
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
		newer, err := d.put(dir, c)
		if err != nil {
			failed = append(failed, err)
			continue
		}
		if newer {
			log.Warn("a directory has a newer CRL, which stays: another process publishes to it", "directory", d.path, "crl", c.Scope().Path(), "number", c.Number)
		}
		published = append(published, c)
	}
	if slices.ContainsFunc(published, func(c CRL) bool { return c.Partition == 0 }) {
		if err := d.putChain(dir); err != nil {
			return nil, errors.Join(append(failed, err)...)
		}
	}
	err = d.flush(dir, published, log)
	return published, errors.Join(append(failed, err)...)
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
// What is there and is no CRL is replaced. A full CRL is there in PEM, too; whoever published the higher one has written that.
func (d *directory) put(dir *files.Directory, c CRL) (newer bool, err error) {
	source, err := files.Open(d.from.path(c.Scope()))
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
		if err := dir.Make(parent, 0o755); err != nil { // a web server reads it
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
	return false, d.putPEM(dir, name+pemSuffix, c.Issuer)
}

// copyAll copies so many bytes in pieces.
func copyAll(w io.Writer, source io.ReaderAt, size int64) error {
	n, err := io.CopyBuffer(struct{ io.Writer }{w}, struct{ io.Reader }{io.NewSectionReader(source, 0, size)}, make([]byte, chunkSize))
	if err == nil && n != size {
		err = io.ErrUnexpectedEOF
	}
	return err
}

// flush makes the names of CRLs durable. A file system that cannot do that is warned of once: all that a power failure
// costs is that the next start publishes anew.
func (d *directory) flush(dir *files.Directory, published []CRL, log *slog.Logger) error {
	parents := map[string]bool{".": true}
	for _, c := range published {
		parents[path.Dir(c.Scope().Path())] = true
	}
	for parent := range parents {
		err := dir.Flush(parent)
		if err != nil && !files.Unsupported(err) {
			return fmt.Errorf("flush the directory %s: %w", path.Join(d.path, parent), err)
		}
		if err != nil && !d.unflushable {
			d.unflushable = true
			log.Warn("a directory cannot be flushed, and may have old CRLs after a power failure",
				"directory", d.path, "error", err)
		}
	}
	return nil
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
