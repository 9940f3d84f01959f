// Package cluster runs PostgreSQL servers with data of their own, for tests and measurements.
package cluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
)

// Cluster is a running server with its own data, which listens on a Unix socket only. [Cluster.Schema] may be called
// concurrently.
type Cluster struct {
	dir     string
	owner   *syscall.Credential // nil for the account of this process
	process *exec.Cmd
	prepare func(*exec.Cmd)
	schemas atomic.Int64
}

// Start starts a server, with its data in a new directory for temporary files. It returns an error if PostgreSQL is not
// installed. Stop ends the server and removes its data. If prepare is not nil, it is called with each process of the server
// before that starts.
func Start(prepare func(*exec.Cmd)) (*Cluster, error) { return StartIn(os.TempDir(), prepare) }

// StartIn is Start with the data in a new directory in parent.
func StartIn(parent string, prepare func(*exec.Cmd)) (_ *Cluster, err error) {
	dir, err := os.MkdirTemp(parent, "brevet-postgres-")
	if err != nil {
		return nil, err
	}
	c := &Cluster{dir: dir, prepare: prepare}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.Stop())
		}
	}()
	if os.Geteuid() == 0 { // initdb refuses root
		if err := c.giveTo("postgres"); err != nil {
			return nil, err
		}
	}
	initdb, err := program("initdb")
	if err != nil {
		return nil, err
	}
	out, err := c.command(initdb, "--pgdata", c.data(), "--auth", "trust", "--username", "brevet", "--encoding", "UTF8",
		"--no-locale", "--no-sync").CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("initdb: %w: %s", err, out)
	}
	if err := c.Run(); err != nil {
		return nil, err
	}
	return c, nil
}

func (c *Cluster) data() string { return filepath.Join(c.dir, "data") }

// giveTo gives the directory to an account, as which the server runs.
func (c *Cluster) giveTo(account string) error {
	u, err := user.Lookup(account)
	if err != nil {
		return err
	}
	uid, err := strconv.Atoi(u.Uid)
	if err != nil {
		return err
	}
	gid, err := strconv.Atoi(u.Gid)
	if err != nil {
		return err
	}
	c.owner = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)} //nolint:gosec // IDs of an account
	return os.Chown(c.dir, uid, gid)
}

// command returns a command that runs as the server's account.
func (c *Cluster) command(name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(context.Background(), name, args...) // outlives the call
	cmd.Dir, cmd.Env = c.dir, append(os.Environ(), "LC_ALL=C.UTF-8")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: c.owner, Setpgid: true}
	return cmd
}

// program returns the path of a program of the newest PostgreSQL that is installed. Debian has them outside of PATH.
func program(name string) (string, error) {
	if path, err := exec.LookPath(name); err == nil {
		return path, nil
	}
	found, err := filepath.Glob("/usr/lib/postgresql/*/bin/" + name)
	if err != nil || len(found) == 0 {
		return "", fmt.Errorf("there is no %s: run deploy/setup.sh --test, which installs PostgreSQL", name)
	}
	return slices.MaxFunc(found, func(a, b string) int { return version(a) - version(b) }), nil
}

func version(path string) int {
	n, _ := strconv.Atoi(strings.Split(path, "/")[4]) // zero for an unknown name
	return n
}

// Run starts the server of a cluster that was stopped or killed, with settings such as "fsync=off", and returns when it
// accepts connections.
func (c *Cluster) Run(settings ...string) error {
	postgres, err := program("postgres")
	if err != nil {
		return err
	}
	args := []string{"-D", c.data(), "-k", c.dir, "-h", "", "-c", "max_connections=500", "-c", "logging_collector=off"}
	for _, s := range settings {
		args = append(args, "-c", s)
	}
	c.process = c.command(postgres, args...)
	log, err := os.OpenFile(filepath.Join(c.dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	c.process.Stderr, c.process.Stdout = log, log
	if c.prepare != nil {
		c.prepare(c.process)
	}
	if err := c.process.Start(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for {
		conn, err := pgx.Connect(ctx, c.Connection("postgres"))
		if err == nil {
			return conn.Close(ctx)
		}
		select {
		case <-ctx.Done():
			text, _ := os.ReadFile(filepath.Join(c.dir, "log")) // the error is that of the server
			return fmt.Errorf("PostgreSQL did not start: %w: %s", err, text)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// Kill kills the server as a loss of power would, apart from the disk's cache.
func (c *Cluster) Kill() error { return c.end(syscall.SIGKILL) }

// Stop ends the server at once, and removes its data.
func (c *Cluster) Stop() error {
	var err error
	if c.process != nil {
		err = c.end(syscall.SIGQUIT)
	}
	return errors.Join(err, os.RemoveAll(c.dir))
}

func (c *Cluster) end(signal syscall.Signal) error {
	process := c.process.Process.Pid
	children, _ := os.ReadFile(fmt.Sprintf("/proc/%[1]d/task/%[1]d/children", process)) // only Linux has it
	if err := syscall.Kill(process, signal); err != nil {
		return err
	}
	for _, child := range strings.Fields(string(children)) {
		if pid, err := strconv.Atoi(child); err == nil && signal == syscall.SIGKILL {
			_ = syscall.Kill(pid, signal) // it may have ended
		}
	}
	_ = c.process.Wait() // it was ended by a signal
	c.process = nil
	return nil
}

// Connection returns the connection string of a database.
func (c *Cluster) Connection(database string) string {
	return fmt.Sprintf("host=%s user=brevet dbname=%s", c.dir, database)
}

// CreateDatabase creates an empty database, and returns its connection string.
func (c *Cluster) CreateDatabase(ctx context.Context, name string) (connection string, err error) {
	return c.Connection(name), c.exec(ctx, `CREATE DATABASE `+pgx.Identifier{name}.Sanitize())
}

// Schema creates an empty schema for a store, and returns a connection string. That is faster than a database of its own.
func (c *Cluster) Schema(ctx context.Context) (connection string, err error) {
	name := fmt.Sprintf("store%d", c.schemas.Add(1))
	return c.Connection("postgres") + " search_path=" + name, c.exec(ctx, `CREATE SCHEMA `+name)
}

func (c *Cluster) exec(ctx context.Context, statement string) error {
	conn, err := pgx.Connect(ctx, c.Connection("postgres"))
	if err != nil {
		return err
	}
	_, err = conn.Exec(ctx, statement)
	return errors.Join(err, conn.Close(ctx))
}

// Process returns the server's main process, whose children serve the connections.
func (c *Cluster) Process() *os.Process { return c.process.Process }

// WriteData writes a file in the data of the server, which can read it and no other account.
func (c *Cluster) WriteData(name string, content []byte) error {
	path := filepath.Join(c.data(), name)
	if err := os.WriteFile(path, content, 0o600); err != nil || c.owner == nil {
		return err
	}
	return os.Chown(path, int(c.owner.Uid), int(c.owner.Gid))
}

// Tools returns the directory of the server's socket, and that of its programs, such as pg_dump.
func (c *Cluster) Tools() (socket, bin string, err error) {
	path, err := program("pg_dump")
	return c.dir, filepath.Dir(path), err
}
