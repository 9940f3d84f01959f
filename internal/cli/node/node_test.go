package node

import (
	"bytes"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/brevet-pki/brevet/hsm"
)

// TestTheDirectoryIsTheServersOwn opens a node in a directory of another account. That must fail: otherwise a command
// that root runs could create files that the server's account cannot open.
func TestTheDirectoryIsTheServersOwn(t *testing.T) {
	own := t.TempDir()
	for _, dir := range []string{own, filepath.Join(own, "missing")} {
		if err := checkOwner(dir); err != nil {
			t.Errorf("%s: %v", dir, err)
		}
	}
	foreign := "/" // the root directory belongs to root
	if os.Geteuid() == 0 {
		foreign = t.TempDir()
		if err := os.Chown(foreign, 65534, 65534); err != nil {
			t.Fatal(err)
		}
	}
	n, err := Open(t.Context(), Config{StateDir: foreign}, hsm.PIN{}, nil)
	if n != nil || err == nil || !strings.Contains(err.Error(), "run it as the directory's owner, such as with runuser -u ") {
		t.Errorf("Open: %v, want an error that names the account", err)
	}
	if left, err := os.ReadDir(foreign); foreign != "/" && (err != nil || len(left) > 0) {
		t.Errorf("%v, and the directory contains %d files, want none", err, len(left))
	}
}

// TestLookForTheServerThatFails opens a node that could not look for another process of the server. A command must not go on as
// if there was none, and a server that starts replaces none that is known.
func TestLookForTheServerThatFails(t *testing.T) {
	c := Config{StateDir: t.TempDir(), Store: StoreConfig{Postgres: "host=" + t.TempDir() + " user=u dbname=d", Server: "one"}}
	n := &Node{config: c, log: slog.New(slog.DiscardHandler), slow: slowOpen}
	if err := n.openRecords(t.Context()); err == nil {
		t.Fatal("there is no database")
	}
	if n.CheckUnused() == nil || n.Replaces() != nil {
		t.Errorf("CheckUnused: %v, Replaces: %v; want only the first", n.CheckUnused(), n.Replaces())
	}
}

// lines is a log of which a test waits for the first line.
type lines struct {
	mu    sync.Mutex
	text  bytes.Buffer
	first chan struct{}
}

// Write implements io.Writer.
func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.text.Len() == 0 {
		close(l.first)
	}
	return l.text.Write(b)
}

// TestStartSaysWhatHangs opens a node whose archive is on a file system that never responds. The log must name the archive.
func TestStartSaysWhatHangs(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can mount a file system")
	}
	fuse, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err != nil {
		t.Skipf("mount a file system: %v", err)
	}
	defer fuse.Close()
	mount, dir := t.TempDir(), t.TempDir()
	options := fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0", fuse.Fd())
	if err := syscall.Mount("hang", mount, "fuse", 0, options); err != nil {
		t.Skipf("mount a file system: %v", err)
	}
	defer func() { _ = syscall.Unmount(mount, syscall.MNT_DETACH) }() // it is not used any more
	c := Config{StateDir: dir}
	if err := os.Symlink(filepath.Join(mount, archiveName), c.ArchivePath()); err != nil {
		t.Fatal(err)
	}
	log := &lines{first: make(chan struct{})}
	n := &Node{config: c, log: slog.New(slog.NewTextHandler(log, nil)), slow: time.Millisecond}
	opened := make(chan error, 1)
	go func() { opened <- n.openRecords(t.Context()) }()
	<-log.first
	if err := fuse.Close(); err != nil { // so that all calls fail
		t.Fatal(err)
	}
	if err := <-opened; err == nil {
		t.Error("the archive was opened")
	}
	if err := n.Close(); err != nil {
		t.Error(err)
	}
	if text := log.text.String(); !strings.Contains(text, "takes long") || !strings.Contains(text, "path="+c.ArchivePath()) {
		t.Errorf("the log is %q", text)
	}
}
