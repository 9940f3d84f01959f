package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"slices"
	"time"

	"github.com/brevet-pki/brevet/pki"
)

const (
	// packFrom is how many changes are worth packing, in a partition with few entries: reading that many rows takes some ten
	// milliseconds. With more entries it is one change for packShare of them, so that what is rewritten stays in proportion,
	// and packMost at most, which are read in a tenth of a second.
	packFrom  = 4096
	packShare = 128
	packMost  = 1 << 14
	// packPass bounds the changes that are in memory at a time.
	packPass = 1 << 18
	// packStep is how many segments a transaction writes.
	packStep = 32
	// packRest is how many times as long as a transaction took others have before the next one.
	packRest = 3
	// pagesOfSegment is what a segment takes in the WAL file.
	pagesOfSegment = (segmentRecords*recordSize)/4096 + 2
)

// packing is how the store packs.
type packing struct {
	turn    chan struct{} // holds one value while somebody packs
	from    int           // changes that are worth packing
	segment int           // records that a segment has at most
}

// worth is how many changes are worth packing beside so many records.
func (p *packing) worth(packed int) int { return min(packMost, max(p.from, packed/packShare)) }

// packer packs one partition of an issuer.
type packer struct {
	db          *DB
	issuer      int64
	partition   uint16
	endedBefore int64 // what ended before that is in CRLs from after its end
	unwritten   []segment
}

// Compact merges changes into segments. One call at a time does.
func (r *Revocation) Compact(ctx context.Context, issuer pki.IssuerID) error {
	select {
	case r.db.packing.turn <- struct{}{}:
		defer func() { <-r.db.packing.turn }()
	case <-ctx.Done():
		return fail("pack what is revoked", ctx.Err())
	}
	var id int64
	var all []uint16
	err := r.db.read(ctx, "read what is to be packed", func(ctx context.Context, tx *sql.Tx) error {
		err := tx.QueryRowContext(ctx, `SELECT coalesce(max(id), 0) FROM issuers WHERE issuer = ?`, issuer.Bytes()).Scan(&id)
		if err == nil {
			all, err = partitions(ctx, tx, id)
		}
		return err
	})
	for i := 0; i < len(all) && err == nil; i++ {
		err = (&packer{db: r.db, issuer: id, partition: all[i]}).pack(ctx)
	}
	return err
}

// pack takes passes until there is little left.
func (p *packer) pack(ctx context.Context) error {
	for {
		changes, position, err := p.collect(ctx)
		if err != nil {
			return err
		}
		if len(changes) == 0 {
			return p.sweep(ctx)
		}
		if err := p.foldAll(ctx, changes); err != nil {
			return err
		}
		err = p.db.write(ctx, "note what is packed", func(ctx context.Context, tx *writeTx) error {
			_, err := tx.ExecContext(ctx, notePacked, p.issuer, p.partition, position, p.endedBefore)
			return err
		})
		if err != nil {
			return err
		}
	}
}

// What has changed since a partition was packed, at most so many in the order of their changes, and the last of them.
const selectTail = `
	SELECT count(*), coalesce(max(changed), 0) FROM (
	    SELECT changed FROM certificates WHERE issuer = ? AND crl_partition = ? AND changed > ? ORDER BY changed LIMIT ?)`

// sealedUntil is a time: whatever ended before it is in CRLs of all its scopes that were issued after its end.
const sealedUntil = `
	SELECT coalesce(min(u), 0) FROM (
	    SELECT coalesce((SELECT this_update FROM crls WHERE issuer = ?1 AND crl_partition = 0 AND delta = 0), 0) AS u
	    UNION ALL
	    SELECT coalesce((SELECT this_update FROM crls WHERE issuer = ?1 AND crl_partition = ?2 AND delta = 0), 0)
	    WHERE EXISTS (SELECT 1 FROM crl_points WHERE issuer = ?1 AND crl_partition = ?2))`

