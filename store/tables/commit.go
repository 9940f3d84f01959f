package tables

import (
	"context"
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

// pendingCommit is a commit whose items are taken from their durable intent.
type pendingCommit struct {
	*ca.BatchCommit
	records []*recording
	intent  ca.Intent // as recorded; its Batch is zero if there is none
}

// takeCommits returns a batch of all records in commits, and removes the intents of their items in statements that run later.
func (tx *writeTx) takeCommits(ctx context.Context, epoch ca.Epoch, commits []ca.BatchCommit, results []ca.Results) (*batch, error) {
	b := &batch{writeTx: tx, epoch: epoch, commits: make([]pendingCommit, len(commits))}
	for i := range commits {
		s, t := &commits[i], &b.commits[i]
		t.BatchCommit = s
		for j := range s.Records {
			b.records = append(b.records, &recording{Record: &s.Records[j], at: s.At, result: &results[i][j]})
		}
		t.records = b.records[len(b.records)-len(s.Records):]
		err := tx.QueryLater(ctx, `DELETE FROM intents WHERE batch = ? AND epoch = ? RETURNING batch, items`, []any{s.Intent.Batch[:], int64(epoch)}, //nolint:gosec // epochs count up from 1
			func(row engine.Scanner) (err error) {
				t.intent, err = epochs.ScanIntent(row)
				return err
			})
		if err != nil {
			return nil, fmt.Errorf("take the intent of batch %s: %w", s.Intent.Batch, err)
		}
	}
	return b, nil
}

// take assigns the items of the commit to its records, and returns those without a record. Each of them becomes a revoked
// record that was never delivered. The other items of the intent stay pending.
func (b *batch) take(ctx context.Context, t *pendingCommit) (abandoned []ca.IntentItem, err error) {
	if t.intent.Batch == (ca.BatchID{}) {
		return nil, errors.New("the batch has no pending intent: it was committed already, or its intent was never written")
	}
	want := map[pki.CertRef]bool{}
	for _, item := range t.Intent.Items {
		want[item.Ref] = true
	}
	var left []ca.IntentItem
	taken := map[pki.CertRef]ca.IntentItem{}
	for _, item := range t.intent.Items {
		if want[item.Ref] {
			taken[item.Ref] = item
			abandoned = append(abandoned, item)
		} else {
			left = append(left, item)
		}
	}
	if len(taken) != len(t.Intent.Items) {
		return nil, fmt.Errorf("%d of the items to commit are not pending: they were committed already, or their intent was never written", len(t.Intent.Items)-len(taken))
	}
	for _, r := range t.records {
		item, isTaken := taken[r.Ref]
		if !isTaken {
			return nil, fmt.Errorf("certificate %s is not an item of this commit, or is recorded twice", r.Ref.Serial)
		}
		r.item = item
		delete(taken, r.Ref)
	}
	if len(left) > 0 {
		if err := b.insertIntent(ctx, b.epoch, ca.Intent{Batch: t.Intent.Batch, Items: left}); err != nil {
			return nil, err
		}
	}
	return slices.DeleteFunc(abandoned, func(i ca.IntentItem) bool { _, is := taken[i.Ref]; return !is }), nil
}

// insertIssued writes the row of a certificate and returns its ID. It returns zero if the serial number is taken.
func (tx *writeTx) insertIssued(ctx context.Context, r *ca.Record, identity int64) (int64, error) {
	row, err := tx.issuedRow(ctx, r, identity)
	if err != nil {
		return 0, err
	}
	return tx.Insert(ctx, insertCertificate+` ON CONFLICT (serial) DO NOTHING`, row...)
}

// insertCertificate writes the row of a certificate. issuedRow returns its arguments.
const insertCertificate = `
	INSERT INTO certificates (serial, issuer, identity, request, key, profile, issued_at, not_before, not_after,
	                          crl_partition, state, reason, version, account, der)
	VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 1, 0, 1, (SELECT id FROM acme_accounts WHERE public_id = ?), ?)`

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
