package tables

import (
	"context"
	"errors"
	"fmt"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/store/engine"
	"github.com/brevet-pki/brevet/store/tables/internal/column"
)

// CA is the issuer's view of a DB: a ca.Journal, ca.Installations and ca.CrossCertificates.
type CA struct{ db *DB }

// Begin implements ca.Journal.
func (c *CA) Begin(ctx context.Context) (ca.Epoch, []ca.Intent, error) {
	return c.db.epochs.Begin(ctx, 0)
}

// BeginAgain implements ca.Journal.
func (c *CA) BeginAgain(ctx context.Context, process ca.Epoch) (ca.Epoch, []ca.Intent, error) {
	return c.db.epochs.Begin(ctx, process)
}

// Renew implements ca.Journal.
func (c *CA) Renew(ctx context.Context, epoch ca.Epoch) (hasEnded bool, err error) {
	return c.db.epochs.Renew(ctx, epoch)
}

// TakeOver implements ca.Journal.
func (c *CA) TakeOver(ctx context.Context, epoch ca.Epoch) ([]ca.Intent, error) {
	return c.db.epochs.TakeOver(ctx, epoch)
}

// Write commits batches and writes new intents in one transaction.
func (c *CA) Write(ctx context.Context, epoch ca.Epoch, commits []ca.BatchCommit, intents []ca.Intent) ([]ca.Results, error) {
	results := make([]ca.Results, len(commits))
	for i, s := range commits {
		results[i] = make(ca.Results, len(s.Records))
	}
	err := c.db.write(ctx, "write the journal", func(ctx context.Context, tx *writeTx) error {
		check, err := c.db.beginWrite(ctx, tx, epoch, intents)
		if err != nil {
			return err
		}
		b, err := tx.takeCommits(ctx, epoch, commits, results)
		if err != nil {
			return err
		}
		if err := b.record(ctx, check); err != nil {
			return fmt.Errorf("commit batches: %w", err)
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

// beginWrite records which transaction this is, for Applied, in a statement that runs later. It returns a function that
// refuses an epoch that was fenced, once the statement has run.
func (db *DB) beginWrite(ctx context.Context, tx *writeTx, epoch ca.Epoch, intents []ca.Intent) (check func(context.Context) error, err error) {
	var last any // NULL if there is no intent
	if n := len(intents); n > 0 {
		last = intents[n-1].Batch[:]
	}
	var own int64
	err = tx.QueryLater(ctx, `UPDATE epochs SET last_batch = ? WHERE id = ? AND server = ? RETURNING id`, []any{last, int64(epoch), db.epochs.Server()}, //nolint:gosec // epochs count up from 1
		func(row engine.Scanner) error { return row.Scan(&own) })
	return func(ctx context.Context) error {
		if own != 0 {
			return nil
		}
		return db.epochs.Check(ctx, tx, epoch)
	}, err
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
	return tx.Later(ctx, `INSERT INTO intents (batch, epoch, items) VALUES (?, ?, ?)`,
		intent.Batch[:], int64(epoch), column.EncodeItems(intent.Items)) //nolint:gosec // epochs count up from 1
}

// Applied reports whether the newest transaction of the epoch wrote the intent of a batch as its last one.
func (c *CA) Applied(ctx context.Context, epoch ca.Epoch, batch ca.BatchID) (bool, error) {
	const what = "read the journal"
	var last []byte
	read := func(ctx context.Context, tx engine.Querier) error {
		if err := c.db.epochs.Check(ctx, tx, epoch); err != nil {
			return err
		}
		return tx.QueryRow(ctx, `SELECT last_batch FROM epochs WHERE id = ?`, int64(epoch)).Scan(&last) //nolint:gosec // as above
	}
	var err error
	if c.db.file.IsExclusive() {
		err = c.db.file.Read(ctx, what, read)
	} else { // the COMMIT may still run at the database: wait for its end
		err = c.db.write(ctx, what, func(ctx context.Context, tx *writeTx) error { return read(ctx, tx) })
	}
	return err == nil && string(last) == string(batch[:]), err
}
