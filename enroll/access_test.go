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

// sharedDirectory opens a directory that every user can reach, and shares its key.
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

// canRead reports whether a user of a group can read a file.
func canRead(t *testing.T, uid, gid uint32, path string) bool {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "cat", path)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: gid, NoSetGroups: false}}
	return cmd.Run() == nil
}

// A member of the group reads the key, and nobody else does; everybody reads the certificates. The umask does not matter.
func TestSharedKey(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root becomes other users")
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
					t.Errorf("umask %#o, key of group %d: a user of group %d reads it: %v", umask, group, gid, got)
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

// The grant is there when the new pair comes into use, and is taken back from the pair in use with the next start.
func TestSharedKeyFollowsTheConfiguration(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root gives files to any group")
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
	if _, err := d.pend("certificate 1", pki.P256); err != nil {
		t.Fatal(err)
	}
	wantAccess(t, filepath.Join(d.path, pendingName), os.Getegid(), 0o600)
}

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

// A group that the agent is not a member of is found out at the start, not at the first renewal.
func TestGroupOfOthersIsRefused(t *testing.T) {
	if os.Geteuid() != 0 {
		if err := checkGroup(otherGroup); err == nil || !strings.Contains(err.Error(), "is not a member") {
			t.Errorf("a group of others: %v", err)
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
