package tables

import (
	"context"
	"fmt"
	"time"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/store/engine"
	"github.com/brevet-pki/brevet/store/rules"
	"github.com/brevet-pki/brevet/store/tables/internal/acmetable"
	"github.com/brevet-pki/brevet/store/tables/internal/column"
	"github.com/brevet-pki/brevet/store/tables/internal/issuing"
	"github.com/brevet-pki/brevet/store/tables/internal/logtable"
	"github.com/brevet-pki/brevet/translog"
)

// batch records the certificates of several commits. It runs one statement for many of them, and sends statements together,
// because each round trip to PostgreSQL costs as much as several certificates.
//
// A certificate whose guard holds is issued. A refused record becomes a revoked one that was never delivered. It does not
// affect the others and needs no savepoint: its guard is checked before anything is written for it.
type batch struct {
	*writeTx
	epoch   ca.Epoch
	commits []pendingCommit
	records []*recording // of all commits
	ready   []plain      // checked, and written by flush
}

// recording is a record, with what recording it needs.
type recording struct {
	*ca.Record
	at     time.Time // of the commit
	item   ca.IntentItem
	result *ca.Result
}

// plain is a record whose guard holds, and on whose effects no guard of records depends that are independent of it.
type plain struct {
	*recording
	guarded
}

// record checks and records all certificates, and abandons the items without one. It calls check after its first round trip,
// before it writes any record.
func (b *batch) record(ctx context.Context, check func(context.Context) error) error {
	abandoned := make([][]ca.IntentItem, len(b.commits))
	for from := 0; ; {
		to := from + independent(b.records[from:])
		found, err := b.readGuards(ctx, b.records[from:to])
		if err != nil {
			return fmt.Errorf("read what the guards depend on: %w", err)
		}
		if from == 0 {
			if err := check(ctx); err != nil {
				return err
			}
			for i := range b.commits {
				if abandoned[i], err = b.take(ctx, &b.commits[i]); err != nil {
					return fmt.Errorf("batch %s: %w", b.commits[i].Intent.Batch, err)
				}
			}
		}
		for i := range found {
			if err := b.issue(ctx, b.records[from+i], &found[i]); err != nil {
				return fmt.Errorf("record certificate %s: %w", b.records[from+i].Ref.Serial, err)
			}
		}
		if err := b.flush(ctx); err != nil {
			return err
		}
		if from = to; from == len(b.records) {
			break
		}
	}
	for i, items := range abandoned {
		if err := b.abandonItems(ctx, items, b.commits[i].At); err != nil {
			return err
		}
	}
	return nil
}

// abandonItems records the items of a commit without a record.
func (b *batch) abandonItems(ctx context.Context, items []ca.IntentItem, at time.Time) error {
	if len(items) == 0 {
		return nil
	}
	return b.abandon(ctx, at, items, func(items []ca.IntentItem, changes []pki.StatusChange) translog.Entry {
		return rules.AbandonedEntry(at, items, changes)
	})
}

// independent returns how many of the next records are for different identities and keys, with different serial numbers. What
// readGuards reads for one of them does not depend on the effects of the others.
func independent(records []*recording) int {
	identities, keys, serials := map[pki.SPIFFEID]bool{}, map[int64]bool{}, map[pki.Serial]bool{}
	for i := range records {
		id, serial := records[i].Identity, records[i].Ref.Serial
		key := column.KeyID(records[i].KeyHash) // keys whose IDs collide are refused
		if identities[id] || keys[key] || serials[serial] {
			return i
		}
		identities[id], keys[key], serials[serial] = true, true, true
	}
	return len(records)
}

