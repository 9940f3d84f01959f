package tables

import (
	"context"

	"github.com/brevet-pki/brevet/store/engine"
	"github.com/brevet-pki/brevet/store/rules"
	"github.com/brevet-pki/brevet/store/tables/internal/logtable"
	"github.com/brevet-pki/brevet/translog"
)

// Log is the sequencer's view of a DB. It implements translog.Store and translog.Removable.
type Log struct{ db *DB }

// append writes an entry, in the transaction of the change that it records.
func (tx *writeTx) append(ctx context.Context, e translog.Entry) error {
	return logtable.Append(ctx, tx.Tx, e)
}

// Sequence sequences the oldest unsequenced entries. It reads and chains them on a reading connection, because entries never
// change, and writes only the last chain value in a write transaction. If a concurrent call sequenced entries meanwhile, it
// starts again.
func (l *Log) Sequence(ctx context.Context, limit int) ([]translog.Sequenced, error) {
	if err := rules.CheckLimit(limit); err != nil {
		return nil, err
	}
	for {
		var head translog.Head
		var sequenced []translog.Sequenced
		err := l.db.file.Read(ctx, "read the unsequenced log entries", func(ctx context.Context, tx engine.Querier) (err error) {
			if err := l.db.epochs.CheckLeads(ctx, tx); err != nil {
				return err
			}
			head, sequenced, err = logtable.Unsequenced(ctx, tx, limit)
			return err
		})
		if err != nil || len(sequenced) == 0 {
			return nil, err
		}
		last, moved := sequenced[len(sequenced)-1], false
		err = l.db.write(ctx, "sequence the log", func(ctx context.Context, tx *writeTx) error {
			if err := l.db.epochs.CheckLeads(ctx, tx); err != nil {
				return err
			}
			now, err := logtable.ReadHead(ctx, tx)
			if moved = now != head; err != nil || moved {
				return err
			}
			return logtable.InsertHead(ctx, tx.Tx, translog.Head{Size: last.Index, Chain: last.Chain})
		})
		if err != nil {
			return nil, err
		}
		if !moved {
			return sequenced, nil
		}
	}
}

// Head returns the end of the sequenced log.
func (l *Log) Head(ctx context.Context) (translog.Head, error) {
	var head translog.Head
	err := l.db.file.Read(ctx, "read the end of the log", func(ctx context.Context, tx engine.Querier) error {
		var err error
		head, err = logtable.ReadHead(ctx, tx)
		return err
	})
	return head, err
}

// Written returns the number of entries that were ever written, including those that are not sequenced.
func (l *Log) Written(ctx context.Context) (uint64, error) {
	var written uint64
	err := l.db.file.Read(ctx, "count the log", func(ctx context.Context, tx engine.Querier) error {
		return tx.QueryRow(ctx, `SELECT COALESCE(MAX(id), 0) FROM log`).Scan(&written) // IDs have no gaps
	})
	return written, err
}

// Epoch returns the epoch of the log, which was generated when the store was created.
func (l *Log) Epoch(ctx context.Context) (translog.Epoch, error) {
	var epoch []byte
	err := l.db.file.Read(ctx, "read the epoch of the log", func(ctx context.Context, tx engine.Querier) error {
		return tx.QueryRow(ctx, `SELECT epoch FROM log_epoch`).Scan(&epoch)
	})
	if err != nil {
		return translog.Epoch{}, err
	}
	return translog.EpochFromBytes(epoch)
}

// Entries returns a page of up to limit sequenced entries in order, starting with the index from.
func (l *Log) Entries(ctx context.Context, from uint64, limit int) ([]translog.Sequenced, error) {
	page := translog.NewPage(limit)
	err := l.db.file.Read(ctx, "read the log", func(ctx context.Context, tx engine.Querier) error {
		return logtable.Each(ctx, tx, from, limit, func(s translog.Sequenced) (more bool) {
			page.Add(s)
			return !page.IsFull()
		})
	})
	if err != nil {
		return nil, err
	}
	return page.Entries, nil
}

// Remove implements translog.Removable.
func (l *Log) Remove(ctx context.Context, from uint64, to translog.Head) (removed bool, err error) {
	err = l.db.write(ctx, "remove log entries", func(ctx context.Context, tx *writeTx) error {
		if err := l.db.epochs.CheckLeads(ctx, tx); err != nil {
			return err
		}
		removed, err = logtable.Remove(ctx, tx.Tx, from, to)
		return err
	})
	return removed && err == nil, err
}

// Archived implements translog.Store.
func (l *Log) Archived(ctx context.Context, index uint64) error {
	return l.db.write(ctx, "record the end of the archive", func(ctx context.Context, tx *writeTx) error {
		return logtable.Archived(ctx, tx.Tx, l.db.epochs.Server(), index)
	})
}

// Checkpoint implements translog.Store.
func (l *Log) Checkpoint(ctx context.Context, index uint64) (head translog.Head, err error) {
	err = l.db.file.Read(ctx, "read a chain value", func(ctx context.Context, tx engine.Querier) error {
		head, err = logtable.Checkpoint(ctx, tx, index)
		return err
	})
	return head, err
}
