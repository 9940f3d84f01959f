package translog

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// SkipEvery is the distance between the indexes whose chain values stay in the store when the entries leave it.
const SkipEvery = 4096

// Removable is the log in the database, as the [Remover] uses it. It is safe for concurrent use.
type Removable interface {
	Reader
	// Remove removes the entries from an index up to a head, in one durable transaction. They must be the first ones in
	// the store. The chain value of the head stays, and those of every multiple of SkipEvery. Remove changes nothing and
	// returns false if the newest sequenced entry is among them, or if the archive of a server with an epoch lacks one
	// (see Store.Archived). If another server leads, it returns an error that wraps pki.ErrNotLeader.
	Remove(ctx context.Context, from uint64, to Head) (removed bool, err error)
}

// Remover removes old entries from the store that the archive has. It must be used by one goroutine at a time.
type Remover struct {
	records Removable
	archive *Archive
	next    uint64 // not after the first entry in the store
}

// NewRemover returns a Remover for a store and this server's archive of it.
func NewRemover(records Removable, archive *Archive) *Remover {
	return &Remover{records: records, archive: archive, next: 1}
}

// Step removes the oldest entries, in one transaction, if they were written before a time. It first reads them from the
// archive's file and compares them with the store's. It returns how many it removed, at most a [Page]. Zero means that
// no more entries can leave now. If archive and store differ, it returns a [*ChainError] or a [*CorruptError].
func (r *Remover) Step(ctx context.Context, before time.Time) (int, error) {
	page, err := r.records.Entries(ctx, r.next, batchSize)
	if left := new(RemovedError); errors.As(err, &left) {
		r.next = left.First
		page, err = r.records.Entries(ctx, r.next, batchSize)
	}
	if err != nil {
		return 0, fmt.Errorf("read the oldest entries: %w", err)
	}
	n, err := removable(page, before)
	if err != nil {
		return 0, err
	}
	head, err := r.records.Head(ctx)
	if err != nil {
		return 0, fmt.Errorf("read the store's end of the log: %w", err)
	}
	if n > 0 && page[n-1].Index == head.Size {
		n-- // the head stays
	}
	if n == 0 {
		return 0, nil
	}
	to := Head{Size: page[n-1].Index, Chain: page[n-1].Chain}
	if to.Size > r.archive.Head().Size {
		return 0, nil
	}
	if err := r.archive.Holds(ctx, r.next, to); err != nil {
		return 0, fmt.Errorf("look for the entries in the archive: %w", err)
	}
	removed, err := r.records.Remove(ctx, r.next, to)
	if err != nil || !removed {
		return 0, err
	}
	r.next = to.Size + 1
	return n, nil
}

// removable returns how many of the first entries can leave together: those that were written before a time, up to the
// next multiple of SkipEvery, because the store keeps the chain value of the last one.
func removable(page []Sequenced, before time.Time) (int, error) {
	for n, s := range page {
		e, err := ParseEntry(s.Entry)
		if err != nil {
			return 0, fmt.Errorf("log entry %d: %w", s.Index, err)
		}
		if !e.Time.Before(before) {
			return n, nil
		}
		if s.Index%SkipEvery == 0 {
			return n + 1, nil
		}
	}
	return len(page), nil
}

// Whole is the log in the store, and in the archive where entries have left the store. It is safe for concurrent use.
type Whole struct {
	Store   Reader
	Archive *Archive
}

// Entries is like Reader.Entries, for all entries. No entry is missing between the two, also while entries leave the store,
// because they leave it after the archive has them.
func (w Whole) Entries(ctx context.Context, from uint64, limit int) ([]Sequenced, error) {
	page, err := w.Store.Entries(ctx, from, limit)
	if left := new(RemovedError); errors.As(err, &left) {
		return w.Archive.Entries(ctx, from, limit)
	}
	return page, err
}
