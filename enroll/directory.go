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

	"github.com/brevet-pki/brevet/enroll/tpm"
	"github.com/brevet-pki/brevet/files"
)

// The names of the files in a credential directory.
const (
	currentName   = "current"      // symbolic link to the current version
	nextName      = "current.new"  // new link, which is renamed to currentName
	pendingName   = "pending.json" // request in progress
	statusName    = "status.json"  // [Status] of the agent
	lockName      = "lock"         // locked with flock(2) by the process that writes
	versionPrefix = "gen-"         // prefix of the name of a version's directory, before its number
)

// Directory stores an agent's credential in files:
//
//	current -> gen-7     the version in use; programs are configured with current/cert.pem and so on
//	gen-7/key.pem        private key (PKCS #8, RFC 5958, or a TSS2 key that only the TPM can use)
//	gen-7/cert.pem       the certificate, then its chain without the root
//	gen-7/bundle.pem     the trust domain's roots
//	gen-7/origin.json    the server and token that the pair was obtained with
//	gen-6/               the previous version, for programs that are still reading it
//	pending.json         key and request ID of the request in progress
//	status.json          the agent's Status
//
// All users can read the certificates and origin.json. The private key has mode 0600 unless ShareKey grants a group
// access; all other files have mode 0600. A version is written and flushed completely before one rename points current
// to it, so a power failure at any instruction leaves a working pair. Only one process uses a Directory at a time: it
// holds the lock.
type Directory struct {
	path string
	disk disk
	key  access      // access of the private key
	tpm  *tpm.Device // where new keys are made; nil for keys in files
	lock *os.File
	log  *slog.Logger
}

// OpenDirectory creates the directory if it does not exist, and locks it until Close. It fails if another process holds
// the lock.
func OpenDirectory(path string, log *slog.Logger) (*Directory, error) {
	if err := makeAll(path); err != nil {
		return nil, fmt.Errorf("make the credential directory: %w", err)
	}
	if err := checkOwner(path, os.Geteuid()); err != nil {
		return nil, err
	}
	if err := files.CheckPrivate(path, 0o002); err != nil {
		return nil, fmt.Errorf("%w", err)
	}
	// The lock is opened read-only: a file open for writing would prevent a read-only remount of the file system.
	lock, err := files.OpenFile(filepath.Join(path, lockName), os.O_RDONLY|os.O_CREATE|files.NoFollow, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the credential directory: %w", err)
	}
	if err := flock(lock); err != nil {
		_ = lock.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("another process uses %s: stop it first, or give each its own directory",
				path)
		}
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	d := &Directory{path: path, disk: apply, lock: lock, log: log}
	if err := d.probe(); err != nil {
		return nil, errors.Join(err, d.Close())
	}
	return d, nil
}

// probe checks that the file system supports flushing and symbolic links, before the agent uses a token for the first
// credential.
func (d *Directory) probe() error {
	if n, err := d.current(); err != nil || n > 0 {
		return nil //nolint:nilerr // the directory contains a credential: Load reports errors
	}
	for _, probe := range []func(string) error{files.ProbeFlush, files.ProbeLinks} {
		if err := probe(d.path); err != nil {
			return fmt.Errorf("%w", err)
		}
	}
	return nil
}

// flock takes the exclusive lock. It retries for 100 ms, because another process that calls Running holds the lock briefly.
func flock(lock *os.File) (err error) {
	for range 10 {
		if err = syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); !errors.Is(err, syscall.EWOULDBLOCK) {
			return err
		}
		time.Sleep(10 * time.Millisecond)
	}
	return err
}

// checkOwner returns an error if this process runs as root and the directory belongs to another user, who could not
// read the files that root creates.
func checkOwner(path string, user int) error {
	info, err := os.Stat(path)
	if err != nil {
		return fmt.Errorf("open the credential directory: %w", err)
	}
	if stat, ok := info.Sys().(*syscall.Stat_t); ok && user == 0 && stat.Uid != 0 {
		return fmt.Errorf("%s belongs to user %d, which could not read the files that root writes: run this "+
			"as that user (sudo -u '#%d' …)", path, stat.Uid, stat.Uid)
	}
	return nil
}

// Close unlocks the directory. Closing the lock's file would not be enough. While a reload command starts, it shares
// the open file until it executes its program.
func (d *Directory) Close() error {
	return errors.Join(syscall.Flock(int(d.lock.Fd()), syscall.LOCK_UN), d.lock.Close())
}

