package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/store/rules"
	"github.com/brevet-pki/brevet/store/sqlite/internal/engine"
	"github.com/brevet-pki/brevet/translog"
)

// pagesOfEntry is the approximate number of pages in the file that a log entry and its change write.
const pagesOfEntry = 4

// Log is the sequencer's view of a DB. It implements translog.Store.
//
// An entry is stored once, under an ID that becomes its index. The single writer assigns the IDs, and a failed transaction
// returns them. So they are in the order of the commits and have no gaps, which Sequence checks.
//
// Sequencing a batch of entries only writes the chain value after its last entry. The chain values in between are computed
// when entries are read, and the result is compared with the stored values.
type Log struct{ db *DB }

// nextEntry selects the ID of the next entry. No other transaction can write an entry at the same time. An ID is assigned
// again only if the transaction or savepoint that used it was rolled back.
const nextEntry = `SELECT coalesce(max(id), 0) + 1 FROM log`

// nextIndex returns the index of the next entry.
func (tx *writeTx) nextIndex(ctx context.Context) (index uint64, err error) {
	err = tx.QueryRowContext(ctx, nextEntry).Scan(&index)
	return index, err
}

// append writes an entry, in the transaction of the change that it records.
func (tx *writeTx) append(ctx context.Context, e translog.Entry) error {
	if len(e.Changes) <= rules.MaxChanges {
		return tx.appendPart(ctx, e)
	}
	for _, part := range rules.SplitEntry(e) {
		if err := tx.appendPart(ctx, part); err != nil {
			return err
		}
	}
	return nil
}

func (tx *writeTx) appendPart(ctx context.Context, e translog.Entry) error {
	encoded, err := e.Marshal()
	if err != nil {
		return err
	}
	tx.Pages += pagesOfEntry
	_, err = tx.ExecContext(ctx, `INSERT INTO log (entry) VALUES (?)`, encoded)
	return err
}

// Sequence sequences the oldest unsequenced entries. It reads and chains them on a reading connection, because entries never
// change, and writes only the last chain value in a write transaction. If a concurrent call sequenced entries meanwhile, it
// starts again.
func (l *Log) Sequence(ctx context.Context, limit int) ([]translog.Sequenced, error) {
	if err := rules.CheckLimit(limit); err != nil {
		return nil, err
	}
	for {
		head, sequenced, err := l.unsequenced(ctx, limit)
		if err != nil || len(sequenced) == 0 {
			return nil, err
		}
		last, moved := sequenced[len(sequenced)-1], false
		err = l.db.write(ctx, "sequence the log", func(ctx context.Context, tx *writeTx) error {
			now, err := readHead(ctx, tx)
			if moved = now != head; err != nil || moved {
				return err
			}
			_, err = tx.ExecContext(ctx, `INSERT INTO chain (id, value) VALUES (?, ?)`, int64(last.Index), last.Chain[:]) //nolint:gosec // an id
			return err
		})
		if err != nil {
			return nil, err
		}
		if !moved {
			return sequenced, nil
		}
	}
}

// unsequenced returns the end of the sequenced log, and the entries after it, chained to it.
func (l *Log) unsequenced(ctx context.Context, limit int) (head translog.Head, found []translog.Sequenced, err error) {
	err = l.db.file.Read(ctx, "read what is to be sequenced", func(ctx context.Context, tx *sql.Tx) error {
		if head, err = readHead(ctx, tx); err != nil {
			return err
		}
		page := translog.NewPage(limit)
		rows := engine.Query(ctx, tx, `SELECT id, entry, NULL FROM log WHERE id > ? ORDER BY id LIMIT ?`, int64(head.Size), limit) //nolint:gosec // an id
		_, err = chained(rows, head, func(s translog.Sequenced, _ bool) (more bool) {
			page.Add(s)
			return !page.IsFull()
		})
		found = page.Entries
		return err
	})
	return head, found, err
}

// errEnough ends a query whose remaining rows are not needed.
var errEnough = errors.New("the remaining rows are not needed")

