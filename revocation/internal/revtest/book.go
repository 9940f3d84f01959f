package revtest

import (
	"cmp"
	"context"
	"iter"
	"math/big"
	"slices"
	"sync"
	"time"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/revocation"
)

// Book keeps the records of revocation in memory, as revocation.Records and responder.Feed ask for them. Nothing in
// it is durable, and it knows certificates, not identities. It is safe for concurrent use.
type Book struct {
	mu       sync.Mutex
	statuses map[pki.CertRef]pki.StatusChange
	log      []pki.StatusChange
	numbers  map[pki.IssuerID]int64
	crls     map[pki.IssuerID]revocation.CRL
	sets     []*revocation.Set
	by       map[pki.IssuerID]pki.Actor
}

// NewBook makes an empty Book.
func NewBook() *Book {
	return &Book{
		statuses: map[pki.CertRef]pki.StatusChange{}, numbers: map[pki.IssuerID]int64{},
		crls: map[pki.IssuerID]revocation.CRL{}, by: map[pki.IssuerID]pki.Actor{},
	}
}

// Issue records a good certificate.
func (b *Book) Issue(ref pki.CertRef, notAfter time.Time) pki.StatusChange {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.put(pki.StatusChange{Ref: ref, NotAfter: notAfter, Status: pki.Status{State: pki.Good}})
}

func (b *Book) put(c pki.StatusChange) pki.StatusChange {
	c.Status.Version = b.statuses[c.Ref].Status.Version + 1
	b.statuses[c.Ref] = c
	b.log = append(b.log, c)
	return c
}

// Apply implements revocation.Records.
func (b *Book) Apply(ctx context.Context, o revocation.Order) ([]pki.StatusChange, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	c, ok := b.statuses[o.Certificate]
	if !ok {
		return nil, pki.Refuse(pki.RuleNotFound, "name a certificate of this CA", "no such certificate")
	}
	next := pki.Status{State: pki.Good}
	switch o.Action {
	case revocation.Revoke:
		next = pki.Status{State: pki.Revoked, Reason: o.Reason, RevokedAt: o.At}
	case revocation.Hold:
		next = pki.Status{State: pki.Hold, Reason: pki.CertificateHold, RevokedAt: o.At}
	}
	if c.Status.State == next.State && c.Status.Reason == next.Reason {
		return nil, nil
	}
	if c.Status.State == pki.Revoked && next.Reason != pki.KeyCompromise {
		return nil, pki.Refuse(pki.RuleFinal, "nothing undoes a revocation", "revoked already for %v", c.Status.Reason)
	}
	c.Status.State, c.Status.Reason, c.Status.RevokedAt = next.State, next.Reason, next.RevokedAt
	return []pki.StatusChange{b.put(c)}, nil
}

// TakeNumber implements revocation.Records.
func (b *Book) TakeNumber(ctx context.Context, issuer pki.IssuerID) (*big.Int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.numbers[issuer]++
	return big.NewInt(b.numbers[issuer]), ctx.Err()
}

// Revoked implements revocation.Records.
func (b *Book) Revoked(ctx context.Context, issuer pki.IssuerID, notExpiredAt time.Time) iter.Seq2[revocation.Entry, error] {
	return func(yield func(revocation.Entry, error) bool) {
		for _, e := range b.entries(issuer, notExpiredAt) {
			if !yield(e, ctx.Err()) {
				return
			}
		}
	}
}

func (b *Book) entries(issuer pki.IssuerID, notExpiredAt time.Time) []revocation.Entry {
	b.mu.Lock()
	defer b.mu.Unlock()
	var entries []revocation.Entry
	for ref, c := range b.statuses {
		if ref.Issuer == issuer && c.Status.State != pki.Good && !c.NotAfter.Before(notExpiredAt) {
			entries = append(entries, revocation.Entry{Serial: ref.Serial, RevokedAt: c.Status.RevokedAt, Reason: c.Status.Reason})
		}
	}
	slices.SortFunc(entries, func(x, y revocation.Entry) int { return cmp.Compare(x.Serial.String(), y.Serial.String()) })
	return entries
}

// PutCRL implements revocation.Records.
func (b *Book) PutCRL(ctx context.Context, c revocation.CRL, by pki.Actor, _ time.Time) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if old, ok := b.crls[c.Issuer]; ok && c.Number.Cmp(old.Number) <= 0 {
		return pki.Refuse(pki.RuleCRL, "import a newer one", "CRL %v is not above %v, which is recorded", c.Number, old.Number)
	}
	b.crls[c.Issuer], b.by[c.Issuer] = c, by
	return ctx.Err()
}

// PutBy returns who recorded the issuer's newest CRL.
func (b *Book) PutBy(issuer pki.IssuerID) pki.Actor {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.by[issuer]
}

// CRLs implements revocation.Records.
func (b *Book) CRLs(ctx context.Context) ([]revocation.CRL, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	var all []revocation.CRL
	for _, c := range b.crls {
		all = append(all, c)
	}
	return all, ctx.Err()
}

// Snapshot implements responder.Feed.
func (b *Book) Snapshot(ctx context.Context, at time.Time, visit func(pki.StatusChange) error) (uint64, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, c := range b.statuses {
		if c.NotAfter.Before(at) {
			continue
		}
		if err := visit(c); err != nil {
			return 0, err
		}
	}
	return uint64(len(b.log)), ctx.Err()
}

// Changes implements responder.Feed.
func (b *Book) Changes(ctx context.Context, after uint64, limit int) ([]pki.StatusChange, uint64, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	changes := b.log[min(after, uint64(len(b.log))):]
	changes = slices.Clone(changes[:min(limit, len(changes))])
	return changes, after + uint64(len(changes)), ctx.Err()
}
