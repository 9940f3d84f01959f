package cluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
)

// Pooler starts PgBouncer in front of the server, with a pool_mode, and returns a connection string and a function that ends
// it. It returns an error if PgBouncer is not installed.
func (c *Cluster) Pooler(mode string) (connection string, stop func(), err error) {
	pgbouncer, err := exec.LookPath("pgbouncer")
	if err != nil {
		pgbouncer, err = exec.LookPath("/usr/sbin/pgbouncer")
	}
	if err != nil {
		return "", nil, errors.New("there is no pgbouncer: run deploy/setup.sh --test, which installs it")
	}
	config := filepath.Join(c.dir, "pgbouncer.ini")
	text := fmt.Sprintf("[databases]\npostgres = host=%[1]s user=brevet\n[pgbouncer]\nunix_socket_dir = %[1]s\nlisten_port = 6432\n"+
		"auth_type = any\npool_mode = %[2]s\nlogfile = %[1]s/pgbouncer.log\n", c.dir, mode)
	if err := os.WriteFile(config, []byte(text), 0o644); err != nil {
		return "", nil, err
	}
	process := c.command(pgbouncer, "-q", config)
	if err := process.Start(); err != nil {
		return "", nil, err
	}
	stop = func() {
		_ = syscall.Kill(process.Process.Pid, syscall.SIGTERM) // it may have ended
		_ = process.Wait()                                     // it was ended by a signal
	}
	connection = c.Connection("postgres") + " port=6432"
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for {
		conn, err := pgx.Connect(ctx, connection)
		if err == nil {
			return connection, stop, conn.Close(ctx)
		}
		select {
		case <-ctx.Done():
			stop()
			log, _ := os.ReadFile(filepath.Join(c.dir, "pgbouncer.log")) // the error is that of PgBouncer
			return "", nil, fmt.Errorf("PgBouncer did not start: %w: %s", err, log)
		case <-time.After(20 * time.Millisecond):
		}
	}
}
