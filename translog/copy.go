package translog

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/brevet-pki/brevet/files"
)

// hangTimeout is how long the disk of a copy may take for one batch. A call to a mount whose server is gone can take
// forever, and cannot be ended.
const hangTimeout = 10 * time.Second

// Copy is the second copy of the archive, on another disk. It follows the archive in the background, so that a failure of
// its disk delays nothing. All methods but Reconcile and Run are safe for concurrent use.
type Copy struct {
	archive  *Archive
	path     string
	log      *slog.Logger
	kick     chan struct{}
	timeout  time.Duration // hangTimeout, except in tests
	progress atomic.Uint64 // increases with each batch that is read or written

	// working gets the result of the goroutine that copies, and is nil if there is none. It belongs to Reconcile, and then to
	// the goroutine in Run.
	working chan error

	// These fields belong to the goroutine that copies.
	copying attempt
	file    *Archive    // nil if it could not be opened, or failed
	opened  os.FileInfo // of the file

	mu       sync.Mutex
	size     uint64        // entries that are durable in the copy
	failure  error         // of the last round, or nil
	advanced chan struct{} // closed and replaced when a round ends
}

// NewCopy returns the copy of an archive in a file. The file must exist: NewCopy's methods never create it, because the
// disk with the copy may not be mounted. An empty file is filled.
func NewCopy(archive *Archive, path string, log *slog.Logger) *Copy {
	return &Copy{
		archive: archive, path: path, log: log, kick: make(chan struct{}, 1), timeout: hangTimeout,
		copying: newAttempt("copy the archive", log), advanced: make(chan struct{}),
	}
}

// Reconcile opens the copy and completes it. It returns a [*CopyAheadError] if the copy continues the archive: then store
// and archive are an old backup, and the server must not start. Run retries all other failures, which Reconcile logs. If the
// disk of the copy hangs, Reconcile returns nil, and Run continues. Call it after Sequencer.Reconcile and before Run.
func (c *Copy) Reconcile(ctx context.Context) error {
	err := c.round(ctx)
	if ahead := new(CopyAheadError); errors.As(err, &ahead) {
		return errors.Join(err, c.close())
	}
	return nil
}

// Run copies entries until the context ends, and then closes the copy and returns nil. It logs failures and retries them
// after growing pauses. It returns a [*CopyAheadError] if Reconcile could not read the copy and it turns out to continue the
// archive. Call it once.
func (c *Copy) Run(ctx context.Context) error {
	for ctx.Err() == nil {
		err := c.round(ctx) // logged
		if ahead := new(CopyAheadError); errors.As(err, &ahead) {
			return errors.Join(err, c.close())
		}
		t := time.NewTimer(idleInterval)
		select {
		case <-t.C:
		case <-c.kick:
		case <-ctx.Done():
		}
		t.Stop()
	}
	_ = c.Close() // all that was copied is durable
	return nil
}

// Close closes a copy for which Run is not called. If its disk hangs, the end of the process closes it.
func (c *Copy) Close() error {
	if c.working != nil {
		select {
		case err := <-c.working:
			c.working = nil
			c.ended(err)
		case <-time.After(min(c.timeout, closeTimeout)):
			return nil
		}
	}
	return c.close()
}

// closeTimeout is how long the end of a server waits for the disk of a copy.
const closeTimeout = time.Second

// HangError means that the disk of a copy does not respond. The server continues without it.
type HangError struct{ Path string }

// Error says what the operator can do.
func (e *HangError) Error() string {
	return fmt.Sprintf("the disk of the copy %s does not respond: look at its mount; the copy continues when it responds again", e.Path)
}

