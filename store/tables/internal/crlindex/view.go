// Package crlindex reads the entries of an issuer's CRLs from a store's file. It keeps most of them in segments of
// packed records, so that building a CRL does not read a row for each entry. The segments are derived from the
// certificates' rows.
package crlindex

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"iter"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/revocation/crl"
	"github.com/brevet-pki/brevet/store/engine"
)

// Index reads and compacts the revoked certificates. It is safe for concurrent use.
type Index struct {
	db      engine.DB
	packing packing
}

// New returns the index of a file.
func New(db engine.DB) *Index {
	return &Index{db, packing{make(chan struct{}, 1), packFrom, segmentRecords}}
}

// View calls read with a view of an issuer's changes in one transaction, so that all CRLs of a round show the same
// state. It returns the error of read unchanged.
func (x *Index) View(ctx context.Context, issuer pki.IssuerID, read func(crl.View) error) error {
	var failed error
	err := x.db.ReadMany(ctx, readRevoked, func(ctx context.Context, tx engine.Querier) error {
		// With a cancelable context the driver starts a goroutine for every row. The view checks the context itself instead.
		v := &view{db: x.db, ctx: ctx, quiet: context.WithoutCancel(ctx), tx: tx}
		err := tx.QueryRow(v.quiet, `
			SELECT (SELECT coalesce(max(id), 0) FROM log), (SELECT coalesce(max(id), 0) FROM issuers WHERE issuer = ?)`,
			issuer.Bytes()).Scan(&v.position, &v.issuer)
		if err != nil {
			return err
		}
		failed = read(v)
		return nil
	})
	return errors.Join(err, failed)
}

// readRevoked describes the operation of a view in errors.
const readRevoked = "read what is revoked"

// view implements [crl.View].
type view struct {
	db       engine.DB
	ctx      context.Context //nolint:containedctx // of the call to View, which the view does not outlive
	quiet    context.Context //nolint:containedctx // the same without cancellation
	tx       engine.Querier
	issuer   int64 // zero if it is not on record
	position uint64
}

// Position implements [crl.View].
func (v *view) Position() uint64 { return v.position }

// NextPartition selects the next partition without scanning its entries.
const NextPartition = `
	SELECT crl_partition FROM certificates WHERE issuer = ? AND changed IS NOT NULL AND crl_partition >= ? ORDER BY crl_partition LIMIT 1`

// partitions returns the partitions in which a status ever changed, in ascending order.
func partitions(ctx context.Context, q engine.Querier, issuer int64) ([]uint16, error) {
	var all []uint16
	for from := 0; ; {
		var p uint16
		err := q.QueryRow(ctx, NextPartition, issuer, from).Scan(&p)
		if errors.Is(err, sql.ErrNoRows) {
			return all, nil
		}
		if err != nil {
			return nil, err
		}
		all = append(all, p)
		from = int(p) + 1
	}
}

// Changed implements [crl.View].
func (v *view) Changed(since uint64) ([]uint16, error) {
	changed, err := v.changed(since)
	return changed, v.db.Fail(readRevoked, err)
}

func (v *view) changed(since uint64) ([]uint16, error) {
	all, err := partitions(v.ctx, v.tx, v.issuer)
	if err != nil {
		return nil, err
	}
	var changed []uint16
	for _, p := range all {
		var is bool
		err := v.tx.QueryRow(v.quiet, `SELECT EXISTS (SELECT 1 FROM certificates WHERE issuer = ? AND crl_partition = ? AND changed > ?)`,
			v.issuer, p, int64(since)).Scan(&is) //nolint:gosec // an id
		if err != nil {
			return nil, err
		}
		if is {
			changed = append(changed, p)
		}
	}
	return changed, nil
}

// errStopped ends a read whose consumer needs no more.
var errStopped = errors.New("stopped")

// Entries implements [crl.View].
func (v *view) Entries(l crl.Listing) iter.Seq2[crl.Entry, error] {
	return func(yield func(crl.Entry, error) bool) {
		err := v.entries(l, func(r *record) error {
			if !yield(r.entry(), nil) {
				return errStopped
			}
			return nil
		})
		if err != nil && !errors.Is(err, errStopped) {
			yield(crl.Entry{}, v.db.Fail(readRevoked, err))
		}
	}
}

func (v *view) entries(l crl.Listing, visit func(*record) error) error {
	if err := v.ctx.Err(); err != nil {
		return err
	}
	parts := []uint16{l.Partition}
	if l.Partition == 0 {
		var err error
		if parts, err = partitions(v.ctx, v.tx, v.issuer); err != nil {
			return err
		}
	}
	for _, p := range parts {
		read := v.whole
		if l.Delta {
			read = v.changes
		}
		if err := read(p, l, visit); err != nil {
			return err
		}
	}
	return nil
}

// SelectRecords selects the columns of a record.
const SelectRecords = `
	SELECT serial, not_after, revoked_at, invalid_since, reason, state FROM certificates
	WHERE issuer = ? AND crl_partition = ? AND changed > ? `

