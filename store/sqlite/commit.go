package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/store/rules"
	"github.com/brevet-pki/brevet/store/sqlite/internal/acmetable"
	"github.com/brevet-pki/brevet/store/sqlite/internal/column"
	"github.com/brevet-pki/brevet/store/sqlite/internal/engine"
	"github.com/brevet-pki/brevet/store/sqlite/internal/logtable"
	"github.com/brevet-pki/brevet/translog"
)

// commitBatch removes the items of a batch from their durable intent, and records every one of them. A certificate whose guard
// holds is issued. Every other item becomes a revoked record that was never delivered.
//
// A refused record does not affect the others and needs no savepoint. Its guard is checked before anything is written for
// it. Only the first write can violate a constraint, and SQLite rolls back that statement alone.
func (tx *writeTx) commitBatch(ctx context.Context, s ca.BatchCommit, results ca.Results) error {
	items, err := tx.takeItems(ctx, s.Intent)
	if err != nil {
		return err
	}
	pending := map[pki.CertRef]ca.IntentItem{}
	for _, item := range items {
		pending[item.Ref] = item
	}
	for i := range s.Records {
		r := &s.Records[i]
		item, isPending := pending[r.Ref]
		if !isPending {
			return fmt.Errorf("certificate %s is not an item of this commit, or is recorded twice", r.Ref.Serial)
		}
		delete(pending, r.Ref)
		superseded, refusal, err := tx.issue(ctx, r, s.At)
		if err != nil {
			return fmt.Errorf("record certificate %s: %w", r.Ref.Serial, err)
		}
		if refusal == nil {
			results[i] = ca.Result{Superseded: superseded}
			continue
		}
		results[i] = ca.Result{Refusal: refusal}
		err = tx.abandon(ctx, s.At, []ca.IntentItem{item}, func(items []ca.IntentItem, changes []pki.StatusChange) translog.Entry {
			return rules.RefusedCertificateEntry(r, refusal, s.At, items, changes)
		})
		if err != nil {
			return err
		}
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
// stay pending, as items of the newest epoch.
func (tx *writeTx) takeItems(ctx context.Context, wanted ca.Intent) ([]ca.IntentItem, error) {
	intent, err := scanIntent(tx.QueryRowContext(ctx, `DELETE FROM intents WHERE batch = ? RETURNING batch, items`, wanted.Batch[:]))
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
	_, err = tx.ExecContext(ctx, `INSERT INTO intents (batch, epoch, items) SELECT ?, epoch, ? FROM journal`, wanted.Batch[:], column.EncodeItems(left))
	return taken, err
}

// issue checks the guard of a record and records the certificate with its effects, or returns the *pki.Refusal. It returns the
// change of the superseded predecessor, and zero if there is none.
func (tx *writeTx) issue(ctx context.Context, r *ca.Record, at time.Time) (superseded pki.StatusChange, _ *pki.Refusal, _ error) {
	var g guarded
	err := tx.authorizeRecord(ctx, r, at)
	if err == nil {
		g, err = tx.checkGuard(ctx, r, at)
	}
	if refusal, ok := pki.AsRefusal(err); ok {
		return superseded, refusal, nil
	}
	if err != nil {
		return superseded, nil, err
	}
	id, err := tx.insertIssued(ctx, r, g.identity)
	if engine.IsDuplicate(err) { // of the serial number, because the guard has checked the request ID
		return superseded, rules.SerialTaken(r.Ref.Serial), nil
	}
	if err != nil {
		return superseded, nil, err
	}
	if err := tx.claim(ctx, r.KeyHash, g.identity, g.effects.KeyUses()); err != nil {
		return superseded, nil, err
	}
	if err := tx.consume(ctx, &r.Guard, g, id); err != nil {
		return superseded, nil, err
	}
	if !r.Guard.Order.IsZero() {
		if err := acmetable.Complete(ctx, tx.Tx, r.Guard.Order, r.Ref, r.NotAfter); err != nil {
			return superseded, nil, err
		}
	}
	if superseded = g.effects.Superseded; !superseded.Ref.IsZero() {
		tx.callers.Forget() // the revoked predecessor may be among them
	}
	return superseded, nil, tx.append(ctx, rules.IssuedEntry(r, at, superseded))
}

// insertIssued writes the row of a certificate and returns its ID.
func (tx *writeTx) insertIssued(ctx context.Context, r *ca.Record, identity int64) (int64, error) {
	issuer, err := tx.issuer(ctx, r.Ref.Issuer)
	if err != nil {
		return 0, err
	}
	result, err := tx.ExecContext(ctx, `
		INSERT INTO certificates (serial, issuer, identity, request, key, profile, issued_at, not_before, not_after,
		                          crl_partition, state, reason, version, der)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 1, 0, 1, ?)`,
		r.Ref.Serial.Bytes(), issuer, identity, r.RequestID.Bytes(), column.KeyID(r.KeyHash), r.Profile, engine.Millis(r.IssuedAt),
		engine.Millis(r.NotBefore), engine.Millis(r.NotAfter), r.Partition, r.DER)
	if err != nil {
		return 0, err
	}
	return result.LastInsertId()
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
		err := tx.insertAbandoned(ctx, item, status, changed)
		if engine.IsDuplicate(err) {
			duplicates = append(duplicates, item)
			continue
		}
		if err != nil {
			return fmt.Errorf("record the undelivered certificate %s: %w", item.Ref.Serial, err)
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

func (tx *writeTx) insertAbandoned(ctx context.Context, item ca.IntentItem, status pki.Status, changed uint64) error {
	issuer, err := tx.issuer(ctx, item.Ref.Issuer)
	if err != nil {
		return err
	}
	digest := item.Digest
	if digest == nil {
		digest = []byte{} // NULL means that the certificate was delivered
	}
	_, err = tx.ExecContext(ctx, `
		INSERT INTO certificates (serial, issuer, issued_at, not_after, crl_partition, state, reason, revoked_at, version, changed, digest)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`,
		item.Ref.Serial.Bytes(), issuer, engine.Millis(item.IssuedAt), engine.Millis(item.NotAfter), item.Partition,
		status.State, status.Reason, engine.Millis(status.RevokedAt), status.Version, int64(changed), digest) //nolint:gosec // an id
	return err
}
