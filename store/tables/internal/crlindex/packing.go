package crlindex

import (
	"context"
	"crypto/rand"
	"database/sql"
	"errors"
	"slices"
	"time"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/store/engine"
)

const (
	// packFrom is the minimum number of changes to compact in a partition with few entries. Reading that many rows takes
	// about ten milliseconds. With more entries the minimum is one change for each packShare entries, so that the amount
	// of rewriting stays proportional. It is packMost at most; reading those takes a tenth of a second.
	packFrom  = 4096
	packShare = 128
	packMost  = 1 << 14
	// packPass is the maximum number of changes in memory.
	packPass = 1 << 18
	// packStep is the number of segments that one transaction writes.
	packStep = 32
	// packRest is the pause after a transaction, as a multiple of its duration.
	packRest = 3
	// pagesOfSegment is the number of pages that a segment takes in the WAL file.
	pagesOfSegment = (segmentRecords*recordSize)/4096 + 2
)

// packing configures and serializes compaction.
type packing struct {
	turn    chan struct{} // holds one value while a goroutine compacts
	from    int           // minimum number of changes to compact
	segment int           // maximum number of records in a segment
}

// worth returns the minimum number of changes to compact, in a partition with packed records.
func (p *packing) worth(packed int) int { return min(packMost, max(p.from, packed/packShare)) }

// packer compacts one partition of an issuer. Before it reads what it merges, it claims the partition with its ID. Another
// server's packer may claim the partition later. Each write of this packer then does nothing and fails with errClaimed, so
// that it overwrites no newer records.
type packer struct {
	index       *Index
	id          [16]byte
	issuer      int64
	partition   uint16
	endedBefore int64 // certificates that expired before it are in CRLs from after their expiry
	unwritten   []segment
}

// Compact merges changes into segments. Concurrent calls of a process run one after the other. If another server claims a
// partition meanwhile, Compact leaves the partition to it.
func (x *Index) Compact(ctx context.Context, issuer pki.IssuerID) error {
	select {
	case x.packing.turn <- struct{}{}:
		defer func() { <-x.packing.turn }()
	case <-ctx.Done():
		return x.db.Fail("pack what is revoked", ctx.Err())
	}
	var id int64
	var all []uint16
	err := x.db.Read(ctx, "read what is to be packed", func(ctx context.Context, tx engine.Querier) error {
		err := tx.QueryRow(ctx, `SELECT coalesce(max(id), 0) FROM issuers WHERE issuer = ?`, issuer.Bytes()).Scan(&id)
		if err == nil {
			all, err = partitions(ctx, tx, id)
		}
		return err
	})
	for i := 0; i < len(all) && err == nil; i++ {
		p := &packer{index: x, issuer: id, partition: all[i]}
		_, _ = rand.Read(p.id[:]) // never fails
		if err = p.pack(ctx); errors.Is(err, errClaimed) {
			err = nil
		}
	}
	return err
}

// errClaimed means that another packer has claimed the partition, which it compacts.
var errClaimed = errors.New("another server compacts the partition")

// pack merges changes in passes until few are left.
func (p *packer) pack(ctx context.Context) error {
	if is, err := p.isDue(ctx); err != nil || !is {
		return err
	}
	if err := p.claim(ctx); err != nil {
		return err
	}
	for {
		changes, position, err := p.collect(ctx)
		if err != nil {
			return err
		}
		if len(changes) == 0 {
			return p.sweep(ctx)
		}
		if err := p.mergeAll(ctx, changes); err != nil {
			return err
		}
		err = p.write(ctx, "note what is packed", func(ctx context.Context, tx *engine.Tx) error {
			_, err := tx.Exec(ctx, notePacked, p.issuer, p.partition, position, p.endedBefore)
			return err
		})
		if err != nil {
			return err
		}
	}
}

// isDue reports whether there are enough changes to merge, or segments in which many certificates have expired.
func (p *packer) isDue(ctx context.Context) (is bool, err error) {
	err = p.index.db.ReadMany(ctx, "read what is to be packed", func(ctx context.Context, tx engine.Querier) error {
		_, n, _, err := p.tail(ctx, tx)
		if is = n > 0; is || err != nil {
			return err
		}
		return tx.QueryRow(ctx, `SELECT EXISTS (SELECT 1 FROM crl_segments WHERE issuer = ? AND crl_partition = ? AND compact_at < ?)`,
			p.issuer, p.partition, p.endedBefore).Scan(&is)
	})
	return is, err
}

// claim makes this packer the only one that writes segments of the partition.
func (p *packer) claim(ctx context.Context) error {
	return p.index.db.Write(ctx, "claim what is packed", func(ctx context.Context, tx *engine.Tx) error {
		_, err := tx.Exec(ctx, `
			INSERT INTO crl_packed (issuer, crl_partition, position, packer) VALUES (?, ?, 0, ?)
			ON CONFLICT (issuer, crl_partition) DO UPDATE SET packer = excluded.packer`, p.issuer, p.partition, p.id[:])
		return err
	})
}