// round copies what the archive has. It returns a [*HangError] if the disk of the copy does not respond. The next round then
// continues to wait.
func (c *Copy) round(ctx context.Context) error {
	if c.working == nil {
		working := make(chan error, 1)
		go func() { working <- c.try(ctx) }()
		c.working = working
	}
	tick := time.NewTicker(c.timeout)
	defer tick.Stop()
	for before := c.progress.Load(); ; {
		select {
		case err := <-c.working:
			c.working = nil
			c.ended(err)
			return err
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
		now := c.progress.Load()
		if now == before {
			err := &HangError{c.path}
			if c.Failure() == nil || !errors.As(c.Failure(), new(*HangError)) {
				c.log.Warn("the disk of the archive's copy does not respond, continuing without the copy", "copy", c.path)
			}
			c.ended(err)
			return err
		}
		before = now
	}
}

// try copies what the archive has, unless the last try failed a short time ago.
func (c *Copy) try(ctx context.Context) error {
	err := c.copying.try(ctx, func(ctx context.Context) error {
		err := c.copyAll(ctx)
		if err != nil && !errors.Is(err, syscall.ENOSPC) && !errors.Is(err, syscall.EDQUOT) {
			_ = c.close() // the next try opens and verifies it; the first error is the one to report
		}
		return err
	})
	if c.file != nil {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.size = c.file.Head().Size
	}
	return err
}

// ended ends a round for those that wait for it.
func (c *Copy) ended(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.failure = err
	close(c.advanced)
	c.advanced = make(chan struct{})
}

// copyAll opens the copy if necessary, and appends what it lacks.
func (c *Copy) copyAll(ctx context.Context) error {
	if err := c.open(ctx); err != nil {
		return err
	}
	for {
		have := c.file.Head().Size
		if have >= c.archive.Head().Size {
			return nil
		}
		page, err := c.archive.Entries(ctx, have+1, maxBatchEntries)
		if err != nil {
			return fmt.Errorf("read the archive: %w", err)
		}
		if err := c.file.Append(ctx, page); err != nil {
			return fmt.Errorf("the copy %s: %w", c.path, err)
		}
		c.progress.Add(1)
	}
}

// open opens the copy and compares it with the archive, unless it is open and still the file at its path.
func (c *Copy) open(ctx context.Context) error {
	now, err := os.Stat(c.path)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("the copy %s is missing: mount its disk again; for a new copy, make an empty file of that name", c.path)
	}
	if err != nil {
		return fmt.Errorf("look at the copy: %w", err)
	}
	if c.file != nil && os.SameFile(now, c.opened) {
		return nil
	}
	if err := c.close(); err != nil {
		return fmt.Errorf("close the copy: %w", err)
	}
	f, err := files.OpenFile(c.path, os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("open the copy: %w", err)
	}
	opened, err := f.Stat()
	if err != nil {
		return errors.Join(fmt.Errorf("look at the copy: %w", err), f.Close())
	}
	a, err := openArchive(f, c.archive.Epoch(), c.log, func() { c.progress.Add(1) })
	if err != nil {
		_ = lockedFile{f}.Close() // the first error is the one to report
		return fmt.Errorf("%w (copy %s)", err, c.path)
	}
	if err := c.compare(ctx, a); err != nil {
		_ = a.Close() // as above
		return err
	}
	c.file, c.opened = a, opened
	return nil
}

// compare returns an error unless the copy is a beginning of the archive.
func (c *Copy) compare(ctx context.Context, a *Archive) error {
	if a.Epoch() != c.archive.Epoch() {
		return fmt.Errorf("the copy %s is of another log: it has the epoch %s, and the archive %s: put an empty file in its place",
			c.path, a.Epoch(), c.archive.Epoch())
	}
	copied, have := a.Head(), c.archive.Head()
	longer, shorter := c.archive, copied
	if copied.Size > have.Size {
		longer, shorter = a, have
	}
	if shorter.Size > 0 {
		err := longer.Holds(ctx, shorter.Size, shorter)
		if differs := new(ChainError); errors.As(err, &differs) {
			return fmt.Errorf("the copy %s differs from the archive at entry %d or before it: keep it as evidence, and put an empty file in its place",
				c.path, shorter.Size)
		}
		if err != nil {
			return err
		}
	}
	if copied.Size > have.Size {
		return &CopyAheadError{Path: c.path, Copy: copied, Archive: have}
	}
	return nil
}

// close closes the copy. Everything that was copied is durable.
func (c *Copy) close() error {
	if c.file == nil {
		return nil
	}
	err := c.file.Close()
	c.file = nil
	return err
}

// Size returns the number of entries that are durable in the copy. It is zero until the copy was opened once.
func (c *Copy) Size() uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.size
}

// Failure returns why the last attempt to copy failed, or nil.
func (c *Copy) Failure() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.failure
}

// Await waits until the copy has the entry with an index, and returns true. It returns false if the context ends first,
// or the copy fails.
func (c *Copy) Await(ctx context.Context, index uint64) bool {
	for {
		c.mu.Lock()
		size, failure, advanced := c.size, c.failure, c.advanced
		c.mu.Unlock()
		if failure != nil || size >= index {
			return failure == nil
		}
		select {
		case c.kick <- struct{}{}:
		default: // already requested
		}
		select {
		case <-advanced:
		case <-ctx.Done():
			return false
		}
	}
}