// chained reads rows of IDs, entries and chain values (NULL if not stored), in order, and chains the entries to head. It
// calls take with each entry, and whether its chain value is stored, until take returns false. It returns the head after
// the last entry that it read.
func chained(rows engine.Rows, head translog.Head, take func(s translog.Sequenced, recorded bool) (more bool)) (translog.Head, error) {
	err := rows.Each(func(rows *sql.Rows) error {
		var s translog.Sequenced
		var recorded []byte
		if err := rows.Scan(&s.Index, &s.Entry, &recorded); err != nil {
			return err
		}
		if s.Index != head.Size+1 {
			return &translog.ChainError{Index: head.Size + 1, Detail: fmt.Sprintf("it is missing, and entry %d follows", s.Index)}
		}
		s.Chain = translog.Chain(head.Chain, s.Entry)
		if recorded != nil && translog.Hash(recorded) != s.Chain {
			return &translog.ChainError{Index: s.Index, Detail: fmt.Sprintf("its chain value is %x, and %s follows from it and the entries before it: "+
				"one of them was altered", recorded, s.Chain)}
		}
		head = translog.Head{Size: s.Index, Chain: s.Chain}
		if !take(s, recorded != nil) {
			return errEnough
		}
		return nil
	})
	if errors.Is(err, errEnough) {
		err = nil
	}
	return head, err
}

// Head returns the end of the sequenced log.
func (l *Log) Head(ctx context.Context) (translog.Head, error) {
	var head translog.Head
	err := l.db.file.Read(ctx, "read the end of the log", func(ctx context.Context, tx *sql.Tx) error {
		var err error
		head, err = readHead(ctx, tx)
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

func readHead(ctx context.Context, tx engine.Querier) (translog.Head, error) {
	return scanHead(tx.QueryRowContext(ctx, `SELECT id, value FROM chain ORDER BY id DESC LIMIT 1`))
}

// scanHead reads a row of chain. If there is none, it returns the head of an empty log.
func scanHead(row *sql.Row) (translog.Head, error) {
	var head translog.Head
	var value []byte
	err := row.Scan(&head.Size, &value)
	if errors.Is(err, sql.ErrNoRows) {
		return translog.Head{}, nil
	}
	if err != nil {
		return translog.Head{}, err
	}
	head.Chain = translog.Hash(value)
	return head, nil
}

// Entries returns a page of up to limit sequenced entries in order, starting with the index from.
func (l *Log) Entries(ctx context.Context, from uint64, limit int) ([]translog.Sequenced, error) {
	page := translog.NewPage(limit)
	err := l.db.file.Read(ctx, "read the log", func(ctx context.Context, tx *sql.Tx) error {
		return eachEntry(ctx, tx, from, limit, func(s translog.Sequenced) (more bool) {
			page.Add(s)
			return !page.IsFull()
		})
	})
	if err != nil {
		return nil, err
	}
	return page.Entries, nil
}

// eachEntry calls take with up to limit sequenced entries in order, starting with the index from, until take returns false. If
// eachEntry returns a ChainError, the entries that take got may be altered.
func eachEntry(ctx context.Context, tx *sql.Tx, from uint64, limit int, take func(translog.Sequenced) (more bool)) error {
	if err := rules.CheckLimit(limit); err != nil {
		return err
	}
	if from > 1<<62 {
		return nil // greater than any row ID
	}
	from = max(from, 1)
	head, err := readHead(ctx, tx)
	if err != nil || from > head.Size {
		return err
	}
	before, err := scanHead(tx.QueryRowContext(ctx, `SELECT id, value FROM chain WHERE id < ? ORDER BY id DESC LIMIT 1`, int64(from)))
	if err != nil {
		return err
	}
	// Read up to the next stored chain value, so that every entry of the result is verified against one.
	to, last := min(head.Size, from+uint64(limit)-1), uint64(0)                                                       //nolint:gosec // checked above
	if err := tx.QueryRowContext(ctx, `SELECT min(id) FROM chain WHERE id >= ?`, int64(to)).Scan(&last); err != nil { //nolint:gosec // an id
		return err
	}
	rows := engine.Query(ctx, tx, `
		SELECT log.id, log.entry, chain.value FROM log LEFT JOIN chain ON chain.id = log.id
		WHERE log.id > ? AND log.id <= ? ORDER BY log.id`, int64(before.Size), int64(last)) //nolint:gosec // ids
	more, verified := true, false
	end, err := chained(rows, before, func(s translog.Sequenced, recorded bool) bool {
		if s.Index >= from && s.Index <= to && more {
			more = take(s)
		}
		verified = recorded
		return more || !verified
	})
	if err != nil {
		return err
	}
	if end.Size != last && (more || !verified) {
		return &translog.ChainError{Index: end.Size + 1, Detail: "it is missing"}
	}
	return nil
}

// changesOf returns the status changes that an entry records.
func changesOf(s translog.Sequenced) ([]pki.StatusChange, error) {
	e, err := translog.ParseEntry(s.Entry)
	if err != nil {
		return nil, fmt.Errorf("log entry %d: %w", s.Index, err)
	}
	return e.Changes, nil
}
