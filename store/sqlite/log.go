package sqlite

import (
	"context"
	"database/sql"

	"github.com/brevet-pki/brevet/store/rules"
	"github.com/brevet-pki/brevet/store/sqlite/internal/logtable"
	"github.com/brevet-pki/brevet/translog"
)

// Log is the sequencer's view of a DB. It implements translog.Store.
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
		err := l.db.file.Read(ctx, "read the unsequenced log entries", func(ctx context.Context, tx *sql.Tx) (err error) {
			head, sequenced, err = logtable.Unsequenced(ctx, tx, limit)
			return err
		})
		if err != nil || len(sequenced) == 0 {
			return nil, err
		}
		last, moved := sequenced[len(sequenced)-1], false
		err = l.db.write(ctx, "sequence the log", func(ctx context.Context, tx *writeTx) error {
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
	err := l.db.file.Read(ctx, "read the end of the log", func(ctx context.Context, tx *sql.Tx) error {
		var err error
		head, err = logtable.ReadHead(ctx, tx)
		return err
	})
	return head, err
}

// Written returns the number of entries, including those that are not sequenced.
func (l *Log) Written(ctx context.Context) (uint64, error) {
	var written uint64
	err := l.db.file.Read(ctx, "count the log", func(ctx context.Context, tx *sql.Tx) error {
		return tx.QueryRowContext(ctx, `SELECT COALESCE(MAX(id), 0) FROM log`).Scan(&written) // IDs have no gaps
	})
	return written, err
}

// Epoch returns the epoch of the log, which was generated when the store was created.
func (l *Log) Epoch(ctx context.Context) (translog.Epoch, error) {
	var epoch []byte
	err := l.db.file.Read(ctx, "read the epoch of the log", func(ctx context.Context, tx *sql.Tx) error {
		return tx.QueryRowContext(ctx, `SELECT epoch FROM log_epoch`).Scan(&epoch)
	})
	if err != nil {
		return translog.Epoch{}, err
	}
	return translog.EpochFromBytes(epoch)
}

// Entries returns a page of up to limit sequenced entries in order, starting with the index from.
func (l *Log) Entries(ctx context.Context, from uint64, limit int) ([]translog.Sequenced, error) {
	page := translog.NewPage(limit)
	err := l.db.file.Read(ctx, "read the log", func(ctx context.Context, tx *sql.Tx) error {
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