const (
	// notePacked does nothing where that time has gone back since: then the segments may lack what is still to be listed.
	notePacked = `
		INSERT INTO crl_packed (issuer, crl_partition, position) SELECT ?1, ?2, ?3 WHERE (` + sealedUntil + `) >= ?4
		ON CONFLICT (issuer, crl_partition) DO UPDATE SET position = excluded.position`
	// maybeDropped is whether there are certificates that packing may have dropped, and that had not ended at a time: the
	// clock was ahead when the CRLs on record were made.
	maybeDropped = `SELECT EXISTS (SELECT 1 FROM certificates WHERE not_after >= ?3 AND not_after < (` + sealedUntil + `))`
)

// collect reads the next changes to fold, in the order of serial numbers, and up to which log entry they are all; none where
// it is not worth it.
func (p *packer) collect(ctx context.Context) (changes []record, position int64, err error) {
	err = p.db.readMany(ctx, "read what is to be packed", func(ctx context.Context, tx *sql.Tx) error {
		v := &view{ctx: ctx, quiet: context.WithoutCancel(ctx), tx: tx, issuer: p.issuer}
		since, err := packedTo(ctx, tx, p.issuer, p.partition)
		if err != nil {
			return err
		}
		var packed, n int
		err = tx.QueryRowContext(ctx, `SELECT coalesce(sum(length(entries)), 0) / ? FROM crl_segments WHERE issuer = ? AND crl_partition = ?`,
			recordSize, p.issuer, p.partition).Scan(&packed)
		if err != nil {
			return err
		}
		if err := tx.QueryRowContext(ctx, sealedUntil, p.issuer, p.partition).Scan(&p.endedBefore); err != nil {
			return err
		}
		err = tx.QueryRowContext(ctx, selectTail, p.issuer, p.partition, int64(since), packPass).Scan(&n, &position) //nolint:gosec // an id
		if err != nil || n < p.db.packing.worth(packed) {
			return err
		}
		t, err := v.readRecords(p.partition, since, `AND changed <= ?`, position)
		if err != nil {
			return err
		}
		defer t.close()
		for t.next() {
			changes = append(changes, t.at)
		}
		return t.err
	})
	if err != nil {
		return nil, 0, err
	}
	slices.SortFunc(changes, func(a, b record) int { return compareSerials(a.serial, b.serial) })
	return changes, position, nil
}

// foldAll folds changes into the segments that they belong to.
func (p *packer) foldAll(ctx context.Context, changes []record) error {
	var at *segment
	for len(changes) > 0 {
		if at == nil || !at.holds(changes[0].serial) {
			var err error
			if at, err = p.load(ctx, changes[0].serial); err != nil {
				return err
			}
		}
		n := 0
		for n < len(changes) && n < packFrom && at.holds(changes[n].serial) {
			n++
		}
		at.fold(changes[:n], p.endedBefore)
		changes = changes[n:]
		parts := at.split(p.db.packing.segment)
		if err := p.put(ctx, parts...); err != nil {
			return err
		}
		// The last one may get more, and is written again then: it must not be missing meanwhile.
		at = &parts[len(parts)-1]
	}
	return p.flush(ctx)
}

// load reads the segment that a serial number belongs to. Nobody but this packer writes any, and it only goes forward.
func (p *packer) load(ctx context.Context, serial pki.Serial) (*segment, error) {
	s := &segment{first: make([]byte, pki.SerialSize)} // where there is none yet, one begins at the beginning
	err := p.db.read(ctx, "read packed entries", func(ctx context.Context, tx *sql.Tx) error {
		var packed []byte
		err := tx.QueryRowContext(ctx, `
			SELECT first, entries FROM crl_segments WHERE issuer = ? AND crl_partition = ? AND first <= ? ORDER BY first DESC LIMIT 1`,
			p.issuer, p.partition, serial.Bytes()).Scan(&s.first, &packed)
		if err != nil && !errors.Is(err, sql.ErrNoRows) {
			return err
		}
		if s.records, err = unpackAll(packed); err != nil {
			return err
		}
		return tx.QueryRowContext(ctx, `SELECT min(first) FROM crl_segments WHERE issuer = ? AND crl_partition = ? AND first > ?`,
			p.issuer, p.partition, serial.Bytes()).Scan(&s.next)
	})
	return s, err
}

