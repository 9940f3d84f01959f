package sqlite

import (
	"strings"
	"syscall"
	"testing"

	sqlite3 "github.com/mattn/go-sqlite3"

	"github.com/brevet-pki/brevet/pki"
)

// SQLite reports a full and a read-only disk with an error of its own, which the store must recognize.
func TestDiskErrors(t *testing.T) {
	for errno, says := range map[syscall.Errno]string{syscall.ENOSPC: "free some", syscall.EROFS: "read-only", syscall.EIO: "kernel's log"} {
		err := fail("try", sqlite3.Error{Code: sqlite3.ErrIoErr, SystemErrno: errno})
		if !pki.IsTemporary(err) || pki.RetryAfter(err) <= 0 || !strings.Contains(err.Error(), says) {
			t.Errorf("%v became %v, want a Temporary error that says %q", errno, err, says)
		}
	}
}