// Load reads the pair in use, and logs a warning if other users can read its key. Without a credential it returns
// ErrNoCredential.
func (d *Directory) Load() (*Pair, error) {
	d.warnOfReaders(d.key)
	return ReadPair(d.path)
}

// warnOfReaders logs a warning if users can read the private key to whom granted gives no access.
func (d *Directory) warnOfReaders(granted access) {
	file := filepath.Join(d.path, currentName, keyName)
	if info, err := os.Stat(file); err == nil && info.Mode().Perm()&^granted.perm() != 0 {
		d.log.Warn("other users can read the private key, give it mode 0600", "file", file, "mode", info.Mode().Perm())
	}
}

// ReadPair reads the pair in use from an agent's directory, without locking the directory. Without a credential it
// returns ErrNoCredential.
func ReadPair(path string) (*Pair, error) {
	name, err := os.Readlink(filepath.Join(path, currentName))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s: %w", path, ErrNoCredential)
	}
	if err != nil {
		return nil, fmt.Errorf("read the credential directory: %w", err)
	}
	p, err := readVersion(filepath.Join(path, filepath.Base(name)))
	if err != nil {
		return nil, fmt.Errorf("the credential in %s does not load: %w", filepath.Join(path, name), err)
	}
	return p, nil
}

// install puts a pair in use. If it fails, either the old or the new pair is in use, and is complete. install may be
// called again.
func (d *Directory) install(p *Pair) error {
	files, err := p.files(d.key)
	if err != nil {
		return err
	}
	current, err := d.current()
	if err != nil {
		return err
	}
	if err := d.removeWhere(func(n int) bool { return n > current }); err != nil { // an earlier try may have failed
		return err
	}
	name := versionPrefix + strconv.Itoa(current+1)
	at := filepath.Join(d.path, name)
	changes := []change{{kind: makeDir, path: at}}
	for _, f := range files {
		file := filepath.Join(at, f.name)
		changes = append(changes, change{kind: create, path: file, data: f.data, access: f.access}, change{kind: flush, path: file})
	}
	if err := d.disk.applyAll(changes...); err != nil {
		return fmt.Errorf("write the credential: %w", err)
	}
	if _, err := readVersion(at); err != nil {
		return fmt.Errorf("the credential written to %s does not load, keeping the one in use: %w", at, err)
	}
	next := filepath.Join(d.path, nextName)
	err = d.disk.applyAll(
		change{kind: flush, path: at},
		change{kind: remove, path: next},
		change{kind: link, path: next, to: name},
		change{kind: flush, path: d.path},
		change{kind: move, path: next, to: filepath.Join(d.path, currentName)},
		change{kind: flush, path: d.path},
	)
	if err != nil {
		return fmt.Errorf("put the credential in use: %w", err)
	}
	return nil
}

// prune removes all versions except the current one and the one before it. If it fails, the next call removes the rest.
func (d *Directory) prune() error {
	current, err := d.current()
	if err != nil {
		return err
	}
	return d.removeWhere(func(n int) bool { return n < current-1 })
}

// current returns the number of the current version, or 0 if there is none.
func (d *Directory) current() (int, error) {
	name, err := os.Readlink(filepath.Join(d.path, currentName))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return 0, fmt.Errorf("read the credential directory: %w", err)
	}
	return versionNumber(name), nil
}

// versionNumber returns the number in a version's name, or 0 if the name is not a version's.
func versionNumber(name string) int {
	digits, ok := strings.CutPrefix(name, versionPrefix)
	n, err := strconv.Atoi(digits)
	if !ok || err != nil || n < 0 {
		return 0
	}
	return n
}

// removeWhere removes the versions for whose numbers match returns true.
func (d *Directory) removeWhere(match func(int) bool) error {
	entries, err := os.ReadDir(d.path)
	if err != nil {
		return fmt.Errorf("read the credential directory: %w", err)
	}
	for _, e := range entries {
		if n := versionNumber(e.Name()); n > 0 && match(n) {
			if err := d.disk(change{kind: remove, path: filepath.Join(d.path, e.Name())}); err != nil {
				return fmt.Errorf("remove an old credential: %w", err)
			}
		}
	}
	return nil
}
