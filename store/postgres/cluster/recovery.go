package cluster

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// Archiving restarts a server so that it copies each segment of its WAL to a directory, and returns that.
func (c *Cluster) Archiving() (dir string, err error) {
	dir = filepath.Join(c.dir, "wal")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return "", err
	}
	if c.owner != nil {
		if err := c.giveAll(dir); err != nil {
			return "", err
		}
	}
	if err := c.end(syscall.SIGINT); err != nil {
		return "", err
	}
	return dir, c.Run("archive_mode=on", fmt.Sprintf("archive_command=test ! -f %[1]s/%%f && cp %%p %[1]s/%%f", dir))
}

// Recover starts a server with data that pg_basebackup has written, and that were set up for a recovery. It returns when the
// server writes. The data are moved into the directory of the result.
func Recover(data string) (_ *Cluster, err error) {
	dir, err := os.MkdirTemp("", "brevet-recovered-")
	if err != nil {
		return nil, err
	}
	c := &Cluster{dir: dir}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.Stop())
		}
	}()
	if err := os.Rename(data, c.data()); err != nil {
		return nil, err
	}
	if os.Geteuid() == 0 {
		if err := c.giveTo("postgres"); err != nil {
			return nil, err
		}
		if err := c.giveAll(c.data()); err != nil {
			return nil, err
		}
	}
	if err := c.Run(); err != nil {
		return nil, err
	}
	err = c.Wait(`SELECT NOT pg_is_in_recovery()`)
	return c, err
}

// giveAll gives a directory and all that is in it to the account of the server.
func (c *Cluster) giveAll(dir string) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	return fs.WalkDir(root.FS(), ".", func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return root.Lchown(path, int(c.owner.Uid), int(c.owner.Gid))
	})
}
