// Package logtable appends entries to the log, chains them, and reads them back verified.
//
// An entry is stored once, under an ID that becomes its index. The single writer assigns the IDs, and a failed transaction
// returns them. So they are in the order of the commits and have no gaps, which readers check.
//
// The table chain has the chain value after the last entry of each sequenced batch. The values in between are computed when
// entries are read, and the result is compared with the stored values.
//
// Old entries leave the table when the archives have them. Their chain values leave with them, except for a skip list, by
// which an archive can be compared with the table.
package logtable

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/brevet-pki/brevet/store/engine"
	"github.com/brevet-pki/brevet/store/rules"
	"github.com/brevet-pki/brevet/translog"
)

// pagesOfEntry is the approximate number of pages in the file that a log entry and its change write.
const pagesOfEntry = 4

// NextIndex selects the ID of the next entry. No other transaction can write an entry at the same time. An ID is assigned
// again only if the transaction or savepoint that used it was rolled back.
const NextIndex = `SELECT coalesce(max(id), 0) + 1 FROM log`

// ReadNextIndex returns the index of the next entry.
func ReadNextIndex(ctx context.Context, q engine.Querier) (index uint64, err error) {
	err = q.QueryRow(ctx, NextIndex).Scan(&index)
	return index, err
}

// Append writes an entry, in the transaction of the change that it records.
func Append(ctx context.Context, tx *engine.Tx, e translog.Entry) error {
	if len(e.Changes) <= rules.MaxChanges {
		return appendPart(ctx, tx, e)
	}
	for _, part := range rules.SplitEntry(e) {
		if err := appendPart(ctx, tx, part); err != nil {
			return err
		}
	}
	return nil
}

const insertEntry = `INSERT INTO log (entry) VALUES (?)`

func appendPart(ctx context.Context, tx *engine.Tx, e translog.Entry) error {
	encoded, err := e.Marshal()
	if err != nil {
		return err
	}
	tx.Pages += pagesOfEntry
	return tx.Later(ctx, insertEntry, encoded)
}

// AppendEach writes entries in order, like Append. Each of them has [rules.MaxChanges] changes at most.
func AppendEach(ctx context.Context, tx *engine.Tx, entries []translog.Entry) error {
	rows := make([][]any, len(entries))
	for i, e := range entries {
		encoded, err := e.Marshal()
		if err != nil {
			return err
		}
		rows[i] = []any{encoded}
	}
	tx.Pages += pagesOfEntry * uint64(len(rows))
	return tx.InsertEachLater(ctx, insertEntry, rows)
}

// Insert writes an entry under its index. It fails if there is an entry with that index.
func Insert(ctx context.Context, tx *engine.Tx, s translog.Sequenced) error {
	_, err := tx.Exec(ctx, `INSERT INTO log (id, entry) VALUES (?, ?)`, int64(s.Index), s.Entry) //nolint:gosec // an id
	return err
}

// InsertHead writes the end of the sequenced log.
func InsertHead(ctx context.Context, tx *engine.Tx, head translog.Head) error {
	_, err := tx.Exec(ctx, `INSERT INTO chain (id, value) VALUES (?, ?)`, int64(head.Size), head.Chain[:]) //nolint:gosec // an id
	return err
}

// ReadHead returns the end of the sequenced log.
func ReadHead(ctx context.Context, q engine.Querier) (translog.Head, error) {
	return scanHead(q.QueryRow(ctx, `SELECT id, value FROM chain ORDER BY id DESC LIMIT 1`))
}

// scanHead reads a row of chain. If there is none, it returns the head of an empty log.
func scanHead(row engine.Scanner) (translog.Head, error) {
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

// NewestTime returns the time of the newest entry, and zero if the log is empty.
func NewestTime(ctx context.Context, q engine.Querier) (time.Time, error) {
	var encoded []byte
	err := q.QueryRow(ctx, `SELECT entry FROM log ORDER BY id DESC LIMIT 1`).Scan(&encoded)
	if errors.Is(err, sql.ErrNoRows) {
		return time.Time{}, nil
	}
	if err != nil {
		return time.Time{}, err
	}
	e, err := translog.ParseEntry(encoded)
	return e.Time, err
}

// Unsequenced returns the end of the sequenced log, and up to limit entries after it, chained to it.
func Unsequenced(ctx context.Context, q engine.Querier, limit int) (head translog.Head, found []translog.Sequenced, err error) {
	if head, err = ReadHead(ctx, q); err != nil {
		return head, nil, err
	}
	page := translog.NewPage(limit)
	rows := engine.Query(ctx, q, `SELECT id, entry, NULL FROM log WHERE id > ? ORDER BY id LIMIT `+engine.Integer, int64(head.Size), limit) //nolint:gosec // an id
	_, err = chained(rows, head, func(s translog.Sequenced, _ bool) (more bool) {
		page.Add(s)
		return !page.IsFull()
	})
	return head, page.Entries, err
}

// chained reads rows of IDs, entries and chain values (NULL if not stored), in order, and chains the entries to head. It
// calls take with each entry, and whether its chain value is stored, until take returns false. It returns the head after
// the last entry that it read.
func chained(rows engine.Rows, head translog.Head, take func(s translog.Sequenced, recorded bool) (more bool)) (translog.Head, error) {
	err := rows.Each(func(rows engine.Scanner) error {
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
			return engine.ErrStop
		}
		return nil
	})
	return head, err
}

// Each calls take with up to limit sequenced entries in order, starting with the index from, until take returns false. If
// Each returns a ChainError, the entries that take got may be altered. If the first entry has left the table, Each returns a
// RemovedError.
func Each(ctx context.Context, q engine.Querier, from uint64, limit int, take func(translog.Sequenced) (more bool)) error {
	if err := rules.CheckLimit(limit); err != nil {
		return err
	}
	if from > 1<<62 {
		return nil // greater than any row ID
	}
	from = max(from, 1)
	head, err := ReadHead(ctx, q)
	if err != nil || from > head.Size {
		return err
	}
	before, err := scanHead(q.QueryRow(ctx, `SELECT id, value FROM chain WHERE id < ? ORDER BY id DESC LIMIT 1`, int64(from)))
	if err != nil {
		return err
	}
	// Read up to the next stored chain value, so that every entry of the result is verified against one.
	to, last := min(head.Size, from+uint64(limit)-1), uint64(0)                                               //nolint:gosec // checked above
	if err := q.QueryRow(ctx, `SELECT min(id) FROM chain WHERE id >= ?`, int64(to)).Scan(&last); err != nil { //nolint:gosec // an id
		return err
	}
	rows := engine.Query(ctx, q, `
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
	if err == nil && end.Size != last && (more || !verified) {
		err = &translog.ChainError{Index: end.Size + 1, Detail: "it is missing"}
	}
	if end == before && err != nil {
		return cmp.Or(removed(ctx, q, from), err)
	}
	return err
}
