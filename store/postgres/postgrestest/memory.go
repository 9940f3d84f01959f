package postgrestest

import (
	"os"

	"golang.org/x/sys/unix"
)

const (
	inMemory  = "/dev/shm" // a file system in memory, on Linux
	minMemory = 2 << 30    // bytes that must be free in it
)

// directory returns the directory for the data of servers: one in memory, where a commit need not wait for a disk, or that for
// temporary files if there is none or it is small. TMPDIR has precedence.
func directory() string {
	var space unix.Statfs_t
	if os.Getenv("TMPDIR") != "" || unix.Access(inMemory, unix.W_OK) != nil || unix.Statfs(inMemory, &space) != nil ||
		space.Bavail*uint64(space.Bsize) < minMemory { //nolint:gosec // a size
		return os.TempDir()
	}
	return inMemory
}
