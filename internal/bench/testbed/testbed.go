package testbed

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/brevet-pki/brevet/hsm"
	"github.com/brevet-pki/brevet/internal/bench/floor"
	"github.com/brevet-pki/brevet/internal/cli/devca"
	"github.com/brevet-pki/brevet/internal/cli/node"
	"github.com/brevet-pki/brevet/store/postgres/cluster"
)

const (
	// namePrefix begins the name of a measurement's directory. Its key has the same name as label, so that an operator
	// who finds one of them can find the other.
	namePrefix = "brevet-bench-"
	// hsmLabel is the label of the SoftHSM that a measurement makes.
	hsmLabel = "brevet-bench"
	// diskRoom is the free space in bytes below which a server is not ready.
	diskRoom = 64 << 20
)

// Testbed is the directory of a measurement and its key in an HSM. [Testbed.Close] removes both. If a measurement was
// killed, the next one with the same parent directory removes them: a directory is in use while a process of its
// measurement holds its lock. Between Open and Close, the other methods are safe for concurrent use.
type Testbed struct {
	Log    io.Writer   // of the measurement and of its processes; the caller sets it before Open
	Config string      // path of the operator's configuration; empty for a new SoftHSM in TMPDIR
	Like   node.Config // the configuration: Config's, or the default
	Dir    string
	Key    *hsm.Key // P-256, with the directory's name as label

	parent   string // of Dir
	lock     *os.File
	scratch  string   // a second directory; empty if there is none
	held     *os.File // its lock
	pin      hsm.PIN
	hsm      *hsm.HSM
	postgres *cluster.Cluster // nil for SQLite
}

// Options says what [Testbed.Open] makes. The zero value is a new SoftHSM, and SQLite.
type Options struct {
	Config   string // path of the operator's configuration, for its HSM and the disk of its state_dir; empty for a new SoftHSM in TMPDIR
	Sessions int    // concurrent signatures; 0 for those of the configuration
	KeyLabel string // the operator's key to measure, without a directory; empty for a new key
	Postgres bool   // also start PostgreSQL
}

// Logf writes a line to the log.
func (b *Testbed) Logf(format string, args ...any) { fmt.Fprintf(b.Log, format+"\n", args...) }

// configured reads the configuration and its PIN, or sets the defaults.
func (b *Testbed) configured(o Options) (err error) {
	b.parent, b.Config = os.TempDir(), o.Config
	if b.Like, err = ReadConfig(b.Config); err != nil {
		return err
	}
	if o.Sessions > 0 {
		b.Like.HSM.Sessions = o.Sessions
	}
	if b.Config == "" {
		return nil
	}
	b.parent = b.Like.StateDir
	b.pin, err = b.Like.PIN()
	return err
}

// ReadConfig returns the configuration of a measurement and its processes: that in the file, or the default if path is
// empty.
func ReadConfig(path string) (node.Config, error) {
	if path != "" {
		return node.ReadConfig(path)
	}
	c := node.DefaultConfig()
	c.HSM.Label = hsmLabel
	return c, nil
}

// Open makes the directory and the key. The caller must call Close, even if Open fails.
func (b *Testbed) Open(ctx context.Context, o Options) (err error) {
	if err := b.configured(o); err != nil {
		return err
	}
	if o.KeyLabel != "" {
		if b.hsm, err = node.OpenHSM(ctx, b.Like.HSM, b.pin); err != nil {
			return err
		}
		b.Key, err = b.hsm.Find(ctx, hsm.KeyRef{Label: o.KeyLabel})
		return err
	}
	if err := b.make(ctx); err != nil || !o.Postgres {
		return b.Explain(err)
	}
	return b.Explain(b.startPostgres())
}

// make makes the directory, opens the HSM, removes what killed measurements left, and makes the key.
func (b *Testbed) make(ctx context.Context) (err error) {
	if b.Config != "" {
		if err := checkOwn(b.parent); err != nil {
			return err
		}
	}
	if b.Dir, b.lock, err = makeDirectory(b.parent); err != nil {
		return fmt.Errorf("make a directory to measure in: %w", err)
	}
	if b.Config == "" {
		if err := b.initHSM(ctx); err != nil {
			return err
		}
	}
	if b.hsm, err = node.OpenHSM(ctx, b.Like.HSM, b.pin); err != nil {
		return err
	}
	if err := b.sweep(ctx); err != nil {
		return fmt.Errorf("remove what a killed measurement left: %w", err)
	}
	b.Key, err = b.hsm.Generate(ctx, filepath.Base(b.Dir), hsm.P256)
	return err
}

// checkOwn returns an error if dir belongs to another account. A server could not read files that root makes in its
// directory or its SoftHSM.
func checkOwn(dir string) error {
	info, err := os.Stat(dir)
	if err != nil {
		return fmt.Errorf("state_dir: %w; brevet ceremony install makes it", err)
	}
	if s, ok := info.Sys().(*syscall.Stat_t); ok && int(s.Uid) != os.Geteuid() {
		return fmt.Errorf("state_dir: %s belongs to the account with the number %d: measure as that, with runuser or sudo", dir, s.Uid)
	}
	return nil
}

// makeDirectory makes and locks a directory. Before it is locked, another measurement may remove it as left by a killed
// one; makeDirectory then retries.
func makeDirectory(parent string) (dir string, lock *os.File, err error) {
	for {
		if dir, err = os.MkdirTemp(parent, namePrefix); err != nil {
			return "", nil, err
		}
		if lock, err = lockDirectory(dir); err != nil || lock != nil {
			return dir, lock, err
		}
	}
}

