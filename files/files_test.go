package files_test

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/brevet-pki/brevet/files"
)

// kinds contains functions that create files which are not regular, keyed by the kind of file.
var kinds = map[string]func(path string) error{
	"a FIFO":      func(path string) error { return syscall.Mkfifo(path, 0o600) },
	"a directory": func(path string) error { return os.Mkdir(path, 0o700) },
	"a symbolic link to a FIFO": func(path string) error {
		return errors.Join(syscall.Mkfifo(path+".f", 0o600), os.Symlink(path+".f", path))
	},
	"a symbolic link to nothing": func(path string) error { return os.Symlink(path+".none", path) },
	"a device":                   func(path string) error { return os.Symlink("/dev/zero", path) },
}

func TestOnlyRegularFilesAreOpened(t *testing.T) {
	for kind, lay := range kinds {
		t.Run(kind, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, "x")
			must(t, lay(path))
			d := open(t, dir)
			for name, opened := range map[string]func() (*os.File, error){
				"Open":      func() (*os.File, error) { return files.Open(path) },
				"OpenFile":  func() (*os.File, error) { return files.OpenFile(path, os.O_WRONLY|files.NoFollow, 0) },
				"Directory": func() (*os.File, error) { return d.Open("x") },
			} {
				if f, err := opened(); err == nil {
					t.Errorf("%s opened %s", name, f.Name())
				}
			}
			if _, err := files.Read(path, 10); err == nil {
				t.Error("Read accepted it")
			}
		})
	}
}

func TestReadLimitsSize(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x")
	must(t, os.WriteFile(path, []byte("0123456789"), 0o600))
	if content, err := files.Read(path, 10); err != nil || string(content) != "0123456789" {
		t.Errorf("Read = %q, %v", content, err)
	}
	if _, err := files.Read(path, 9); err == nil {
		t.Error("Read accepted a file over the limit")
	}
}

func TestCreateFollowsNothing(t *testing.T) {
	dir := t.TempDir()
	victim := filepath.Join(dir, "victim")
	must(t, os.WriteFile(victim, []byte("old"), 0o600))
	for kind, lay := range map[string]func(path string) error{
		"a symbolic link": func(path string) error { return os.Symlink(victim, path) },
		"a hard link":     func(path string) error { return os.Link(victim, path) },
		"a FIFO":          func(path string) error { return syscall.Mkfifo(path, 0o600) },
		"nothing":         func(string) error { return nil },
	} {
		path := filepath.Join(dir, strings.ReplaceAll(kind, " ", "-"))
		must(t, lay(path))
		f, err := files.Create(path, 0o600)
		if err != nil {
			t.Errorf("%s: %v", kind, err)
			continue
		}
		_, err = io.WriteString(f, "new")
		must(t, errors.Join(err, f.Close()))
		if content, err := files.Read(path, 10); err != nil || string(content) != "new" {
			t.Errorf("%s: the new file contains %q, %v", kind, content, err)
		}
	}
	if content, err := files.Read(victim, 10); err != nil || string(content) != "old" {
		t.Errorf("the link's target contains %q, %v", content, err)
	}
	if _, err := files.OpenFile(filepath.Join(dir, "a-symbolic-link"), os.O_RDWR|files.NoFollow, 0); err != nil {
		t.Error(err) // Create must have replaced the link by a file
	}
}

// TestDirectoryAccessesNothingOutside calls every method with links that lead out of the directory.
func TestDirectoryAccessesNothingOutside(t *testing.T) {
	outside, dir := t.TempDir(), t.TempDir()
	victim := filepath.Join(outside, "victim")
	must(t, os.WriteFile(victim, []byte("old"), 0o600))
	must(t, os.Chmod(outside, 0o700))
	must(t, os.Symlink(victim, filepath.Join(dir, "file")))
	must(t, os.Symlink(outside, filepath.Join(dir, "sub")))
	d := open(t, dir)
	text := func(w io.Writer) error { _, err := io.WriteString(w, "new"); return err }
	if _, err := d.Open("file"); err == nil {
		t.Error("Open followed a link out of the directory")
	}
	if err := errors.Join(d.Make("sub", 0o777), d.Replace("sub/victim", 0o644, text)); err == nil {
		t.Error("Replace wrote outside the directory")
	}
	if err := d.Replace("file", 0o644, text); err != nil {
		t.Error(err)
	}
	failed := errors.New("no more")
	if err := d.Replace("file", 0o644, func(io.Writer) error { return failed }); !errors.Is(err, failed) {
		t.Errorf("error of a failed write: %v", err)
	}
	if info, err := os.Lstat(filepath.Join(dir, "file")); err != nil || info.Mode() != 0o644 || info.Size() != 3 {
		t.Errorf("the file is %v, %v", info, err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 2 {
		t.Errorf("remaining files: %v, %v", left, err)
	}
	if info, err := os.Stat(victim); err != nil || info.Mode() != 0o600 || info.Size() != 3 {
		t.Errorf("the link's target is %v, %v", info, err)
	}
	if info, err := os.Stat(outside); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("the directory outside is %v, %v", info, err)
	}
	fifo := filepath.Join(dir, "fifo")
	must(t, syscall.Mkfifo(fifo, 0o600))
	if _, err := files.OpenDirectory(fifo); err == nil {
		t.Error("OpenDirectory opened a FIFO")
	}
}

func TestProbes(t *testing.T) {
	dir := t.TempDir()
	if err := errors.Join(files.ProbeFlush(dir), files.ProbeLinks(dir), files.CheckPrivate(dir, 0o022)); err != nil {
		t.Error(err)
	}
	if err := files.ProbeFlush("/proc"); err == nil || !strings.Contains(err.Error(), "cannot flush directories") {
		t.Errorf("flushing /proc: %v, want an error", err)
	}
	if err := files.ProbeLinks("/proc"); err != nil && !strings.Contains(err.Error(), "no symbolic links") {
		t.Error(err)
	}
	must(t, os.Chmod(dir, 0o770))
	if err := files.CheckPrivate(dir, 0o022); err == nil || !strings.Contains(err.Error(), "0770") {
		t.Errorf("a directory writable by the group was accepted: %v", err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("remaining files: %v, %v", left, err)
	}
	if !files.Unsupported(&fs.PathError{Err: syscall.EINVAL}) || files.Unsupported(syscall.EIO) || files.Unsupported(nil) {
		t.Error("Unsupported accepted another error")
	}
}

func open(t *testing.T, path string) *files.Directory {
	t.Helper()
	d, err := files.OpenDirectory(path)
	must(t, err)
	t.Cleanup(func() { must(t, d.Close()) })
	return d
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
