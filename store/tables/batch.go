package tables

import (
	"context"
	"fmt"
	"slices"
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

// batch records the certificates of a BatchCommit. Where it can, it runs one statement for several of them, because a
// statement of its own for each costs a round trip to PostgreSQL.
type batch struct {
	*writeTx
	at      time.Time
	records []ca.Record
	items   map[pki.CertRef]ca.IntentItem
	results ca.Results
	ready   []plain // checked, and written by flush
}

// plain is a record whose guard holds, and whose effects are only new rows that no guard of the next records depends on.
type plain struct {
	*ca.Record
	result   *ca.Result
	identity int64
	uses     int // of its key
}

// record checks and records all certificates.
func (b *batch) record(ctx context.Context) error {
	for from := 0; from < len(b.records); {
		to := from + independent(b.records[from:])
		found, err := b.readGuards(ctx, b.records[from:to])
		if err != nil {
			return fmt.Errorf("read what the guards depend on: %w", err)
		}
		for i := range found {
			if err := b.issue(ctx, from+i, &found[i]); err != nil {
				return fmt.Errorf("record certificate %s: %w", b.records[from+i].Ref.Serial, err)
			}
		}
		if err := b.flush(ctx); err != nil {
			return err
		}
		from = to
	}
	return nil
}

// independent returns how many of the next records are for different identities and keys, with different serial numbers. What readGuards reads for one of
// them does not depend on the effects of the others.
func independent(records []ca.Record) int {
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

// readGuards reads the rows of selectGuarded for records that are independent of each other.
func (b *batch) readGuards(ctx context.Context, records []ca.Record) ([]found, error) {
	all := make([]found, len(records))
	var queries []string // they differ in the limit
	rows, indexes := map[string][][]any{}, map[string][]int{}
	for i := range records {
		r := &records[i]
		query := issuing.Unexpired(r.Guard.MaxUnexpired, r.Guard.Order)
		if rows[query] == nil {
			queries = append(queries, query)
		}
		rows[query] = append(rows[query], issuing.QueryArguments(r.Identity, r.Guard.Predecessor, r.RequestID, r.Guard.Key, b.at))
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
	return all, nil
}

// issue checks the guard of a record, and records the certificate with its effects. If the record is plain, flush does.
func (b *batch) issue(ctx context.Context, i int, f *found) error {
	r := &b.records[i]
	err := b.authorizeRecord(ctx, r, b.at)
	var g guarded
	if err == nil {
		g, err = b.checkGuard(ctx, f, r, b.at)
	}
	if refusal, ok := pki.AsRefusal(err); ok {
		return b.refuse(ctx, r, &b.results[i], refusal)
	}
	if err != nil {
		return err
	}
	if g.isPlain(&r.Guard) {
		b.ready = append(b.ready, plain{r, &b.results[i], g.identity, g.effects.KeyUses()})
		return nil
	}
	if err := b.flush(ctx); err != nil {
		return err
	}
	return b.issueWithEffects(ctx, r, &b.results[i], g)
}

// isPlain reports whether the certificate changes no row but that of its key.
func (g *guarded) isPlain(guard *pki.Guard) bool {
	return !guard.Enrolls && rules.NextRecoveries(guard, g.recoveries) == g.recoveries && len(guard.Nonces) == 0 && g.token == 0 &&
		g.effects.Superseded.Status.State == 0 && !g.effects.Succeeds && guard.Order.IsZero()
}

// issueWithEffects records a certificate with all effects of its guard.
func (b *batch) issueWithEffects(ctx context.Context, r *ca.Record, result *ca.Result, g guarded) error {
	id, err := b.insertIssued(ctx, r, g.identity)
	if err != nil {
		return err
	}
	if id == 0 {
		return b.refuse(ctx, r, result, rules.SerialTaken(r.Ref.Serial))
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
	*result = ca.Result{Superseded: g.effects.Superseded}
	if !result.Superseded.Ref.IsZero() {
		b.callers.Forget() // the revoked predecessor may be among them
	}
	return b.append(ctx, rules.IssuedEntry(r, b.at, result.Superseded))
}

// refuse records the item of a refused record as a revoked certificate that was never delivered.
func (b *batch) refuse(ctx context.Context, r *ca.Record, result *ca.Result, refusal *pki.Refusal) error {
	if err := b.flush(ctx); err != nil { // so that the log has the order of the records
		return err
	}
	*result = ca.Result{Refusal: refusal}
	return b.abandon(ctx, b.at, []ca.IntentItem{b.items[r.Ref]}, func(items []ca.IntentItem, changes []pki.StatusChange) translog.Entry {
		return rules.RefusedCertificateEntry(r, refusal, b.at, items, changes)
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
	ids, err := b.InsertEach(ctx, insertCertificate, rows)
	if err != nil {
		return fmt.Errorf("record certificates: %w", err)
	}
	var taken []plain
	if len(ids) != len(ready) {
		if ready, taken, err = b.split(ctx, ready, ids); err != nil {
			return err
		}
	}
	claims, entries := make([][]any, len(ready)), make([]translog.Entry, len(ready))
	for i, p := range ready {
		*p.result = ca.Result{}
		claims[i], entries[i] = issuing.Claim(p.KeyHash, p.identity, p.uses), rules.IssuedEntry(p.Record, b.at, pki.StatusChange{})
	}
	if err := b.InsertEachLater(ctx, issuing.ClaimKey, claims); err != nil {
		return fmt.Errorf("record keys: %w", err)
	}
	if err := logtable.AppendEach(ctx, b.Tx, entries); err != nil {
		return fmt.Errorf("log certificates: %w", err)
	}
	for _, p := range taken {
		if err := b.refuse(ctx, p.Record, p.result, rules.SerialTaken(p.Ref.Serial)); err != nil {
			return err
		}
	}
	return nil
}

// split returns those of the records whose certificates have these IDs, and those whose serial numbers were taken.
func (b *batch) split(ctx context.Context, records []plain, ids []int64) (issued, taken []plain, err error) {
	for _, p := range records {
		var id int64
		if err := b.QueryRow(ctx, `SELECT id FROM certificates WHERE serial = ?`, p.Ref.Serial.Bytes()).Scan(&id); err != nil {
			return nil, nil, err
		}
		if slices.Contains(ids, id) {
			issued = append(issued, p)
		} else {
			taken = append(taken, p)
		}
	}
	return issued, taken, nil
}
