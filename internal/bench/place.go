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
	// namePrefix begins the name of every directory, and the label of every key, that a measurement makes: the two have
	// one name, so that whoever finds the one knows the other.
	namePrefix = "brevet-bench-"
	// hsmLabel is an HSM that is made for a measurement.
	hsmLabel = "brevet-bench"
	// diskRoom is what a server needs on its disk to call itself ready.
	diskRoom = 64 << 20
)

// bench is a measurement, and the place of it: a directory, and a key in an HSM. Both go with it. What a killed one has
// left goes with the next one in the same place: a directory is locked for as long as a process of its measurement lives.
type bench struct {
	*output.Printer
	log    io.Writer
	config string      // path of the operator's configuration; empty for an HSM and a place of its own
	like   node.Config // what it says
	parent string      // of dir
	dir    string
	lock   *os.File
	pin    hsm.PIN
	hsm    *hsm.HSM
	key    *hsm.Key // P-256, and named like the directory
}

func (b *bench) say(format string, args ...any) { fmt.Fprintf(b.log, format+"\n", args...) }

// placeFlag adds --config to a measurement whose result depends on an operator's HSM and disk.
func placeFlag(cmd *cobra.Command) {
	node.ConfigFlag(cmd)
	cmd.Flags().Lookup("config").Usage = "configuration file whose HSM, and whose directory's disk, are measured (default: an HSM of its own, and TMPDIR)"
	cmd.Long += "\n\nWith --config it measures an operator's own HSM, with as many sessions as configured, and own disk, in a directory of\n" +
		"its own inside of the configured one. Of the other settings profiles and crl.partitions hold; rate_limits, server_names,\n" +
		"addresses, log, tracing and further CRL directories do not. It signs with a P-256 key that it makes in the HSM and destroys, both\n" +
		"named brevet-bench-…, and touches neither store nor log nor issuing keys, so that a server may be running."
}

// configured reports where a measurement takes place, by the configuration or by default.
func (b *bench) configured(cmd *cobra.Command, f *commonFlags) (err error) {
	b.parent = os.TempDir()
	if flag := cmd.Flags().Lookup("config"); flag != nil && flag.Changed {
		b.config = flag.Value.String()
	}
	if b.like, err = placeConfig(b.config); err != nil {
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

// placeConfig is what a measurement, or a process of it, takes from a configuration; without one, what it has of its own.
func placeConfig(path string) (node.Config, error) {
	if path != "" {
		return node.ReadConfig(path)
	}
	c := node.DefaultConfig()
	c.HSM.Label = hsmLabel
	return c, nil
}

// open makes the place. What it has made when it fails, close takes away.
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

// checkOwn refuses to work in somebody else's directory: files of root's in a server's HSM or directory are such that the
// server cannot read.
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

// makeDirectory makes one that is locked. Between the two steps another measurement may take it for a killed one's.
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

// lockDirectory locks a directory of this account's, or returns nil where another process has it, or it is gone.
func lockDirectory(dir string) (*os.File, error) {
	f, err := os.OpenFile(dir, os.O_RDONLY|syscall.O_DIRECTORY|syscall.O_NOFOLLOW, 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil //nolint:nilnil // that there is none is an answer
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

// initHSM makes a SoftHSM in the directory, whatever the user's own configuration of SoftHSM says. The processes
// of the measurement inherit where it is.
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

// sweep takes away what measurements in the same place have left that were killed: the key first, which only the
// directory tells of.
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
		b.say("removing %s, which a killed measurement left", dir)
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

// close takes everything away. It goes on where the command was interrupted. Where the operator's HSM cannot be reached, the
// directory stays, and with it the knowledge of what else has to go.
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

// explain adds to an error that the disk is full, where it is: what failed of that is of many kinds.
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

// floor is what issuing is compared with, on the same HSM and disk.
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
	if b.config != "" { // the operator says what the HSM bears
		c.Sessions = b.like.HSM.Sessions
	}
	return floor.Open(ctx, c)
}
