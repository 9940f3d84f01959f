package testbed

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A measurement removes only directories of its own account that no running measurement has locked.
func TestDirectoryLock(t *testing.T) {
	dir := t.TempDir()
	lock, err := lockDirectory(dir)
	if err != nil || lock == nil {
		t.Fatal(lock, err)
	}
	if again, err := lockDirectory(dir); err != nil || again != nil {
		t.Errorf("locking a locked directory: %v, %v, want nil and no error", again, err)
	}
	if err := lock.Close(); err != nil {
		t.Fatal(err)
	}
	if lock, err = lockDirectory(dir); err != nil || lock == nil {
		t.Errorf("locking an unlocked directory: %v, %v", lock, err)
	}
	if gone, err := lockDirectory(filepath.Join(dir, "gone")); err != nil || gone != nil {
		t.Errorf("locking a directory that does not exist: %v, %v, want nil and no error", gone, err)
	}
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(dir, link); err != nil {
		t.Fatal(err)
	}
	if f, err := lockDirectory(link); err == nil {
		t.Errorf("locking a symbolic link: %v, want an error", f)
	}

	other := "/"
	if os.Geteuid() == 0 {
		other = t.TempDir()
		if err := os.Chown(other, 65534, -1); err != nil {
			t.Fatal(err)
		}
	}
	if err := checkOwn(other); err == nil || !strings.Contains(err.Error(), "measure as that") {
		t.Errorf("checkOwn of another account's directory: %v", err)
	}
	if err := checkOwn(dir); err != nil {
		t.Error(err)
	}
}

func TestErrorsNameAFullDisk(t *testing.T) {
	why := errors.New("why")
	full := &Testbed{parent: "/proc"} // a file system without free space
	if err := full.Explain(why); !errors.Is(err, why) || !strings.Contains(err.Error(), "set TMPDIR") {
		t.Error(err)
	}
	full.Config = "brevet.yaml"
	if err := full.Explain(why); !errors.Is(err, why) || !strings.Contains(err.Error(), "make room") {
		t.Error(err)
	}
	if err := full.Explain(nil); err != nil {
		t.Error(err)
	}
}
