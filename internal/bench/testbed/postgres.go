package testbed

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/brevet-pki/brevet/store/postgres/cluster"
)

// startPostgres starts a PostgreSQL server, which Close stops.
func (b *Testbed) startPostgres() (err error) {
	b.Logf("starting PostgreSQL")
	b.postgres, err = cluster.Start(EndWithParent)
	return err
}

// UsesPostgres reports whether a PostgreSQL server was started.
func (b *Testbed) UsesPostgres() bool { return b.postgres != nil }

// Database creates a database, and returns its connection string. Without PostgreSQL it returns an empty string.
func (b *Testbed) Database(ctx context.Context, name string) (string, error) {
	if b.postgres == nil {
		return "", nil
	}
	return b.postgres.CreateDatabase(ctx, name)
}

// databaseSize returns the size of a database in bytes.
func databaseSize(ctx context.Context, connection string) (size int64, err error) {
	conn, err := pgx.Connect(ctx, connection)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, conn.Close(ctx)) }()
	err = conn.QueryRow(ctx, `SELECT pg_database_size(current_database())`).Scan(&size)
	return size, err
}

// PostgresCPU returns the processor time that PostgreSQL has used so far: its main process with its children, of which
// those count that have ended. It is zero without PostgreSQL.
func (b *Testbed) PostgresCPU() (total time.Duration, err error) {
	if b.postgres == nil {
		return 0, nil
	}
	main := b.postgres.Process().Pid
	found, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return 0, err
	}
	for _, path := range found {
		text, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) || err != nil && strings.Contains(err.Error(), "no such process") {
			continue // it has ended
		}
		if err != nil {
			return 0, err
		}
		fields := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:])) // from field 3 on, as in CPUOf
		own := []string{fields[11], fields[12]}
		switch pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(path))); {
		case pid == main:
			own = append(own, fields[13], fields[14]) // of children that have ended
		case fields[1] != strconv.Itoa(main):
			continue
		}
		for _, f := range own {
			ticks, err := strconv.ParseInt(f, 10, 64)
			if err != nil {
				return 0, err
			}
			total += time.Duration(ticks) * time.Second / clockTicks
		}
	}
	return total, nil
}
