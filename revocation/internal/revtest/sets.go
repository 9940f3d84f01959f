package revtest

import (
	"cmp"
	"context"
	"slices"
	"time"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/revocation"
)

// CountBulk implements revocation.Records. A Book knows certificates by their issuer alone.
func (b *Book) CountBulk(ctx context.Context, o revocation.BulkRequest) (revocation.Affected, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return revocation.Affected{Valid: len(b.members(o))}, ctx.Err()
}

// members are what an order would change, as it would have them.
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

// CreateBulk implements revocation.Records.
func (b *Book) CreateBulk(ctx context.Context, o revocation.BulkRequest) (revocation.BulkRevocation, []pki.StatusChange, error) {
	if err := ctx.Err(); err != nil {
		return revocation.BulkRevocation{}, nil, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	s := &revocation.BulkRevocation{ID: int64(len(b.sets) + 1), BulkRequest: o}
	b.sets = append(b.sets, s)
	return *s, nil, nil
}

// NotifyBulk implements revocation.Records.
func (b *Book) NotifyBulk(ctx context.Context, id int64, observer pki.StatusObserver) (revocation.BulkRevocation, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	s, err := b.set(id)
	if err != nil || s.Done {
		return s, err
	}
	members := b.members(s.BulkRequest)
	observer.Apply(members...)
	b.sets[id-1].Total, b.sets[id-1].Counted = s.Applied+len(members), true
	return *b.sets[id-1], ctx.Err()
}

// ApplyBulk implements revocation.Records.
func (b *Book) ApplyBulk(ctx context.Context, id int64, limit int, _ time.Time) ([]pki.StatusChange, revocation.BulkRevocation, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	s, err := b.set(id)
	if err != nil || s.Done || ctx.Err() != nil {
		return nil, s, cmp.Or(err, ctx.Err())
	}
	members := b.members(s.BulkRequest)
	step := members[:min(limit, len(members))]
	for i, c := range step {
		step[i] = b.put(c)
		b.marks[c.Ref] = mark{b.marks[c.Ref].partition, uint64(len(b.log))}
	}
	b.sets[id-1].Applied += len(step)
	b.sets[id-1].Done = len(step) == len(members)
	return step, *b.sets[id-1], nil
}

// BulkRevocation implements revocation.Records.
func (b *Book) BulkRevocation(ctx context.Context, id int64) (revocation.BulkRevocation, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	s, err := b.set(id)
	return s, cmp.Or(err, ctx.Err())
}

// BulkRevocations implements revocation.Store.
func (b *Book) BulkRevocations(ctx context.Context, states []revocation.BulkState, after int64, limit int) (page []revocation.BulkRevocation, next int64, _ error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, s := range slices.Backward(b.sets) {
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

// set is Set for who holds the lock.
func (b *Book) set(id int64) (revocation.BulkRevocation, error) {
	if id < 1 || id > int64(len(b.sets)) {
		return revocation.BulkRevocation{}, pki.Refuse(pki.RuleNotFound, "name one that was ordered", "there is no set %d", id)
	}
	return *b.sets[id-1], nil
}

// OpenBulk implements revocation.Records.
func (b *Book) OpenBulk(ctx context.Context) ([]revocation.BulkRevocation, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	var open []revocation.BulkRevocation
	for _, s := range b.sets {
		if !s.Done {
			open = append(open, *s)
		}
	}
	return open, ctx.Err()
}
