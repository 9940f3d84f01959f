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

// CA is the issuer's view of a DB: a ca.Journal, ca.Installations and ca.CrossCertificates.
type CA struct{ db *DB }

// Begin starts a new epoch and returns the intents that earlier epochs left pending.
func (c *CA) Begin(ctx context.Context) (ca.Epoch, []ca.Intent, error) {
	var epoch int64
	var left []ca.Intent
	err := c.db.write(ctx, "open an epoch of the journal", func(ctx context.Context, tx *writeTx) error {
		row := tx.QueryRowContext(ctx, `UPDATE journal SET epoch = epoch + 1, last_batch = NULL RETURNING epoch`)
		if err := row.Scan(&epoch); err != nil {
			return err
		}
		left = nil
		rows := engine.Query(ctx, tx, `SELECT batch, items FROM intents`)
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
		if err := tx.beginWrite(ctx, epoch, intents); err != nil {
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

// beginWrite refuses every epoch but the newest. It records which transaction this is, for Applied.
func (tx *writeTx) beginWrite(ctx context.Context, epoch ca.Epoch, intents []ca.Intent) error {
	var last any // NULL if there is no intent
	if n := len(intents); n > 0 {
		last = intents[n-1].Batch[:]
	}
	result, err := tx.ExecContext(ctx, `UPDATE journal SET last_batch = ? WHERE epoch = ?`, last, int64(epoch)) //nolint:gosec // epochs count up from 1
	if err != nil {
		return err
	}
	if n, err := result.RowsAffected(); err != nil || n == 1 {
		return err
	}
	return checkEpoch(ctx, tx, epoch)
}

// checkEpoch refuses every epoch but the newest.
func checkEpoch(ctx context.Context, tx engine.Querier, epoch ca.Epoch) error {
	var newest int64
	if err := tx.QueryRowContext(ctx, `SELECT epoch FROM journal`).Scan(&newest); err != nil {
		return err
	}
	if ca.Epoch(newest) != epoch { //nolint:gosec // epochs count up from 1
		return fmt.Errorf("the epoch is %d, and the newest one is %d: %w", epoch, newest, ca.ErrFenced)
	}
	return nil
}

func (tx *writeTx) insertIntent(ctx context.Context, epoch ca.Epoch, intent ca.Intent) error {
	for _, item := range intent.Items { // the log could not record such an item, so the batch could never be committed
		if item.Ref.Issuer.IsZero() || item.Ref.Serial.IsZero() {
			return errors.New("an item has no issuer or serial number")
		}
	}
	if len(intent.Items) == 0 {
		return nil
	}
	_, err := tx.ExecContext(ctx, `INSERT INTO intents (batch, epoch, items) VALUES (?, ?, ?)`,
		intent.Batch[:], int64(epoch), column.EncodeItems(intent.Items)) //nolint:gosec // epochs count up from 1
	return err
}

// Applied reports whether the newest transaction of the epoch wrote the intent of a batch as its last one.
func (c *CA) Applied(ctx context.Context, epoch ca.Epoch, batch ca.BatchID) (bool, error) {
	var last []byte
	err := c.db.file.Read(ctx, "read the journal", func(ctx context.Context, tx *sql.Tx) error {
		if err := checkEpoch(ctx, tx, epoch); err != nil {
			return err
		}
		return tx.QueryRowContext(ctx, `SELECT last_batch FROM journal`).Scan(&last)
	})
	return err == nil && string(last) == string(batch[:]), err
}
