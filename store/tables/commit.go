package tables

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/store/engine"
	"github.com/brevet-pki/brevet/store/rules"
	"github.com/brevet-pki/brevet/store/tables/internal/acmetable"
	"github.com/brevet-pki/brevet/store/tables/internal/column"
	"github.com/brevet-pki/brevet/store/tables/internal/epochs"
	"github.com/brevet-pki/brevet/store/tables/internal/logtable"
	"github.com/brevet-pki/brevet/translog"
)

// commitBatch removes the items of a batch from their durable intent, and records every one of them. A certificate whose guard
// holds is issued. Every other item becomes a revoked record that was never delivered.
//
// A refused record does not affect the others and needs no savepoint. Its guard is checked before anything is written for
// it, and its first write does nothing if its serial number is taken.
func (tx *writeTx) commitBatch(ctx context.Context, epoch ca.Epoch, s ca.BatchCommit, results ca.Results) error {
	items, err := tx.takeItems(ctx, epoch, s.Intent)
	if err != nil {
		return err
	}
	pending := map[pki.CertRef]ca.IntentItem{}
	for _, item := range items {
		pending[item.Ref] = item
	}
	recorded := map[pki.CertRef]ca.IntentItem{}
	for i := range s.Records {
		ref := s.Records[i].Ref
		item, isPending := pending[ref]
		if !isPending {
			return fmt.Errorf("certificate %s is not an item of this commit, or is recorded twice", ref.Serial)
		}
		recorded[ref] = item
		delete(pending, ref)
	}
	b := batch{writeTx: tx, at: s.At, records: s.Records, items: recorded, results: results}
	if err := b.record(ctx); err != nil {
		return err
	}
	items = slices.DeleteFunc(items, func(i ca.IntentItem) bool { _, left := pending[i.Ref]; return !left })
	if len(items) == 0 {
		return nil
	}
	return tx.abandon(ctx, s.At, items, func(items []ca.IntentItem, changes []pki.StatusChange) translog.Entry {
		return rules.AbandonedEntry(s.At, items, changes)
	})
}

// takeItems removes items from a pending intent, and returns them as the intent recorded them. The other items of the intent
// stay pending.
func (tx *writeTx) takeItems(ctx context.Context, epoch ca.Epoch, wanted ca.Intent) ([]ca.IntentItem, error) {
	intent, err := epochs.ScanIntent(tx.QueryRow(ctx, `DELETE FROM intents WHERE batch = ? AND epoch = ? RETURNING batch, items`, wanted.Batch[:], int64(epoch))) //nolint:gosec // epochs count up from 1
	if errors.Is(err, sql.ErrNoRows) {
		return nil, errors.New("the batch has no pending intent: it was committed already, or its intent was never written")
	}
	if err != nil {
		return nil, err
	}
	want := map[pki.CertRef]bool{}
	for _, item := range wanted.Items {
		want[item.Ref] = true
	}
	var taken, left []ca.IntentItem
	for _, item := range intent.Items {
		if want[item.Ref] {
			taken = append(taken, item)
		} else {
			left = append(left, item)
		}
	}
	if len(taken) != len(wanted.Items) {
		return nil, fmt.Errorf("%d of the items to commit are not pending: they were committed already, or their intent was never written", len(wanted.Items)-len(taken))
	}
	if len(left) == 0 {
		return taken, nil
	}
	err = tx.Later(ctx, `INSERT INTO intents (batch, epoch, items) VALUES (?, ?, ?)`, wanted.Batch[:], int64(epoch), column.EncodeItems(left)) //nolint:gosec // epochs count up from 1
	return taken, err
}

// insertIssued writes the row of a certificate and returns its ID. It returns zero if the serial number is taken.
func (tx *writeTx) insertIssued(ctx context.Context, r *ca.Record, identity int64) (int64, error) {
	row, err := tx.issuedRow(ctx, r, identity)
	if err != nil {
		return 0, err
	}
	return tx.Insert(ctx, insertCertificate, row...)
}

// insertCertificate writes the row of a certificate, unless its serial number is taken. issuedRow returns its arguments.
const insertCertificate = `
	INSERT INTO certificates (serial, issuer, identity, request, key, profile, issued_at, not_before, not_after,
	                          crl_partition, state, reason, version, account, der)
	VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 1, 0, 1, (SELECT id FROM acme_accounts WHERE public_id = ?), ?) ON CONFLICT (serial) DO NOTHING`

func (tx *writeTx) issuedRow(ctx context.Context, r *ca.Record, identity int64) ([]any, error) {
	issuer, err := tx.issuer(ctx, r.Ref.Issuer)
	return []any{
		r.Ref.Serial.Bytes(), issuer, identity, r.RequestID.Bytes(), column.KeyID(r.KeyHash), r.Profile, engine.Millis(r.IssuedAt),
		engine.Millis(r.NotBefore), engine.Millis(r.NotAfter), r.Partition, acmetable.AccountOf(r.Actor), r.DER,
	}, err
}

// abandon records items as revoked certificates that were never delivered. It calls a function with the recorded items to
// create the log entry. If the serial number of an item belongs to another certificate on record, that certificate keeps its
// status, and only the log records the item.
func (tx *writeTx) abandon(
	ctx context.Context, at time.Time, items []ca.IntentItem, entry func([]ca.IntentItem, []pki.StatusChange) translog.Entry,
) error {
	var recorded, duplicates []ca.IntentItem
	var changes []pki.StatusChange
	status := rules.Abandoned(at)
	changed, err := logtable.ReadNextIndex(ctx, tx)
	if err != nil {
		return err
	}
	for _, item := range items {
		isNew, err := tx.insertAbandoned(ctx, item, status, changed)
		if err != nil {
			return fmt.Errorf("record the undelivered certificate %s: %w", item.Ref.Serial, err)
		}
		if !isNew {
			duplicates = append(duplicates, item)
			continue
		}
		recorded, changes = append(recorded, item), append(changes, pki.StatusChange{Ref: item.Ref, NotAfter: item.NotAfter, Status: status})
	}
	if len(changes) > 0 {
		if err := tx.append(ctx, entry(recorded, changes)); err != nil {
			return err
		}
	}
	for _, item := range duplicates {
		if err := tx.append(ctx, rules.DuplicateEntry(item, at)); err != nil {
			return err
		}
	}
	return nil
}

// insertAbandoned writes the row of a certificate that was never delivered, and reports whether its serial number was free.
func (tx *writeTx) insertAbandoned(ctx context.Context, item ca.IntentItem, status pki.Status, changed uint64) (bool, error) {
	issuer, err := tx.issuer(ctx, item.Ref.Issuer)
	if err != nil {
		return false, err
	}
	digest := item.Digest
	if digest == nil {
		digest = []byte{} // NULL means that the certificate was delivered
	}
	n, err := tx.Exec(ctx, `
		INSERT INTO certificates (serial, issuer, issued_at, not_after, crl_partition, state, reason, revoked_at, version, changed, digest)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (serial) DO NOTHING`,
		item.Ref.Serial.Bytes(), issuer, engine.Millis(item.IssuedAt), engine.Millis(item.NotAfter), item.Partition,
		status.State, status.Reason, engine.Millis(status.RevokedAt), status.Version, int64(changed), digest) //nolint:gosec // an id
	return n == 1, err
}