// write runs do in a transaction, unless another packer has claimed the partition.
func (p *packer) write(ctx context.Context, what string, do func(context.Context, *engine.Tx) error) error {
	return p.index.db.Write(ctx, what, func(ctx context.Context, tx *engine.Tx) error {
		var is bool
		err := tx.QueryRow(ctx, `SELECT EXISTS (SELECT 1 FROM crl_packed WHERE issuer = ? AND crl_partition = ? AND packer = ?)`,
			p.issuer, p.partition, p.id[:]).Scan(&is)
		if err == nil && !is {
			err = errClaimed
		}
		if err != nil {
			return err
		}
		return do(ctx, tx)
	})
}

// SelectTail counts the changes of a partition since it was last compacted, up to a limit, and returns the position of
// the last of them.
const SelectTail = `
	SELECT count(*), coalesce(max(changed), 0) FROM (
	    SELECT changed FROM certificates WHERE issuer = ? AND crl_partition = ? AND changed > ? ORDER BY changed LIMIT ?) c`

// sealedUntil selects a time. Certificates that expired before it are in a CRL of each of their scopes from after their
// expiry.
const sealedUntil = `
	SELECT coalesce(min(u), 0) FROM (
	    SELECT coalesce((SELECT this_update FROM crls WHERE issuer = ?1 AND crl_partition = 0 AND delta = 0), 0) AS u
	    UNION ALL
	    SELECT coalesce((SELECT this_update FROM crls WHERE issuer = ?1 AND crl_partition = ?2 AND delta = 0), 0)
	    WHERE EXISTS (SELECT 1 FROM crl_points WHERE issuer = ?1 AND crl_partition = ?2)) t`

const (
	// notePacked does nothing if that time has moved backwards: the segments may then lack entries that CRLs must list.
	notePacked = `UPDATE crl_packed SET position = ?3 WHERE issuer = ?1 AND crl_partition = ?2 AND (` + sealedUntil + `) >= ?4`
	// maybeDropped selects whether compaction may have dropped certificates that had not expired at a time. That happens
	// if the clock was ahead when the recorded CRLs were made.
	maybeDropped = `SELECT EXISTS (SELECT 1 FROM certificates WHERE not_after >= ?3 AND not_after < (` + sealedUntil + `))`
)