// Scratch makes a directory in another parent directory, for files that must not use the measured disk. Close removes it.
// Scratch first removes those of killed measurements. It may be called once.
func (b *Testbed) Scratch(parent string) (string, error) {
	err := eachLeft(parent, func(dir string) error {
		b.Logf("removing %s, which a killed measurement left", dir)
		return os.RemoveAll(dir)
	})
	if err != nil {
		return "", fmt.Errorf("remove what a killed measurement left: %w", err)
	}
	b.scratch, b.held, err = makeDirectory(parent)
	return b.scratch, err
}

// lockDirectory locks a directory. It returns nil if another process has locked it, or if it does not exist.
func lockDirectory(dir string) (*os.File, error) {
	f, err := os.OpenFile(dir, os.O_RDONLY|syscall.O_DIRECTORY|syscall.O_NOFOLLOW, 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil //nolint:nilnil // no lock is not an error
	}
	if err != nil {
		return nil, err
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if err == nil {
		var opened, named os.FileInfo
		if opened, err = f.Stat(); err == nil {
			if named, err = os.Lstat(dir); err == nil && os.SameFile(opened, named) {
				return f, nil
			}
		}
	}
	_ = f.Close() // nothing was written
	if err == nil || errors.Is(err, unix.EWOULDBLOCK) || errors.Is(err, os.ErrNotExist) {
		return nil, nil //nolint:nilnil // as above
	}
	return nil, err
}

// initHSM makes a SoftHSM in the directory, and sets SoftHSM's environment variable for this process and the processes
// of the measurement.
func (b *Testbed) initHSM(ctx context.Context) error {
	if err := devca.UseSoftHSM(filepath.Join(b.Dir, "token")); err != nil {
		return err
	}
	module, err := hsm.FindSoftHSM()
	if err != nil {
		return err
	}
	if _, b.pin, err = devca.NewPIN(); err != nil {
		return err
	}
	_, err = hsm.Init(ctx, module, hsmLabel, b.pin, b.pin)
	return err
}

// sweep removes the keys and directories of killed measurements with the same parent directory. It destroys the key
// first, because only the directory's name identifies it.
func (b *Testbed) sweep(ctx context.Context) error {
	return eachLeft(b.parent, func(dir string) error {
		b.Logf("removing %s, which a killed measurement left", dir)
		if err := b.hsm.Destroy(ctx, filepath.Base(dir)); err != nil {
			return err
		}
		return os.RemoveAll(dir)
	})
}

// eachLeft locks each directory that a killed measurement left in the parent directory, and calls remove with it.
func eachLeft(parent string, remove func(dir string) error) error {
	found, err := os.ReadDir(parent)
	if err != nil {
		return err
	}
	for _, e := range found {
		dir := filepath.Join(parent, e.Name())
		if !strings.HasPrefix(e.Name(), namePrefix) || !e.IsDir() || checkOwn(dir) != nil {
			continue
		}
		lock, err := lockDirectory(dir)
		if err != nil {
			return err
		}
		if lock == nil {
			continue
		}
		if err := errors.Join(remove(dir), lock.Close()); err != nil {
			return err
		}
	}
	return nil
}

// Close removes the benchmark's key and directory, even if the command was interrupted. If the key is in an operator's HSM
// and destroying it fails, the directory stays, so that the next measurement destroys the key.
func (b *Testbed) Close() error {
	var err error
	if b.postgres != nil {
		err = b.postgres.Stop()
	}
	if b.hsm != nil {
		if b.Config != "" && b.Dir != "" {
			ctx, cancel := context.WithTimeout(context.Background(), 3*hsm.DefaultWait)
			defer cancel()
			if derr := b.hsm.Destroy(ctx, filepath.Base(b.Dir)); derr != nil {
				err = errors.Join(err, fmt.Errorf("the key %s may be left in the HSM: the next measurement with this configuration removes it, and %s: %w",
					filepath.Base(b.Dir), b.Dir, derr))
			}
		}
		err = errors.Join(err, b.hsm.Close())
	}
	if b.scratch != "" {
		err = errors.Join(err, os.RemoveAll(b.scratch), b.held.Close())
	}
	if b.Dir != "" && err == nil {
		err = os.RemoveAll(b.Dir)
	}
	if b.lock != nil {
		err = errors.Join(err, b.lock.Close())
	}
	return err
}

// Explain returns err, and adds that the disk is full if it is. A full disk causes many kinds of errors.
func (b *Testbed) Explain(err error) error {
	var disk unix.Statfs_t
	if err == nil || unix.Statfs(b.parent, &disk) != nil {
		return err
	}
	if free := int64(disk.Bavail) * int64(disk.Bsize); free < diskRoom { //nolint:gosec,unconvert // types differ between systems; no disk is that large
		next := "set TMPDIR to a directory with more room"
		if b.Config != "" {
			next = "make room there"
		}
		return fmt.Errorf("%w; only %.1f MiB are free on the disk of %s: %s", err, float64(free)/(1<<20), b.parent, next)
	}
	return err
}

// Floor opens the floor of issuing, on the same HSM and disk.
func (b *Testbed) Floor(ctx context.Context) (*floor.Floor, error) {
	dir := filepath.Join(b.Dir, "floor")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, err
	}
	path, err := node.Module(b.Like.HSM.Module)
	if err != nil {
		return nil, err
	}
	database, err := b.Database(ctx, "floor")
	if err != nil {
		return nil, err
	}
	c := floor.Config{
		Directory: dir, Postgres: database, Module: path, Label: b.Like.HSM.Label, Serial: b.Like.HSM.Serial, KeyLabel: b.Key.Label(), Sessions: floor.MaxGoroutines,
	}
	if b.Config != "" { // an operator's HSM may have fewer sessions
		c.Sessions = b.Like.HSM.Sessions
	}
	return floor.Open(ctx, c)
}
