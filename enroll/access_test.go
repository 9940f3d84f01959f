package enroll

import (
	"context"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/brevet-pki/brevet/pki"
)

const (
	otherUser  = 54320
	otherGroup = 54321
)

// sharedDirectory opens a directory that every user can enter, and calls ShareKey for it.
func sharedDirectory(t *testing.T, group int, mode fs.FileMode) *Directory {
	t.Helper()
	base, err := os.MkdirTemp("", "access")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(base) })
	if err := os.Chmod(base, 0o711); err != nil {
		t.Fatal(err)
	}
	d := openTestDirectory(t, filepath.Join(base, "a"), new(testLog).logger())
	if err := d.ShareKey(group, mode); err != nil {
		t.Fatal(err)
	}
	return d
}

// canRead reports whether a user with a group can read a file.
func canRead(t *testing.T, uid, gid uint32, path string) bool {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "cat", path)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: gid, NoSetGroups: false}}
	return cmd.Run() == nil
}

// Members of the group can read the key, and other users cannot. All users can read the certificates. The umask has no
// effect.
func TestSharedKeyIsReadableByGroupOnly(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can run commands as other users")
	}
	ca := newTestCA(t)
	for _, umask := range []int{0, 0o077} {
		for _, group := range []int{0, otherGroup} {
			before := syscall.Umask(umask)
			mode := fs.FileMode(0o600)
			if group != 0 {
				mode = 0o640
			}
			d := sharedDirectory(t, group, mode)
			err := d.install(ca.pairFor(t, "device/1"))
			syscall.Umask(before)
			if err != nil {
				t.Fatal(err)
			}
			for _, gid := range []uint32{otherUser, otherGroup} {
				want := group != 0 && gid == otherGroup
				if got := canRead(t, otherUser, gid, filepath.Join(d.path, currentName, keyName)); got != want {
					t.Errorf("umask %#o, key of group %d: readable by group %d: %v", umask, group, gid, got)
				}
				for _, name := range []string{certName, bundleName, originName} {
					if !canRead(t, otherUser, gid, filepath.Join(d.path, currentName, name)) {
						t.Errorf("umask %#o: another user cannot read %s", umask, name)
					}
				}
			}
		}
	}
}

// The group can read the key of a new pair as soon as the pair is in use. If the configuration changes, the key in use
// gets the new group and mode.
func TestSharedKeyFollowsTheConfiguration(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can give files to any group")
	}
	d := sharedDirectory(t, otherGroup, 0o640)
	d.disk = func(c change) error {
		if c.kind == move && filepath.Base(c.to) == currentName {
			wantAccess(t, filepath.Join(d.path, "gen-1", keyName), otherGroup, 0o640)
		}
		return apply(c)
	}
	if err := d.install(newTestCA(t).pairFor(t, "device/1")); err != nil {
		t.Fatal(err)
	}
	key := filepath.Join(d.path, currentName, keyName)
	wantAccess(t, key, otherGroup, 0o640)
	if err := d.ShareKey(0, 0o600); err != nil {
		t.Fatal(err)
	}
	wantAccess(t, key, otherGroup, 0o600)
	if err := d.ShareKey(otherGroup+1, 0o440); err != nil {
		t.Fatal(err)
	}
	wantAccess(t, key, otherGroup+1, 0o440)
	if _, err := d.preparePending("certificate 1", pki.P256); err != nil {
		t.Fatal(err)
	}
	wantAccess(t, filepath.Join(d.path, pendingName), os.Getegid(), 0o600)
}

// wantAccess checks the group and mode of a file.
func wantAccess(t *testing.T, path string, group int, mode fs.FileMode) {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if gid := int(info.Sys().(*syscall.Stat_t).Gid); gid != group || info.Mode().Perm() != mode {
		t.Errorf("%s has group %d and mode %s, want %d and %s", path, gid, info.Mode(), group, mode)
	}
}

func TestKeyModes(t *testing.T) {
	for mode := range fs.FileMode(0o1000) {
		want := mode == 0o400 || mode == 0o440 || mode == 0o600 || mode == 0o640
		if err := CheckKeyMode(mode); (err == nil) != want {
			t.Errorf("mode %#o: %v", mode, err)
		}
	}
}

// If the agent is not a member of the group, it reports an error when it starts, and not at the first renewal.
func TestGroupOfOthersIsRefused(t *testing.T) {
	if os.Geteuid() != 0 {
		if err := checkGroup(otherGroup); err == nil || !strings.Contains(err.Error(), "is not a member") {
			t.Errorf("a foreign group: %v", err)
		}
		return
	}
	cmd := exec.CommandContext(context.WithoutCancel(t.Context()), "/proc/self/exe", "-test.run=^TestGroupOfOthersIsRefused$")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: otherUser, Gid: otherUser}}
	cmd.Dir = "/"
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("as another user: %v\n%s", err, out)
	}
}