// collect reads the next changes to merge, in the order of serial numbers, and the last log entry that they cover. It
// returns none if there are too few to compact.
func (p *packer) collect(ctx context.Context) (changes []record, position int64, err error) {
	err = p.index.db.ReadMany(ctx, "read what is to be packed", func(ctx context.Context, tx engine.Querier) error {
		v := &view{ctx: ctx, quiet: context.WithoutCancel(ctx), tx: tx, issuer: p.issuer}
		since, n, last, err := p.tail(ctx, tx)
		if err != nil || n == 0 {
			return err
		}
		position = last
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

// tail returns the position of the last compaction, the number of changes since it, and the position of the last of them.
// The number is zero if there are too few to compact. tail also sets endedBefore.
func (p *packer) tail(ctx context.Context, tx engine.Querier) (since uint64, n int, position int64, err error) {
	if since, err = packedTo(ctx, tx, p.issuer, p.partition); err != nil {
		return 0, 0, 0, err
	}
	var packed int
	err = tx.QueryRow(ctx, `SELECT coalesce(sum(length(entries)), 0) / ? FROM crl_segments WHERE issuer = ? AND crl_partition = ?`,
		recordSize, p.issuer, p.partition).Scan(&packed)
	if err != nil {
		return 0, 0, 0, err
	}
	if err := tx.QueryRow(ctx, sealedUntil, p.issuer, p.partition).Scan(&p.endedBefore); err != nil {
		return 0, 0, 0, err
	}
	err = tx.QueryRow(ctx, SelectTail, p.issuer, p.partition, int64(since), packPass).Scan(&n, &position) //nolint:gosec // an id
	if n < p.index.packing.worth(packed) {
		n = 0
	}
	return since, n, position, err
}

// mergeAll merges changes into their segments.
func (p *packer) mergeAll(ctx context.Context, changes []record) error {
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
		at.merge(changes[:n], p.endedBefore)
		changes = changes[n:]
		parts := at.split(p.index.packing.segment)
		if err := p.put(ctx, parts...); err != nil {
			return err
		}
		// The last part may get more changes and be written again. It is written now too, so that it is never missing.
		at = &parts[len(parts)-1]
	}
	return p.flush(ctx)
}

// load reads the segment for a serial number. As long as no other packer claims the partition, only this one writes
// segments, in ascending order.
func (p *packer) load(ctx context.Context, serial pki.Serial) (*segment, error) {
	s := &segment{first: make([]byte, pki.SerialSize)} // the first segment starts at zero
	err := p.index.db.Read(ctx, "read packed entries", func(ctx context.Context, tx engine.Querier) error {
		var packed []byte
		err := tx.QueryRow(ctx, `
			SELECT first, entries FROM crl_segments WHERE issuer = ? AND crl_partition = ? AND first <= ? ORDER BY first DESC LIMIT 1`,
			p.issuer, p.partition, serial.Bytes()).Scan(&s.first, &packed)
		if err != nil && !errors.Is(err, sql.ErrNoRows) {
			return err
		}
		if s.records, err = unpackAll(packed); err != nil {
			return err
		}
		return tx.QueryRow(ctx, `
			SELECT (SELECT first FROM crl_segments WHERE issuer = ? AND crl_partition = ? AND first > ? ORDER BY first LIMIT 1)`,
			p.issuer, p.partition, serial.Bytes()).Scan(&s.next)
	})
	return s, err
}

// sweep rewrites the segments in which many certificates have expired.
func (p *packer) sweep(ctx context.Context) error {
	var due [][]byte
	err := p.index.db.Read(ctx, "read packed entries that have ended", func(ctx context.Context, tx engine.Querier) error {
		rows := engine.Query(ctx, tx, `
			SELECT first FROM crl_segments WHERE issuer = ? AND crl_partition = ? AND compact_at < ? ORDER BY first`, p.issuer, p.partition, p.endedBefore)
		return rows.Each(func(rows engine.Scanner) error {
			var first []byte
			err := rows.Scan(&first)
			due = append(due, first)
			return err
		})
	})
	for i := 0; i < len(due) && err == nil; i++ {
		err = p.rewrite(ctx, due[i])
	}
	return errors.Join(err, p.flush(ctx))
}

func (p *packer) rewrite(ctx context.Context, first []byte) error {
	var packed []byte
	err := p.index.db.Read(ctx, "read packed entries", func(ctx context.Context, tx engine.Querier) error {
		return tx.QueryRow(ctx, `SELECT entries FROM crl_segments WHERE issuer = ? AND crl_partition = ? AND first = ?`,
			p.issuer, p.partition, first).Scan(&packed)
	})
	if errors.Is(err, sql.ErrNoRows) {
		return nil // another packer has removed it
	}
	if err != nil {
		return err
	}
	s := segment{first: first}
	if s.records, err = unpackAll(packed); err != nil {
		return err
	}
	s.merge(nil, p.endedBefore)
	return p.put(ctx, s)
}

// put queues segments for writing; several share a transaction. The parts of one segment must be put in one call, so
// that every entry is in exactly one segment at any time.
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

// flush writes the queued segments, and then pauses so that other writers proceed.
func (p *packer) flush(ctx context.Context) error {
	if len(p.unwritten) == 0 {
		return nil
	}
	var took time.Duration
	err := p.write(ctx, "write packed entries", func(ctx context.Context, tx *engine.Tx) error {
		begun := time.Now()
		defer func() { took = time.Since(begun) }()
		tx.Pages += uint64(len(p.unwritten)) * pagesOfSegment
		for _, s := range p.unwritten {
			if err := putSegment(ctx, tx, p.issuer, p.partition, s); err != nil {
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
		return p.index.db.Fail("pack what is revoked", ctx.Err())
	case <-timer.C:
		return nil
	}
}

// putSegment writes a segment. It deletes a segment without records, whose range then belongs to the segment before it.
func putSegment(ctx context.Context, tx *engine.Tx, issuer int64, partition uint16, s segment) error {
	if len(s.records) == 0 {
		_, err := tx.Exec(ctx, `DELETE FROM crl_segments WHERE issuer = ? AND crl_partition = ? AND first = ?`, issuer, partition, s.first)
		return err
	}
	_, err := tx.Exec(ctx, `
		INSERT INTO crl_segments (issuer, crl_partition, first, entries, compact_at) VALUES (?, ?, ?, ?, ?)
		ON CONFLICT (issuer, crl_partition, first) DO UPDATE SET entries = excluded.entries, compact_at = excluded.compact_at`,
		issuer, partition, s.first, s.packed(), s.compactAt())
	return err
}

// PackAnew makes the next compaction of an issuer start again, if a partition's CRL is older than the one that it
// replaces because the clock was set back. Compaction may have dropped certificates that expire between the two CRLs.
func PackAnew(ctx context.Context, tx *engine.Tx, issuer int64, partition uint16, thisUpdate time.Time) error {
	_, err := tx.Exec(ctx, `
		UPDATE crl_packed SET position = 0 WHERE issuer = ?1 AND EXISTS (
		    SELECT 1 FROM certificates WHERE not_after >= ?3
		      AND not_after < (SELECT this_update FROM crls WHERE issuer = ?1 AND crl_partition = ?2 AND delta = 0))`,
		issuer, partition, engine.Millis(thisUpdate))
	return err
}

// WorthPacking returns the minimum number of changes to compact beside a number of packed records, and the maximum per
// pass.
func (x *Index) WorthPacking(packed int) (worth, pass int) { return x.packing.worth(packed), packPass }

// PackFrom sets the minimum number of changes to compact, and the maximum number of records in a segment.
func (x *Index) PackFrom(changes, records int) { x.packing.from, x.packing.segment = changes, records }