// changes reads the changes of a partition since a log entry, in their order.
func (v *view) changes(partition uint16, l crl.Listing, visit func(*record) error) error {
	t, err := v.readRecords(partition, l.Since, `AND not_after >= ? ORDER BY changed, id`, engine.Millis(l.NotExpiredAt))
	if err != nil {
		return err
	}
	defer t.close()
	for t.next() {
		if err := visit(&t.at); err != nil {
			return err
		}
	}
	return t.err
}

// whole merges a partition's segments with the changes since the last compaction, both in the order of serial numbers.
func (v *view) whole(partition uint16, l crl.Listing, visit func(*record) error) error {
	position, err := packedTo(v.quiet, v.tx, v.issuer, partition)
	if err != nil {
		return err
	}
	from := l.NotExpiredAt.UnixMilli()
	var dropped bool
	if err := v.tx.QueryRow(v.quiet, maybeDropped, v.issuer, partition, from).Scan(&dropped); err != nil {
		return err
	}
	if dropped {
		position = 0 // the clock was ahead, and segments may lack entries: read all rows instead
	}
	t, err := v.readRecords(partition, position, `ORDER BY serial`)
	if err != nil {
		return err
	}
	defer t.close()
	listed := func(r *record) error {
		if r.listed && r.notAfter >= from {
			return visit(r)
		}
		return nil
	}
	more := t.next()
	rows := engine.Query(v.quiet, v.tx, `SELECT entries FROM crl_segments WHERE issuer = ? AND crl_partition = ? ORDER BY first`, v.issuer, partition)
	err = rows.Each(func(rows engine.Scanner) error {
		var packed sql.RawBytes
		if err := rows.Scan(&packed); err != nil {
			return err
		}
		if err := v.ctx.Err(); err != nil {
			return err
		}
		var r record
		for len(packed) >= recordSize {
			order := 1
			if more {
				order = bytes.Compare(t.serial, packed[:pki.SerialSize])
			}
			if order <= 0 {
				if err := listed(&t.at); err != nil {
					return err
				}
				more = t.next()
			}
			if order < 0 {
				continue
			}
			if order > 0 {
				if err := r.unpack(packed); err != nil {
					return err
				}
				if err := listed(&r); err != nil {
					return err
				}
			}
			packed = packed[recordSize:]
		}
		if len(packed) > 0 {
			return errDamagedSegment
		}
		return nil
	})
	for ; err == nil && more; more = t.next() {
		err = listed(&t.at)
	}
	return errors.Join(err, t.err)
}

// tail reads rows of certificates one by one.
type tail struct {
	view   *view
	rows   engine.Cursor
	n      int
	serial sql.RawBytes // of at
	at     record
	err    error
}

func (v *view) readRecords(partition uint16, since uint64, rest string, args ...any) (*tail, error) {
	args = append([]any{v.issuer, partition, int64(since)}, args...) //nolint:gosec // an id
	rows, err := v.tx.Query(v.quiet, SelectRecords+rest, args...)
	return &tail{view: v, rows: rows}, err
}

func (t *tail) close() { _ = t.rows.Close() } // errors of reading are in t.err

func (t *tail) next() bool {
	if t.n++; t.n%1024 == 0 && t.err == nil {
		t.err = t.view.ctx.Err()
	}
	if t.err != nil || !t.rows.Next() {
		t.err = errors.Join(t.err, t.rows.Err())
		return false
	}
	t.err = t.at.scan(t.rows, &t.serial)
	return t.err == nil
}

// record is the data of a certificate that CRLs need. Times are milliseconds since 1970.
type record struct {
	serial       pki.Serial
	notAfter     int64
	revokedAt    int64
	invalidSince int64 // zero for none
	reason       pki.Reason
	listed       bool // whether it is revoked or on hold
}

// scan reads a row of SelectRecords. The serial is valid until the next row.
func (r *record) scan(rows engine.Scanner, serial *sql.RawBytes) error {
	var revokedAt, invalidSince sql.NullInt64
	var state pki.State
	if err := rows.Scan(serial, &r.notAfter, &revokedAt, &invalidSince, &r.reason, &state); err != nil {
		return err
	}
	var err error
	r.serial, err = pki.SerialFromBytes(*serial)
	r.revokedAt, r.invalidSince, r.listed = revokedAt.Int64, invalidSince.Int64, state != pki.Good
	return err
}

func (r *record) entry() crl.Entry {
	e := crl.Entry{Serial: r.serial, Reason: r.reason, Removed: !r.listed}
	if r.listed {
		e.RevokedAt = engine.FromMillis(r.revokedAt)
	} else {
		e.Reason = pki.Unspecified
	}
	if r.invalidSince != 0 {
		e.InvalidSince = engine.FromMillis(r.invalidSince)
	}
	return e
}

// packedTo returns the last log entry whose changes are in a partition's segments.
func packedTo(ctx context.Context, q engine.Querier, issuer int64, partition uint16) (uint64, error) {
	var position uint64
	err := q.QueryRow(ctx, `SELECT position FROM crl_packed WHERE issuer = ? AND crl_partition = ?`, issuer, partition).Scan(&position)
	if errors.Is(err, sql.ErrNoRows) {
		return 0, nil
	}
	return position, err
}

var errDamagedSegment = errors.New("a segment of packed entries is damaged: delete the rows of crl_segments and crl_packed, which are derived from other rows")
