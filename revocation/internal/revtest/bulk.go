package revtest

import (
	"cmp"
	"context"
	"slices"
	"time"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/revocation"
)

// CountBulk implements [revocation.Store]. A Book selects certificates only by their issuer.
func (b *Book) CountBulk(ctx context.Context, o revocation.BulkRequest) (revocation.Affected, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return revocation.Affected{Valid: len(b.members(o))}, ctx.Err()
}

// members returns the certificates that a bulk revocation would change, with their new statuses.
func (b *Book) members(o revocation.BulkRequest) []pki.StatusChange {
	var found []pki.StatusChange
	for ref, c := range b.statuses {
		if ref.Issuer != o.Issuer || c.Status.State == pki.Revoked {
			continue
		}
		c.Status = pki.Status{State: pki.Revoked, Reason: o.Reason, RevokedAt: o.At, Version: c.Status.Version + 1}
		found = append(found, c)
	}
	slices.SortFunc(found, func(x, y pki.StatusChange) int { return cmp.Compare(x.Ref.Serial.String(), y.Ref.Serial.String()) })
	return found
}

// CreateBulk implements [revocation.Store].
func (b *Book) CreateBulk(ctx context.Context, o revocation.BulkRequest) (revocation.BulkRevocation, []pki.StatusChange, error) {
	if err := ctx.Err(); err != nil {
		return revocation.BulkRevocation{}, nil, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	s := &revocation.BulkRevocation{ID: int64(len(b.bulks) + 1), BulkRequest: o}
	b.bulks = append(b.bulks, s)
	return *s, nil, nil
}

// NotifyBulk implements [revocation.Store].
func (b *Book) NotifyBulk(ctx context.Context, id int64, observer pki.StatusObserver) (revocation.BulkRevocation, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	s, err := b.bulk(id)
	if err != nil || s.Done {
		return s, err
	}
	members := b.members(s.BulkRequest)
	observer.Apply(members...)
	b.bulks[id-1].Total, b.bulks[id-1].Counted = s.Applied+len(members), true
	return *b.bulks[id-1], ctx.Err()
}

// ApplyBulk implements [revocation.Store].
func (b *Book) ApplyBulk(ctx context.Context, id int64, limit int, _ time.Time) ([]pki.StatusChange, revocation.BulkRevocation, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	s, err := b.bulk(id)
	if err != nil || s.Done || ctx.Err() != nil {
		return nil, s, cmp.Or(err, ctx.Err())
	}
	members := b.members(s.BulkRequest)
	step := members[:min(limit, len(members))]
	for i, c := range step {
		step[i] = b.put(c)
		b.marks[c.Ref] = mark{b.marks[c.Ref].partition, uint64(len(b.log))}
	}
	b.bulks[id-1].Applied += len(step)
	b.bulks[id-1].Done = len(step) == len(members)
	return step, *b.bulks[id-1], nil
}

// BulkRevocation implements [revocation.Store].
func (b *Book) BulkRevocation(ctx context.Context, id int64) (revocation.BulkRevocation, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	s, err := b.bulk(id)
	return s, cmp.Or(err, ctx.Err())
}

// BulkRevocations implements [revocation.Store].
func (b *Book) BulkRevocations(ctx context.Context, states []revocation.BulkState, after int64, limit int) (page []revocation.BulkRevocation, next int64, _ error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, s := range slices.Backward(b.bulks) {
		switch {
		case after != 0 && s.ID >= after, len(states) > 0 && !slices.Contains(states, s.State()):
		case len(page) == limit:
			return page, page[limit-1].ID, ctx.Err()
		default:
			page = append(page, *s)
		}
	}
	return page, 0, ctx.Err()
}

// bulk returns the bulk revocation with an ID. The caller holds the lock.
func (b *Book) bulk(id int64) (revocation.BulkRevocation, error) {
	if id < 1 || id > int64(len(b.bulks)) {
		return revocation.BulkRevocation{}, pki.Refuse(pki.RuleNotFound, "give the ID of a bulk revocation", "there is no bulk revocation %d", id)
	}
	return *b.bulks[id-1], nil
}

// OpenBulk implements [revocation.Store].
func (b *Book) OpenBulk(ctx context.Context) ([]revocation.BulkRevocation, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	var open []revocation.BulkRevocation
	for _, s := range b.bulks {
		if !s.Done {
			open = append(open, *s)
		}
	}
	return open, ctx.Err()
}
