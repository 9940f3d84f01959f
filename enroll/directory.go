package enroll

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/brevet-pki/brevet/files"
)

// The names in a credential directory.
const (
	currentName = "current"      // symbolic link to the generation in use
	nextName    = "current.new"  // the next one, about to be renamed
	pendingName = "pending.json" // the request under way
	statusName  = "status.json"  // what the agent says of itself
	lockName    = "lock"         // flocked by the one process that writes
	generation  = "gen-"         // and a number: one pair
)

// Directory keeps an agent's credential in files:
//
//	current -> gen-7     the pair in use; programs that take file names are given current/cert.pem and so on
//	gen-7/key.pem        private key (PKCS #8, RFC 5958)
//	gen-7/cert.pem       the certificate, then its chain without the root
//	gen-7/bundle.pem     the trust domain's roots
//	gen-7/origin.json    where the pair came from
//	gen-6/               the pair before, for programs that are just reading it
//	pending.json         key and request ID of the request under way
//	status.json          what the agent says of itself
//
// Everybody may read the certificates and where they came from; the private key has mode 0600 unless ShareKey grants a
// group more, and all other files have mode 0600. A pair is written and flushed whole before current leads to it by one
// rename, so power may fail at any instruction. A Directory has one user at a time, in one process, which holds its lock.
type Directory struct {
	path string
	disk disk
	key  access // of the private key
	lock *os.File
	log  *slog.Logger
}

// OpenDirectory makes the directory where it does not exist, and locks it until Close. It fails when another process
// has it locked.
func OpenDirectory(path string, log *slog.Logger) (*Directory, error) {
	if err := makeAll(path); err != nil {
		return nil, fmt.Errorf("enroll: make the credential directory: %w", err)
	}
	if err := checkOwner(path, os.Geteuid()); err != nil {
		return nil, err
	}
	if err := files.CheckPrivate(path, 0o002); err != nil {
		return nil, fmt.Errorf("enroll: %w", err)
	}
	// A file that is open for writing would keep the file system from being remounted read-only.
	lock, err := files.OpenFile(filepath.Join(path, lockName), os.O_RDONLY|os.O_CREATE|files.NoFollow, 0o600)
	if err != nil {
		return nil, fmt.Errorf("enroll: open the credential directory: %w", err)
	}
	if err := flock(lock); err != nil {
		_ = lock.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("enroll: another process uses %s: stop it first, or give each its own directory", path)
		}
		return nil, fmt.Errorf("enroll: lock %s: %w", path, err)
	}
	d := &Directory{path: path, disk: apply, lock: lock, log: log}
	if err := d.probe(); err != nil {
		return nil, errors.Join(err, d.Close())
	}
	return d, nil
}

// probe refuses a directory that a first credential could not be put in use in, before a token is spent on it.
func (d *Directory) probe() error {
	if n, err := d.current(); err != nil || n > 0 {
		return nil //nolint:nilerr // a directory with a credential served before, and one that is damaged is for Load to report
	}
	for _, probe := range []func(string) error{files.ProbeFlush, files.ProbeLinks} {
		if err := probe(d.path); err != nil {
			return fmt.Errorf("enroll: %w", err)
		}
	}
	return nil
}

// flock takes the exclusive lock, for which Running may have to let go first.
func flock(lock *os.File) (err error) {
	for range 10 {
		if err = syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); !errors.Is(err, syscall.EWOULDBLOCK) {
			return err
		}
		time.Sleep(10 * time.Millisecond)
	}
	return err
}

// checkOwner keeps root from leaving files that the directory's owner, a service, cannot read.
func checkOwner(path string, user int) error {
	info, err := os.Stat(path)
	if err != nil {
		return fmt.Errorf("enroll: open the credential directory: %w", err)
	}
	if stat, ok := info.Sys().(*syscall.Stat_t); ok && user == 0 && stat.Uid != 0 {
		return fmt.Errorf("enroll: %s belongs to user %d, who could not read what root writes there: run this as that user (sudo -u '#%d' …)", path, stat.Uid, stat.Uid)
	}
	return nil
}

// Close unlocks the directory. To close the lock is not enough: a reload command that is being started just now has it open,
// too, until it runs its program.
func (d *Directory) Close() error {
	return errors.Join(syscall.Flock(int(d.lock.Fd()), syscall.LOCK_UN), d.lock.Close())
}

