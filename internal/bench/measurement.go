package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/brevet-pki/brevet/hsm"
	"github.com/brevet-pki/brevet/internal/bench/floor"
	"github.com/brevet-pki/brevet/internal/cli/devca"
	"github.com/brevet-pki/brevet/internal/cli/node"
	"github.com/brevet-pki/brevet/internal/cli/output"
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

// bench is a measurement with its directory and its key in an HSM. close removes both. If a measurement was killed, the
// next one with the same parent directory removes them: a directory is in use while a process of its measurement holds
// its lock.
type bench struct {
	*output.Printer
	log    io.Writer
	config string      // path of the operator's configuration; empty for a new SoftHSM in TMPDIR
	like   node.Config // the configuration: config's, or the default
	parent string      // of dir
	dir    string
	lock   *os.File
	pin    hsm.PIN
	hsm    *hsm.HSM
	key    *hsm.Key // P-256, with the directory's name as label
}

func (b *bench) logf(format string, args ...any) { fmt.Fprintf(b.log, format+"\n", args...) }

// configFlag adds the flag --config to a command whose result depends on HSM and disk.
func configFlag(cmd *cobra.Command) {
	node.ConfigFlag(cmd)
	cmd.Flags().Lookup("config").Usage = "configuration file with the HSM and the state_dir to measure (default: a new SoftHSM, and TMPDIR)"
	cmd.Long += "\n\nWith --config it measures the configured HSM with hsm.sessions, and the disk of state_dir, in a new directory there.\n" +
		"crl.partitions and the profiles in the file of policy apply, too. rate_limits, server_names, addresses, log, tracing and\n" +
		"crl.directories do not.\n" +
		"It signs with a new P-256 key in the HSM. Directory and key are named brevet-bench-… and removed at the end. Store, log\n" +
		"and issuing keys are not used, so a server may be running."
}

// configured reads the configuration and its PIN, or sets the defaults.
func (b *bench) configured(cmd *cobra.Command, f *commonFlags) (err error) {
	b.parent = os.TempDir()
	if flag := cmd.Flags().Lookup("config"); flag != nil && flag.Changed {
		b.config = flag.Value.String()
	}
	if b.like, err = readBenchConfig(b.config); err != nil {
		return err
	}
	if f.inHSM > 0 {
		b.like.HSM.Sessions = f.inHSM
	}
	if b.config == "" {
		return nil
	}
	b.parent = b.like.StateDir
	b.pin, err = b.like.PIN()
	return err
}

// readBenchConfig returns the configuration of a measurement and its processes: that in the file, or the default if
// path is empty.
func readBenchConfig(path string) (node.Config, error) {
	if path != "" {
		return node.ReadConfig(path)
	}
	c := node.DefaultConfig()
	c.HSM.Label = hsmLabel
	return c, nil
}

// open makes the directory and the key. The caller must call close, even if open fails.
func (b *bench) open(cmd *cobra.Command, f *commonFlags) (err error) {
	ctx := cmd.Context()
	if err := b.configured(cmd, f); err != nil {
		return err
	}
	if f.keyLabel != "" {
		if b.hsm, err = node.OpenHSM(ctx, b.like.HSM, b.pin); err != nil {
			return err
		}
		b.key, err = b.hsm.Find(ctx, hsm.KeyRef{Label: f.keyLabel})
		return err
	}
	return b.explain(b.make(ctx))
}

// make makes the directory, opens the HSM, removes what killed measurements left, and makes the key.
func (b *bench) make(ctx context.Context) (err error) {
	if b.config != "" {
		if err := checkOwn(b.parent); err != nil {
			return err
		}
	}
	if err := b.makeDirectory(); err != nil {
		return fmt.Errorf("make a directory to measure in: %w", err)
	}
	if b.config == "" {
		if err := b.initHSM(ctx); err != nil {
			return err
		}
	}
	if b.hsm, err = node.OpenHSM(ctx, b.like.HSM, b.pin); err != nil {
		return err
	}
	if err := b.sweep(ctx); err != nil {
		return fmt.Errorf("remove what a killed measurement left: %w", err)
	}
	b.key, err = b.hsm.Generate(ctx, filepath.Base(b.dir), hsm.P256)
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
func (b *bench) makeDirectory() error {
	for {
		dir, err := os.MkdirTemp(b.parent, namePrefix)
		if err != nil {
			return err
		}
		lock, err := lockDirectory(dir)
		if err != nil || lock != nil {
			b.dir, b.lock = dir, lock
			return err
		}
	}
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
func (b *bench) initHSM(ctx context.Context) error {
	if err := devca.UseSoftHSM(filepath.Join(b.dir, "token")); err != nil {
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
func (b *bench) sweep(ctx context.Context) error {
	found, err := os.ReadDir(b.parent)
	if err != nil {
		return err
	}
	for _, e := range found {
		dir := filepath.Join(b.parent, e.Name())
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
		b.logf("removing %s, which a killed measurement left", dir)
		err = b.hsm.Destroy(ctx, e.Name())
		if err == nil {
			err = os.RemoveAll(dir)
		}
		if err := errors.Join(err, lock.Close()); err != nil {
			return err
		}
	}
	return nil
}

// close removes the benchmark's key and directory, even if the command was interrupted. If the key is in an operator's HSM
// and destroying it fails, the directory stays, so that the next measurement destroys the key.
func (b *bench) close() error {
	var err error
	if b.hsm != nil {
		if b.config != "" && b.dir != "" {
			ctx, cancel := context.WithTimeout(context.Background(), 3*hsm.DefaultWait)
			defer cancel()
			if derr := b.hsm.Destroy(ctx, filepath.Base(b.dir)); derr != nil {
				err = fmt.Errorf("the key %s may be left in the HSM: the next measurement with this configuration removes it, and %s: %w",
					filepath.Base(b.dir), b.dir, derr)
			}
		}
		err = errors.Join(err, b.hsm.Close())
	}
	if b.dir != "" && err == nil {
		err = os.RemoveAll(b.dir)
	}
	if b.lock != nil {
		err = errors.Join(err, b.lock.Close())
	}
	return err
}

// explain returns err, and adds that the disk is full if it is. A full disk causes many kinds of errors.
func (b *bench) explain(err error) error {
	var disk unix.Statfs_t
	if err == nil || unix.Statfs(b.parent, &disk) != nil {
		return err
	}
	if free := int64(disk.Bavail) * int64(disk.Bsize); free < diskRoom { //nolint:gosec,unconvert // types differ between systems; no disk is that large
		next := "set TMPDIR to a directory with more room"
		if b.config != "" {
			next = "make room there"
		}
		return fmt.Errorf("%w; only %.1f MiB are free on the disk of %s: %s", err, float64(free)/(1<<20), b.parent, next)
	}
	return err
}

// floor opens the floor of issuing, on the same HSM and disk.
func (b *bench) floor(ctx context.Context) (*floor.Floor, error) {
	dir := filepath.Join(b.dir, "floor")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, err
	}
	path, err := node.Module(b.like.HSM.Module)
	if err != nil {
		return nil, err
	}
	c := floor.Config{
		Directory: dir, Module: path, Label: b.like.HSM.Label, Serial: b.like.HSM.Serial, KeyLabel: b.key.Label(), Sessions: floor.MaxGoroutines,
	}
	if b.config != "" { // an operator's HSM may have fewer sessions
		c.Sessions = b.like.HSM.Sessions
	}
	return floor.Open(ctx, c)
}
