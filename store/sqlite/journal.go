package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/store/sqlite/internal/column"
	"github.com/brevet-pki/brevet/store/sqlite/internal/engine"
)

// committedKept is the number of batches committed before the last Write that stay on record as committed. All batches of the
// last Write stay on record too. So State is right about every batch of a Write that has just returned an error, and the
// table stays small.
const committedKept = 1024

// CA is the issuer's view of a DB: a ca.Journal and ca.Installations.
type CA struct{ db *DB }

// Begin starts a new epoch and returns the intents that earlier epochs left pending, oldest first.
func (c *CA) Begin(ctx context.Context) (ca.Epoch, []ca.Intent, error) {
	var epoch int64
	var left []ca.Intent
	err := c.db.write(ctx, "open an epoch of the journal", func(ctx context.Context, tx *writeTx) error {
		row := tx.QueryRowContext(ctx, `UPDATE journal SET epoch = epoch + 1 RETURNING epoch`)
		if err := row.Scan(&epoch); err != nil {
			return err
		}
		left = nil
		rows := engine.Query(ctx, tx, `SELECT batch, items FROM intents ORDER BY id`)
		return rows.Each(func(rows *sql.Rows) error {
			intent, err := scanIntent(rows)
			left = append(left, intent)
			return err
		})
	})
	if err != nil {
		return 0, nil, err
	}
	return ca.Epoch(epoch), left, nil //nolint:gosec // epochs count up from 1
}

func scanIntent(row engine.Scanner) (ca.Intent, error) {
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

// Write commits batches and writes new intents in one transaction.
func (c *CA) Write(ctx context.Context, epoch ca.Epoch, commits []ca.BatchCommit, intents []ca.Intent) ([]ca.Results, error) {
	results := make([]ca.Results, len(commits))
	for i, s := range commits {
		results[i] = make(ca.Results, len(s.Records))
	}
	err := c.db.write(ctx, "write the journal", func(ctx context.Context, tx *writeTx) error {
		if err := fence(ctx, tx, epoch); err != nil {
			return err
		}
		if err := tx.forgetCommitted(ctx); err != nil {
			return err
		}
		for i, s := range commits {
			if err := tx.commitBatch(ctx, s, results[i]); err != nil {
				return fmt.Errorf("commit batch %s: %w", s.Intent.Batch, err)
			}
		}
		for _, intent := range intents {
			if err := tx.insertIntent(ctx, epoch, intent); err != nil {
				return fmt.Errorf("write the intent of batch %s: %w", intent.Batch, err)
			}
		}
		return nil
	})
	return results, err
}

// fence refuses every epoch but the newest.
func fence(ctx context.Context, tx engine.Querier, epoch ca.Epoch) error {
	var newest int64
	if err := tx.QueryRowContext(ctx, `SELECT epoch FROM journal`).Scan(&newest); err != nil {
		return err
	}
	if ca.Epoch(newest) != epoch { //nolint:gosec // epochs count up from 1
		return fmt.Errorf("the epoch is %d, and the newest one is %d: %w", epoch, newest, ca.ErrFenced)
	}
	return nil
}

func (tx *writeTx) forgetCommitted(ctx context.Context) error {
	_, err := tx.ExecContext(ctx, `DELETE FROM settled WHERE id <= (SELECT max(id) FROM settled) - ?`, committedKept)
	return err
}

func (tx *writeTx) insertIntent(ctx context.Context, epoch ca.Epoch, intent ca.Intent) error {
	for _, item := range intent.Items { // the log could not record such an item, so the batch could never be committed
		if item.Ref.Issuer.IsZero() || item.Ref.Serial.IsZero() {
			return errors.New("an item has no issuer or serial number")
		}
	}
	if len(intent.Items) == 0 {
		return tx.recordCommitted(ctx, intent.Batch)
	}
	_, err := tx.ExecContext(ctx, `INSERT INTO intents (batch, epoch, items) VALUES (?, ?, ?)`,
		intent.Batch[:], int64(epoch), column.EncodeItems(intent.Items)) //nolint:gosec // epochs count up from 1
	return err
}

// State returns the state of each batch. It knows only the last committedKept committed batches, and reports older ones as
// absent.
func (c *CA) State(ctx context.Context, epoch ca.Epoch, batches []ca.BatchID) ([]ca.BatchState, error) {
	states := make([]ca.BatchState, len(batches))
	err := c.db.file.Read(ctx, "read the journal", func(ctx context.Context, tx *sql.Tx) error {
		if err := fence(ctx, tx, epoch); err != nil {
			return err
		}
		for i, batch := range batches {
			row := tx.QueryRowContext(ctx, `
				SELECT 2 FROM intents WHERE batch = ?1 UNION ALL SELECT 3 FROM settled WHERE batch = ?1`, batch[:])
			err := row.Scan(&states[i])
			if errors.Is(err, sql.ErrNoRows) {
				states[i], err = ca.BatchAbsent, nil
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return states, nil
}