// Load reads the pair in use; ErrNoCredential where there is none yet. A key that other users can read is logged.
func (d *Directory) Load() (*Pair, error) {
	d.warnOfReaders(d.key)
	return ReadPair(d.path)
}

// warnOfReaders logs that users whom an access does not name can read the private key.
func (d *Directory) warnOfReaders(granted access) {
	file := filepath.Join(d.path, currentName, keyName)
	if info, err := os.Stat(file); err == nil && info.Mode().Perm()&^granted.perm() != 0 {
		d.log.Warn("other users can read the private key: give it mode 0600", "file", file, "mode", info.Mode().Perm())
	}
}

// ReadPair reads the pair in use from an agent's directory, without the lock; ErrNoCredential where there is none yet.
func ReadPair(path string) (*Pair, error) {
	name, err := os.Readlink(filepath.Join(path, currentName))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("enroll: %s: %w", path, ErrNoCredential)
	}
	if err != nil {
		return nil, fmt.Errorf("enroll: read the credential directory: %w", err)
	}
	p, err := readGeneration(filepath.Join(path, filepath.Base(name)))
	if err != nil {
		return nil, fmt.Errorf("enroll: the credential in %s does not load: %w", filepath.Join(path, name), err)
	}
	return p, nil
}

// install makes a pair the one in use. Where it fails, the pair in use is the old one or the new one, whole, and
// installing once more is safe.
func (d *Directory) install(p *Pair) error {
	files, err := p.files(d.key)
	if err != nil {
		return err
	}
	current, err := d.current()
	if err != nil {
		return err
	}
	if err := d.removeWhere(func(n int) bool { return n > current }); err != nil { // what an earlier try left
		return err
	}
	name := generation + strconv.Itoa(current+1)
	at := filepath.Join(d.path, name)
	changes := []change{{kind: makeDir, path: at}}
	for _, f := range files {
		file := filepath.Join(at, f.name)
		changes = append(changes, change{kind: create, path: file, data: f.data, keep: f.keep}, change{kind: flush, path: file})
	}
	if err := d.disk.all(changes...); err != nil {
		return fmt.Errorf("enroll: write the credential: %w", err)
	}
	if _, err := readGeneration(at); err != nil {
		return fmt.Errorf("enroll: what was written to %s does not load, and the credential in use stays: %w", at, err)
	}
	next := filepath.Join(d.path, nextName)
	err = d.disk.all(
		change{kind: flush, path: at},
		change{kind: remove, path: next},
		change{kind: link, path: next, to: name},
		change{kind: flush, path: d.path},
		change{kind: move, path: next, to: filepath.Join(d.path, currentName)},
		change{kind: flush, path: d.path},
	)
	if err != nil {
		return fmt.Errorf("enroll: put the credential in use: %w", err)
	}
	return nil
}

// prune removes all generations but the one in use and the one before it. What a failure leaves, the next call removes.
func (d *Directory) prune() error {
	current, err := d.current()
	if err != nil {
		return err
	}
	return d.removeWhere(func(n int) bool { return n < current-1 })
}

// current returns the number of the generation in use, 0 where there is none.
func (d *Directory) current() (int, error) {
	name, err := os.Readlink(filepath.Join(d.path, currentName))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return 0, fmt.Errorf("enroll: read the credential directory: %w", err)
	}
	return generationNumber(name), nil
}

// generationNumber returns 0 for a name that is no generation's.
func generationNumber(name string) int {
	digits, ok := strings.CutPrefix(name, generation)
	n, err := strconv.Atoi(digits)
	if !ok || err != nil || n < 0 {
		return 0
	}
	return n
}

// removeWhere removes the generations whose numbers match.
func (d *Directory) removeWhere(match func(int) bool) error {
	entries, err := os.ReadDir(d.path)
	if err != nil {
		return fmt.Errorf("enroll: read the credential directory: %w", err)
	}
	for _, e := range entries {
		if n := generationNumber(e.Name()); n > 0 && match(n) {
			if err := d.disk(change{kind: remove, path: filepath.Join(d.path, e.Name())}); err != nil {
				return fmt.Errorf("enroll: remove an old credential: %w", err)
			}
		}
	}
	return nil
}
