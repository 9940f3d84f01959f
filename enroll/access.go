package enroll

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"
)

// access says who may use a file. The zero value is the agent's own user alone.
type access struct {
	group int // 0 leaves the group that the file system gives; root needs no grant
	mode  fs.FileMode
}

// public is for what holds no secret.
var public = access{mode: 0o644}

// perm returns the mode, 0600 if none is set.
func (a access) perm() fs.FileMode {
	if a.mode == 0 {
		return 0o600
	}
	return a.mode
}

// apply gives an open file its group, then its mode, whatever the umask is. At no time may more users read the file than
// in the end. A file that has both already is left alone: its file system may be read-only.
func (a access) apply(f *os.File) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	if ok && info.Mode().Perm() == a.perm() && (a.group == 0 || a.group == int(stat.Gid)) {
		return nil
	}
	if a.group != 0 {
		if err := f.Chown(-1, a.group); err != nil {
			return err
		}
	}
	return f.Chmod(a.perm())
}

// ShareKey sets the mode of the private key, which CheckKeyMode has to accept, and its group, which 0 leaves as it is:
// of the key in use now, and of all that follow. It is called before NewAgent.
func (d *Directory) ShareKey(group int, mode fs.FileMode) error {
	if err := errors.Join(CheckKeyMode(mode), checkGroup(group)); err != nil {
		return err
	}
	d.key = access{group: group, mode: mode}
	d.warnOfReaders(access{mode: 0o660}) // of what is mended here, everybody's mode alone is news
	f, err := os.Open(filepath.Join(d.path, currentName, keyName))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("enroll: share the private key: %w", err)
	}
	defer func() { _ = f.Close() }() // nothing was written
	if err := d.key.apply(f); err != nil {
		return fmt.Errorf("enroll: share the private key: %w", err)
	}
	if info, err := os.Stat(d.path); err == nil && mode&0o040 != 0 && info.Mode().Perm()&0o011 == 0 {
		d.log.Warn("other users cannot enter the credential directory: give it mode 0711", "directory", d.path, "mode", info.Mode().Perm())
	}
	return nil
}

// CheckKeyMode accepts the modes of a private key that its owner, and at most its group, may read: 0400, 0440, 0600, 0640.
func CheckKeyMode(mode fs.FileMode) error {
	if !slices.Contains([]fs.FileMode{0o400, 0o440, 0o600, 0o640}, mode) {
		return fmt.Errorf("enroll: a private key cannot have mode %#o: use 0600, or 0640 to share it with a group", mode)
	}
	return nil
}

// checkGroup refuses a group that this process cannot give files to.
func checkGroup(group int) error {
	if group == 0 || os.Geteuid() == 0 || group == os.Getegid() {
		return nil
	}
	groups, err := os.Getgroups()
	if err != nil {
		return fmt.Errorf("enroll: look up the agent's groups: %w", err)
	}
	if !slices.Contains(groups, group) {
		return fmt.Errorf("enroll: the private key cannot be given to group %d: user %d, who runs the agent, is not a member", group, os.Geteuid())
	}
	return nil
}
