package enroll

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
)

// access holds the group and mode of a file. In the zero value, the mode is 0600 and the group is the file system's
// default.
type access struct {
	group int // group ID; 0 keeps the file system's default
	mode  fs.FileMode
}

// public is the access of files that contain no secrets.
var public = access{mode: 0o644}

// perm returns the mode, or 0600 if none is set.
func (a access) perm() fs.FileMode {
	if a.mode == 0 {
		return 0o600
	}
	return a.mode
}

// apply sets the group of an open file, and then its mode. The umask has no effect on the mode. Between the two steps,
// no user can read the file who cannot read it afterwards.
func (a access) apply(f *os.File) error {
	if a.group != 0 {
		if err := f.Chown(-1, a.group); err != nil {
			return err
		}
	}
	return f.Chmod(a.perm())
}

// ShareKey sets the mode and group of the current private key and of all later ones. CheckKeyMode must accept the mode.
// With group 0 the group stays as it is. Call ShareKey before NewAgent.
func (d *Directory) ShareKey(group int, mode fs.FileMode) error {
	if err := errors.Join(CheckKeyMode(mode), checkGroup(group)); err != nil {
		return err
	}
	d.key = access{group: group, mode: mode}
	// Warn about other users only: the code below corrects the permissions of the owner and the group.
	d.warnOfReaders(access{mode: 0o660})
	f, err := os.Open(filepath.Join(d.path, currentName, keyName))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open the private key to set its mode: %w", err)
	}
	defer func() { _ = f.Close() }()
	if err := d.key.apply(f); err != nil {
		return fmt.Errorf("set the private key's mode to %#o, and its group: %w", mode, err)
	}
	if info, err := os.Stat(d.path); err == nil && mode&0o040 != 0 && info.Mode().Perm()&0o011 == 0 {
		d.log.Warn("the key's group cannot enter the credential directory, give it mode 0711",
			"directory", d.path, "mode", info.Mode().Perm())
	}
	return nil
}

// CheckKeyMode returns an error unless the mode is 0400, 0440, 0600 or 0640. With these, the owner and at most the
// group can read a private key.
func CheckKeyMode(mode fs.FileMode) error {
	if !slices.Contains([]fs.FileMode{0o400, 0o440, 0o600, 0o640}, mode) {
		return fmt.Errorf("mode %#o of the private key: use 0600, or 0640 to share it with a group", mode)
	}
	return nil
}

// checkGroup returns an error if this process may not assign files to the group.
func checkGroup(group int) error {
	if group == 0 || os.Geteuid() == 0 || group == os.Getegid() {
		return nil
	}
	groups, err := os.Getgroups()
	if err != nil {
		return fmt.Errorf("look up the agent's groups: %w", err)
	}
	if !slices.Contains(groups, group) {
		return fmt.Errorf("the private key cannot be given to group %d: user %d, which runs the agent, is "+
			"not a member", group, os.Geteuid())
	}
	return nil
}
