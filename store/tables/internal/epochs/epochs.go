// Package epochs keeps the epochs of the servers that share a store, with their leases, and tells which of them leads.
package epochs

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/store/engine"
	"github.com/brevet-pki/brevet/store/tables/internal/column"
	"github.com/brevet-pki/brevet/store/tables/internal/restoring"
)

// Epochs are the epochs as one server sees them. It is safe for concurrent use.
type Epochs struct {
	file   engine.DB
	server string       // its name, which no other server of the store has
	own    atomic.Int64 // the epoch that this process has begun last; zero before
}

// New returns the epochs of a store.
func New(file engine.DB, server string) *Epochs { return &Epochs{file: file, server: server} }

// Server returns the name of this server.
func (e *Epochs) Server() string { return e.server }

// Own returns the epoch that this process has begun last, and zero before.
func (e *Epochs) Own() int64 { return e.own.Load() }

// HasServed reports whether a server of this name ever had an epoch.
func (e *Epochs) HasServed(ctx context.Context) (has bool, err error) {
	err = e.file.Look(ctx, "read the servers", func(ctx context.Context, tx engine.Querier) error {
		return tx.QueryRow(ctx, `SELECT EXISTS (SELECT 1 FROM servers WHERE name = ?)`, e.server).Scan(&has)
	})
	return has, err
}

// Begin implements ca.Journal, and so does BeginAgain for another epoch of the same process. For Begin, process is zero.
func (e *Epochs) Begin(ctx context.Context, process ca.Epoch) (ca.Epoch, []ca.Intent, error) {
	var epoch int64
	var left []ca.Intent
	err := e.file.Write(ctx, "open an epoch of the journal", func(ctx context.Context, tx *engine.Tx) error {
		if err := restoring.Check(ctx, tx); err != nil {
			return err
		}
		if process != 0 {
			if err := e.checkProcess(ctx, tx, process); err != nil {
				return err
			}
		}
		var err error
		if epoch, err = e.insert(ctx, tx, process); err != nil {
			return err
		}
		left, err = e.takeOver(ctx, tx, epoch)
		return err
	})
	if err != nil {
		return 0, nil, err
	}
	e.own.Store(epoch)
	return ca.Epoch(epoch), left, nil //nolint:gosec // epochs count up from 1
}

// insert replaces the epoch of this server by a new one of a process. If process is zero, it is that of a new process.
func (e *Epochs) insert(ctx context.Context, tx *engine.Tx, process ca.Epoch) (epoch int64, err error) {
	if _, err := tx.Exec(ctx, `DELETE FROM epochs WHERE server = ?`, e.server); err != nil {
		return 0, err
	}
	if epoch, err = tx.Insert(ctx, `INSERT INTO epochs (server) VALUES (?)`, e.server); err != nil {
		return 0, err
	}
	first := int64(process) //nolint:gosec // epochs count up from 1
	if process == 0 {
		first = epoch
	}
	_, err = tx.Exec(ctx, `INSERT INTO servers (name, process) VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET process = excluded.process`,
		e.server, first)
	if err != nil {
		return 0, err
	}
	if _, err := tx.Exec(ctx, `INSERT INTO leases (epoch, until) VALUES (?, 0)`, epoch); err != nil {
		return 0, err
	}
	return epoch, tx.ExecOne(ctx, e.extend(), ca.Lease.Milliseconds(), epoch, e.server)
}

// Renew implements ca.Journal. There is nothing to renew for a process that has the store for itself. The lease is extended
// apart from other transactions, so that it does not end while one takes long.
func (e *Epochs) Renew(ctx context.Context, epoch ca.Epoch) (hasEnded bool, err error) {
	if e.file.IsExclusive() {
		return false, nil
	}
	err = e.file.Apart(ctx, "renew the lease", func(ctx context.Context, tx *engine.Tx) error {
		if n, err := tx.Exec(ctx, e.extend(), ca.Lease.Milliseconds(), int64(epoch), e.server); err != nil || n == 0 { //nolint:gosec // epochs count up from 1
			return errors.Join(err, e.Check(ctx, tx, epoch))
		}
		return tx.QueryRow(ctx, `SELECT EXISTS (SELECT 1 FROM leases WHERE NOT `+e.runs()+`)`).Scan(&hasEnded)
	})
	return hasEnded, err
}