// sweep rewrites segments of which much has ended.
func (p *packer) sweep(ctx context.Context) error {
	var waning [][]byte
	err := p.db.read(ctx, "read packed entries that have ended", func(ctx context.Context, tx *sql.Tx) error {
		rows, err := tx.QueryContext(ctx, `
			SELECT first FROM crl_segments WHERE issuer = ? AND crl_partition = ? AND wanes_at < ? ORDER BY first`, p.issuer, p.partition, p.endedBefore)
		return each(rows, err, func(rows *sql.Rows) error {
			var first []byte
			err := rows.Scan(&first)
			waning = append(waning, first)
			return err
		})
	})
	for i := 0; i < len(waning) && err == nil; i++ {
		err = p.rewrite(ctx, waning[i])
	}
	return errors.Join(err, p.flush(ctx))
}

func (p *packer) rewrite(ctx context.Context, first []byte) error {
	var packed []byte
	err := p.db.read(ctx, "read packed entries", func(ctx context.Context, tx *sql.Tx) error {
		return tx.QueryRowContext(ctx, `SELECT entries FROM crl_segments WHERE issuer = ? AND crl_partition = ? AND first = ?`,
			p.issuer, p.partition, first).Scan(&packed)
	})
	if err != nil {
		return err
	}
	s := segment{first: first}
	if s.records, err = unpackAll(packed); err != nil {
		return err
	}
	s.fold(nil, p.endedBefore)
	return p.put(ctx, s)
}

// put has segments written, with others in one transaction. What one segment became comes in one call: entries are in one
// or the other at any time.
func (p *packer) put(ctx context.Context, segments ...segment) error {
	if n := len(p.unwritten); n > 0 && slices.Equal(p.unwritten[n-1].first, segments[0].first) {
		p.unwritten = p.unwritten[:n-1]
	}
	p.unwritten = append(p.unwritten, segments...)
	if len(p.unwritten) < packStep {
		return nil
	}
	return p.flush(ctx)
}

// flush writes what was put, and then leaves the writer to others for a while.
func (p *packer) flush(ctx context.Context) error {
	if len(p.unwritten) == 0 {
		return nil
	}
	var took time.Duration
	err := p.db.write(ctx, "write packed entries", func(ctx context.Context, tx *writeTx) error {
		begun := time.Now()
		defer func() { took = time.Since(begun) }()
		tx.pages += uint64(len(p.unwritten)) * pagesOfSegment
		for _, s := range p.unwritten {
			if err := tx.putSegment(ctx, p.issuer, p.partition, s); err != nil {
				return err
			}
		}
		return nil
	})
	p.unwritten = nil
	if err != nil {
		return err
	}
	timer := time.NewTimer(packRest * took)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return fail("pack what is revoked", ctx.Err())
	case <-timer.C:
		return nil
	}
}

// putSegment writes a segment, or deletes it where nothing is left in it: the one before it then has its range too.
func (tx *writeTx) putSegment(ctx context.Context, issuer int64, partition uint16, s segment) error {
	if len(s.records) == 0 {
		_, err := tx.ExecContext(ctx, `DELETE FROM crl_segments WHERE issuer = ? AND crl_partition = ? AND first = ?`, issuer, partition, s.first)
		return err
	}
	_, err := tx.ExecContext(ctx, `
		INSERT INTO crl_segments (issuer, crl_partition, first, entries, wanes_at) VALUES (?, ?, ?, ?, ?)
		ON CONFLICT (issuer, crl_partition, first) DO UPDATE SET entries = excluded.entries, wanes_at = excluded.wanes_at`,
		issuer, partition, s.first, s.packed(), s.wanesAt())
	return err
}
