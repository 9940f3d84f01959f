package node

import (
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// volume reports the sizes of a server's files and the free space of their file system. It implements telemetry.Disk.
type volume struct {
	store string            // the path of a file that the server must be able to write
	files map[string]string // paths, keyed by the name in the metrics
}

func (c *Config) volume() volume {
	if c.Store.Postgres != "" {
		return volume{c.ArchivePath(), map[string]string{"archive": c.ArchivePath()}}
	}
	store := c.StorePath()
	return volume{store, map[string]string{"store": store, "wal": store + "-wal", "archive": c.ArchivePath()}}
}

// Sizes returns the sizes of the files in bytes, and 0 for a file that cannot be read.
func (v volume) Sizes() map[string]int64 {
	sizes := map[string]int64{}
	for name, path := range v.files {
		sizes[name] = 0
		if info, err := os.Stat(path); err == nil {
			sizes[name] = info.Size()
		}
	}
	return sizes
}

// Free returns the free bytes of the file system for a process without privileges, or an error if the store is not
// writable.
func (v volume) Free() (int64, error) {
	if err := unix.Access(v.store, unix.W_OK); err != nil {
		return 0, &os.PathError{Op: "write", Path: v.store, Err: err}
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(filepath.Dir(v.store), &fs); err != nil {
		return 0, &os.PathError{Op: "statfs", Path: v.store, Err: err}
	}
	return int64(fs.Bavail) * int64(fs.Bsize), nil //nolint:gosec,unconvert // the types differ between operating systems
}
