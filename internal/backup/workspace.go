package backup

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/brevet-pki/brevet/files"
	"github.com/brevet-pki/brevet/store/sqlite"
)

// A Workspace is a directory in an empty state directory, in which a backup is restored. Its files are moved into the state
// directory when the restore is complete: until then, a server finds no store there.
type Workspace struct {
	state, dir string
	lock       *os.File
}

// keptName is the directory in which the files of a backup stay that the server does not use: its configuration, and the
// archive that came with it.
const keptName = "restored"

// completeName is a file in a workspace whose files are being moved.
const completeName = "complete"

// FinishInstall moves the remaining files of a workspace whose Install was interrupted, and reports whether there was one.
func FinishInstall(state string) (bool, error) {
	w := &Workspace{state: state, dir: filepath.Join(state, "restoring")}
	if _, err := os.Stat(filepath.Join(w.dir, completeName)); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
		return false, err
	}
	if err := w.take(); err != nil {
		return false, err
	}
	return true, w.move()
}

// take locks the workspace.
func (w *Workspace) take() (err error) {
	w.lock, err = lockDirectory(w.dir, w.state)
	return err
}

// Lock keeps other restores from a state directory until the result is closed, or the process ends. It returns an error if
// another process restores there.
func Lock(state string) (io.Closer, error) { return lockDirectory(state, state) }

// lockDirectory locks a directory for a restore into a state directory.
func lockDirectory(path, state string) (*os.File, error) {
	d, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(d.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, errors.Join(fmt.Errorf("another process restores into %s: wait for its end, and run the command again", state), d.Close())
	}
	return d, nil
}

// OpenWorkspace makes a workspace. It refuses a state directory that contains anything else, so that no CA is overwritten. It
// removes what a restore left that was interrupted.
func OpenWorkspace(state string) (*Workspace, error) {
	w := &Workspace{state: state, dir: filepath.Join(state, "restoring")}
	entries, err := os.ReadDir(state)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		if name := e.Name(); name != filepath.Base(w.dir) && name != "lost+found" {
			return nil, fmt.Errorf("the directory %s is not empty, and contains %s: restore into an empty directory, and keep what is in this one", state, name)
		}
	}
	if err := os.Mkdir(w.dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, err
	}
	if err := w.take(); err != nil {
		return nil, err
	}
	left, err := os.ReadDir(w.dir)
	for _, e := range left {
		err = errors.Join(err, os.RemoveAll(filepath.Join(w.dir, e.Name())))
	}
	if err != nil {
		return nil, errors.Join(err, w.lock.Close())
	}
	return w, nil
}

// Dir returns the path of the workspace.
func (w *Workspace) Dir() string { return w.dir }

// Store returns the path of the copy of the store.
func (w *Workspace) Store() string { return filepath.Join(w.dir, storeName) }

// Archive returns the path of the archive that came with the store.
func (w *Workspace) Archive() string { return filepath.Join(w.dir, archiveName) }

// NewArchive returns the path of the archive for the new epoch.
func (w *Workspace) NewArchive() string { return filepath.Join(w.dir, "new.archive") }

// Install moves the restored files into the state directory, the store last, and closes the workspace. If it is interrupted,
// [FinishInstall] completes it.
func (w *Workspace) Install() error {
	if err := os.Mkdir(filepath.Join(w.dir, keptName), 0o700); err != nil {
		return err
	}
	f, err := files.Create(filepath.Join(w.dir, completeName), 0o600)
	if err != nil {
		return err
	}
	if err := errors.Join(f.Sync(), f.Close(), files.Flush(w.dir)); err != nil {
		return err
	}
	return w.move()
}

// moves are the renames of Install, in their order.
func (w *Workspace) moves() [][2]string {
	kept := filepath.Join(w.dir, keptName)
	return [][2]string{
		{filepath.Join(w.dir, "config"), filepath.Join(kept, "config")},
		{w.Archive(), filepath.Join(kept, archiveName)},
		{kept, filepath.Join(w.state, keptName)},
		{filepath.Join(w.dir, "crls"), filepath.Join(w.state, "crls")},
		{filepath.Join(w.dir, "evidence"), filepath.Join(w.state, "evidence")},
		{w.NewArchive(), filepath.Join(w.state, archiveName)},
		{w.Store(), filepath.Join(w.state, storeName)},
	}
}

// move makes the moves that were not made yet.
func (w *Workspace) move() error {
	for _, m := range w.moves() {
		if err := os.Rename(m[0], m[1]); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if err := files.Flush(w.state); err != nil {
			return err
		}
	}
	if err := os.Remove(filepath.Join(w.dir, completeName)); err != nil {
		return err
	}
	return errors.Join(os.RemoveAll(w.dir), w.lock.Close())
}

// FullError means that the disk of a state directory has no space for a restore. Nothing was restored.
type FullError struct {
	State string // the directory
	Cause error
}

// Error names the directory and the next step.
func (e *FullError) Error() string {
	return fmt.Sprintf("there is no space to restore into %s, and nothing was restored: free some space on its disk, and run the command again: %v", e.State, e.Cause)
}

// Unwrap returns the cause.
func (e *FullError) Unwrap() error { return e.Cause }

// Failed removes the workspace of a restore that failed, and returns the error, which is a [*FullError] if the disk is full.
func (w *Workspace) Failed(err error) error {
	if sqlite.IsFull(err) {
		err = &FullError{w.state, err}
	}
	return errors.Join(err, w.Discard())
}

// Discard removes the workspace, for a restore that failed.
func (w *Workspace) Discard() error { return errors.Join(os.RemoveAll(w.dir), w.lock.Close()) }
