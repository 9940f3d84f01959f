package cluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
)

// Standby makes a standby of a running primary, starts it, and returns when it has all that the primary has. Its name is that
// in synchronous_standby_names of the primary. Stop ends it and removes its data.
func (c *Cluster) Standby(name string) (_ *Cluster, err error) {
	dir, err := os.MkdirTemp(filepath.Dir(c.dir), "brevet-standby-")
	if err != nil {
		return nil, err
	}
	s := &Cluster{dir: dir, owner: c.owner, prepare: c.prepare}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Stop())
		}
	}()
	if c.owner != nil {
		if err := os.Chown(dir, int(c.owner.Uid), int(c.owner.Gid)); err != nil {
			return nil, err
		}
	}
	basebackup, err := program("pg_basebackup")
	if err != nil {
		return nil, err
	}
	out, err := s.command(basebackup, "--pgdata", s.data(), "--write-recovery-conf", "--checkpoint=fast", "--no-sync", "--dbname",
		fmt.Sprintf("host=%s user=brevet application_name=%s", c.dir, name)).CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("pg_basebackup: %w: %s", err, out)
	}
	// Without its primary, a standby may wait that long before it sees that it was promoted. The default is five seconds.
	if err := s.Run("wal_retrieve_retry_interval=100ms"); err != nil {
		return nil, err
	}
	return s, c.Wait(`SELECT count(*) = 1 FROM pg_stat_replication WHERE application_name = $1 AND replay_lsn = pg_current_wal_lsn()`, name)
}

// Synchronous has each commit wait until a standby of the name has it on its disk.
func (c *Cluster) Synchronous(name string) error {
	if err := c.Exec(fmt.Sprintf(`ALTER SYSTEM SET synchronous_standby_names = '%s'`, name), `SELECT pg_reload_conf()`); err != nil {
		return err
	}
	return c.Wait(`SELECT count(*) = 1 FROM pg_stat_replication WHERE application_name = $1 AND sync_state = 'sync'`, name)
}

// Promote makes a standby a primary, and returns when it is one.
func (c *Cluster) Promote() error {
	return c.Exec(`SELECT pg_promote(true)`, `ALTER SYSTEM RESET ALL`, `SELECT pg_reload_conf()`)
}

// Exec executes statements on the server, each in a transaction of its own.
func (c *Cluster) Exec(statements ...string) error {
	return c.use(func(ctx context.Context, conn *pgx.Conn) error {
		for _, s := range statements {
			if _, err := conn.Exec(ctx, s); err != nil {
				return fmt.Errorf("%s: %w", s, err)
			}
		}
		return nil
	})
}

// Wait repeats a query until it returns true.
func (c *Cluster) Wait(query string, args ...any) error {
	return c.use(func(ctx context.Context, conn *pgx.Conn) error {
		for {
			var is bool
			if err := conn.QueryRow(ctx, query, args...).Scan(&is); err != nil || is {
				return err
			}
			select {
			case <-ctx.Done():
				return fmt.Errorf("%s stays false: %w", query, ctx.Err())
			case <-time.After(10 * time.Millisecond):
			}
		}
	})
}

func (c *Cluster) use(do func(context.Context, *pgx.Conn) error) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	conn, err := pgx.Connect(ctx, c.Connection("postgres"))
	if err != nil {
		return err
	}
	return errors.Join(do(ctx, conn), conn.Close(ctx))
}

// Save copies the data of a server that does not run, under a name.
func (c *Cluster) Save(name string) error { return c.copy(c.data(), filepath.Join(c.dir, name)) }

// Restore puts a copy that Save has made in the place of the data of a server that does not run.
func (c *Cluster) Restore(name string) error { return c.copy(filepath.Join(c.dir, name), c.data()) }

func (c *Cluster) copy(from, to string) error {
	if err := os.RemoveAll(to); err != nil {
		return err
	}
	if out, err := c.command("cp", "-a", from, to).CombinedOutput(); err != nil {
		return fmt.Errorf("copy: %w: %s", err, out)
	}
	return nil
}

// End stops a server so that its data is complete. Run starts it again.
func (c *Cluster) End() error { return c.end(syscall.SIGINT) }

// Among returns the connection string of a database that any of several servers may have.
func Among(database string, servers ...*Cluster) string {
	hosts := make([]string, len(servers))
	for i, s := range servers {
		hosts[i] = s.dir
	}
	return fmt.Sprintf("host=%s user=brevet dbname=%s", strings.Join(hosts, ","), database)
}