// extend is a statement that extends the lease of an epoch of this server.
func (e *Epochs) extend() string {
	return `UPDATE leases SET until = ` + e.file.Now() + ` + ? WHERE epoch = (SELECT id FROM epochs WHERE id = ? AND server = ?)`
}

// runs is the condition that a row of leases has not ended.
func (e *Epochs) runs() string { return engine.Runs(e.file, `until`, ca.Lease) }

// TakeOver implements ca.Journal.
func (e *Epochs) TakeOver(ctx context.Context, epoch ca.Epoch) (left []ca.Intent, err error) {
	err = e.file.Write(ctx, "take over from another server", func(ctx context.Context, tx *engine.Tx) error {
		if err := e.Check(ctx, tx, epoch); err != nil {
			return err
		}
		left, err = e.takeOver(ctx, tx, int64(epoch)) //nolint:gosec // epochs count up from 1
		return err
	})
	return left, err
}

// takeOver fences the other epochs whose lease has ended, and moves the intents of all fenced ones to an epoch.
func (e *Epochs) takeOver(ctx context.Context, tx *engine.Tx, epoch int64) (left []ca.Intent, err error) {
	_, err = tx.Exec(ctx, `DELETE FROM epochs WHERE id <> ? AND id IN (SELECT epoch FROM leases WHERE NOT `+e.runs()+`)`, epoch)
	if err != nil {
		return nil, err
	}
	rows := engine.Query(ctx, tx, `
		UPDATE intents SET epoch = ? WHERE epoch NOT IN (SELECT id FROM epochs) RETURNING batch, items`, epoch)
	err = rows.Each(func(rows engine.Scanner) error {
		intent, err := ScanIntent(rows)
		left = append(left, intent)
		return err
	})
	return left, err
}

// ScanIntent reads the columns batch and items of an intent.
func ScanIntent(row engine.Scanner) (ca.Intent, error) {
	var batch, items []byte
	if err := row.Scan(&batch, &items); err != nil {
		return ca.Intent{}, err
	}
	decoded, err := column.DecodeItems(items)
	if err != nil {
		return ca.Intent{}, fmt.Errorf("read the intent %x: %w", batch, err)
	}
	return ca.Intent{Batch: ca.BatchID(batch), Items: decoded}, nil
}

// Check refuses an epoch of this server that was fenced. If a failover has lost it, another server may have the same number.
func (e *Epochs) Check(ctx context.Context, q engine.Querier, epoch ca.Epoch) error {
	if err := e.checkProcess(ctx, q, epoch); err != nil {
		return err
	}
	var is bool
	err := q.QueryRow(ctx, `SELECT EXISTS (SELECT 1 FROM epochs WHERE id = ? AND server = ?)`, int64(epoch), e.server).Scan(&is) //nolint:gosec // epochs count up from 1
	if err == nil && !is {
		err = fmt.Errorf("epoch %d: %w", epoch, ca.ErrFenced)
	}
	return err
}

// checkProcess refuses an epoch that is older than the newest process of this server. It may be any of its process.
func (e *Epochs) checkProcess(ctx context.Context, q engine.Querier, epoch ca.Epoch) error {
	var replaced bool
	row := q.QueryRow(ctx, `SELECT EXISTS (SELECT 1 FROM servers WHERE name = ? AND process > ?)`, e.server, int64(epoch)) //nolint:gosec // epochs count up from 1
	err := row.Scan(&replaced)
	if err == nil && replaced {
		err = fmt.Errorf("epoch %d: %w", epoch, ca.ErrReplaced)
	}
	return err
}

// CheckLeads returns an error that wraps [pki.ErrNotLeader] unless this process has the oldest epoch that is not fenced. A
// transaction that does the work of a leader calls it first. A process that has the store for itself always leads. So does
// a process that has begun no epoch while no server has one, such as a restore, which has fenced them all.
func (e *Epochs) CheckLeads(ctx context.Context, q engine.Querier) error {
	if e.file.IsExclusive() {
		return nil
	}
	var leads, isEmpty bool
	err := q.QueryRow(ctx, `
		SELECT EXISTS (SELECT 1 FROM epochs WHERE id = (SELECT min(id) FROM epochs) AND id = ? AND server = ?), NOT EXISTS (SELECT 1 FROM epochs)`,
		e.Own(), e.server).Scan(&leads, &isEmpty)
	leads = leads || isEmpty && e.Own() == 0 // a restore has no epoch, and no server runs meanwhile
	if err == nil && !leads {
		err = pki.ErrNotLeader
	}
	return err
}
