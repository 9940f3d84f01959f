package tables_test

import (
	"context"
	"database/sql/driver"
	"sync/atomic"

	sqlite3 "github.com/mattn/go-sqlite3"
)

// faultyDriver is the real driver, the next commit of which can be told to fail.
type faultyDriver struct {
	sqlite3.SQLiteDriver
	next atomic.Pointer[fault]
}

// fault is what a commit answers, and whether it applies.
type fault struct {
	applies bool
	err     error
	begun   func() // runs once the transaction has begun; nil for nothing
	before  func() // runs where the commit would; nil for nothing
}

func (d *faultyDriver) loseCommit(applies bool) {
	d.next.Store(&fault{applies: applies, err: sqlite3.Error{Code: sqlite3.ErrIoErr}})
}

func (d *faultyDriver) Open(dsn string) (driver.Conn, error) {
	conn, err := d.SQLiteDriver.Open(dsn)
	if err != nil {
		return nil, err
	}
	return &faultyConn{conn.(*sqlite3.SQLiteConn), d}, nil
}

type faultyConn struct {
	*sqlite3.SQLiteConn
	driver *faultyDriver
}

func (c *faultyConn) BeginTx(ctx context.Context, opts driver.TxOptions) (driver.Tx, error) {
	tx, err := c.SQLiteConn.BeginTx(ctx, opts)
	if f := c.driver.next.Load(); f != nil && f.begun != nil {
		f.begun()
	}
	return faultyTx{tx, c.driver}, err
}

type faultyTx struct {
	driver.Tx
	driver *faultyDriver
}

func (tx faultyTx) Commit() error {
	f := tx.driver.next.Swap(nil)
	if f == nil {
		return tx.Tx.Commit()
	}
	if f.before != nil {
		f.before()
	}
	end := tx.Rollback
	if f.applies {
		end = tx.Tx.Commit
	}
	if err := end(); err != nil {
		return err
	}
	return f.err
}