// readGuards reads the rows of selectGuarded for records that are independent of each other. In the same round trip, it runs
// the statements of Later, and reads the issuers and callers of the records.
func (b *batch) readGuards(ctx context.Context, records []*recording) ([]found, error) {
	all := make([]found, len(records))
	var queries []string // they differ in the limit
	rows, indexes := map[string][][]any{}, map[string][]int{}
	for i, r := range records {
		if err := b.expect(ctx, r.Record); err != nil {
			return nil, err
		}
		query := issuing.Unexpired(r.Guard.MaxUnexpired, r.Guard.Order)
		if rows[query] == nil {
			queries = append(queries, query)
		}
		rows[query] = append(rows[query], append(
			issuing.QueryArguments(r.Identity, r.Guard.Predecessor, r.RequestID, r.Guard.Key, r.at), r.Ref.Serial.Bytes()))
		indexes[query] = append(indexes[query], i)
	}
	for _, query := range queries {
		err := b.QueryEach(ctx, selectGuarded+query+fromGuarded, rows[query], func(i int, row engine.Scanner) error {
			f := &all[indexes[query][i]]
			if err := row.Scan(f.columns()...); err != nil {
				return err
			}
			f.Registered = true
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	return all, b.Flush(ctx)
}

// expect reads what recording a certificate needs to know about its issuer and its caller, in statements that run later.
func (b *batch) expect(ctx context.Context, r *ca.Record) error {
	if err := b.expectIssuer(ctx, r.Ref.Issuer); err != nil || rules.Renews(r) {
		return err
	}
	return b.callers.Expect(ctx, b, r.Actor)
}

// issue checks the guard of a record, and records the certificate with its effects. If the record is plain, flush does.
func (b *batch) issue(ctx context.Context, r *recording, f *found) error {
	err := b.authorizeRecord(ctx, r.Record, r.at)
	var g guarded
	if err == nil {
		g, err = b.checkGuard(ctx, f, r.Record, r.at)
	}
	if refusal, ok := pki.AsRefusal(err); ok {
		return b.refuse(ctx, r, refusal)
	}
	if err != nil {
		return err
	}
	if f.serialTaken {
		return b.refuse(ctx, r, rules.SerialTaken(r.Ref.Serial))
	}
	if g.isPlain(&r.Guard) {
		b.ready = append(b.ready, plain{r, g})
		return nil
	}
	if err := b.flush(ctx); err != nil {
		return err
	}
	return b.issueWithEffects(ctx, r, g)
}

// isPlain reports whether the certificate changes no row but those of its key, of the certificate that it renews, and of the
// state of its identity. A subject is not plain, because only one identity can have it.
func (g *guarded) isPlain(guard *pki.Guard) bool {
	return (!guard.Enrolls || guard.Subject.IsZero()) && rules.NextRecoveries(guard, g.recoveries) == g.recoveries && len(guard.Nonces) == 0 && g.token == 0 &&
		g.effects.Superseded.Status.State == 0 && guard.Order.IsZero()
}

// issueWithEffects records a certificate with all effects of its guard.
func (b *batch) issueWithEffects(ctx context.Context, r *recording, g guarded) error {
	id, err := b.insertIssued(ctx, r.Record, g.identity)
	if err == nil && id == 0 {
		err = errRepeated // although the guard has read that the serial number is not taken
	}
	if err != nil {
		return err
	}
	if err := b.Later(ctx, issuing.ClaimKey, issuing.Claim(r.KeyHash, g.identity, g.effects.KeyUses())...); err != nil {
		return err
	}
	if err := b.consume(ctx, &r.Guard, g, id); err != nil {
		return err
	}
	if !r.Guard.Order.IsZero() {
		if err := acmetable.Complete(ctx, b.Tx, r.Guard.Order, r.Ref, r.NotAfter); err != nil {
			return err
		}
	}
	*r.result = ca.Result{Superseded: g.effects.Superseded}
	if !r.result.Superseded.Ref.IsZero() {
		b.callers.Forget() // the revoked predecessor may be among them
	}
	return b.append(ctx, rules.IssuedEntry(r.Record, r.at, r.result.Superseded))
}

// refuse records the item of a refused record as a revoked certificate that was never delivered.
func (b *batch) refuse(ctx context.Context, r *recording, refusal *pki.Refusal) error {
	if err := b.flush(ctx); err != nil { // so that the log has the order of the records
		return err
	}
	*r.result = ca.Result{Refusal: refusal}
	return b.abandon(ctx, r.at, []ca.IntentItem{r.item}, func(items []ca.IntentItem, changes []pki.StatusChange) translog.Entry {
		return rules.RefusedCertificateEntry(r.Record, refusal, r.at, items, changes)
	})
}

// flush writes the plain records that are ready.
func (b *batch) flush(ctx context.Context) error {
	ready := b.ready
	if b.ready = nil; len(ready) == 0 {
		return nil
	}
	rows := make([][]any, len(ready))
	for i, p := range ready {
		var err error
		if rows[i], err = b.issuedRow(ctx, p.Record, p.identity); err != nil {
			return err
		}
	}
	if err := b.InsertEachLater(ctx, insertCertificate, rows); err != nil {
		return fmt.Errorf("record certificates: %w", err)
	}
	claims, entries := make([][]any, len(ready)), make([]translog.Entry, len(ready))
	for i, p := range ready {
		*p.result = ca.Result{}
		claims[i], entries[i] = issuing.Claim(p.KeyHash, p.identity, p.effects.KeyUses()), rules.IssuedEntry(p.Record, p.at, pki.StatusChange{})
	}
	if err := b.InsertEachLater(ctx, issuing.ClaimKey, claims); err != nil {
		return fmt.Errorf("record keys: %w", err)
	}
	for _, p := range ready {
		if p.Guard.Enrolls {
			if err := b.enroll(ctx, &p.Guard, p.identity); err != nil {
				return fmt.Errorf("record the state of identities: %w", err)
			}
		}
		if p.effects.Succeeds {
			if err := b.Later(ctx, setSuccessor, column.KeyID(p.Guard.Key), p.predecessor); err != nil {
				return fmt.Errorf("record successors: %w", err)
			}
		}
	}
	if err := logtable.AppendEach(ctx, b.Tx, entries); err != nil {
		return fmt.Errorf("log certificates: %w", err)
	}
	return nil
}
