package revtest

import (
	"bytes"
	"context"
	"iter"
	"maps"
	"math/big"
	"slices"
	"sync"
	"time"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/revocation"
	"github.com/brevet-pki/brevet/revocation/crl"
)

// Book stores certificates, statuses and CRLs in memory, and no identities. It implements [revocation.Store],
// [crl.Store] and responder.Feed. It is safe for concurrent use.
type Book struct {
	mu       sync.Mutex
	statuses map[pki.CertRef]pki.StatusChange
	marks    map[pki.CertRef]mark
	log      []pki.StatusChange
	numbers  map[pki.IssuerID]int64
	crls     map[crl.Scope]crl.CRL
	bulks    []*revocation.BulkRevocation
	by       map[pki.IssuerID]pki.Actor
	points   []crl.Point
}

// mark is the data about a certificate that CRLs need in addition to its status.
type mark struct {
	partition uint16
	changed   uint64 // length of the log after the last change; zero before the first one
}

// NewBook returns an empty Book.
func NewBook() *Book {
	return &Book{
		statuses: map[pki.CertRef]pki.StatusChange{}, marks: map[pki.CertRef]mark{}, numbers: map[pki.IssuerID]int64{},
		crls: map[crl.Scope]crl.CRL{}, by: map[pki.IssuerID]pki.Actor{},
	}
}

// Issue records a good certificate that is in no partition.
func (b *Book) Issue(ref pki.CertRef, notAfter time.Time) pki.StatusChange {
	return b.IssueIn(0, ref, notAfter)
}

// IssueIn records a good certificate in a partition.
func (b *Book) IssueIn(partition uint16, ref pki.CertRef, notAfter time.Time) pki.StatusChange {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.marks[ref] = mark{partition: partition}
	return b.put(pki.StatusChange{Ref: ref, NotAfter: notAfter, Status: pki.Status{State: pki.Good}})
}

func (b *Book) put(c pki.StatusChange) pki.StatusChange {
	c.Status.Version = b.statuses[c.Ref].Status.Version + 1
	b.statuses[c.Ref] = c
	b.log = append(b.log, c)
	return c
}

// Apply implements [revocation.Store].
func (b *Book) Apply(ctx context.Context, o revocation.Change) (revocation.ChangeResult, error) {
	if err := ctx.Err(); err != nil {
		return revocation.ChangeResult{}, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	c, ok := b.statuses[o.Certificate]
	if !ok {
		return revocation.ChangeResult{}, pki.Refuse(pki.RuleNotFound, "name a certificate of this CA", "no such certificate")
	}
	next := pki.Status{State: pki.Good}
	switch o.Action {
	case revocation.Revoke:
		next = pki.Status{State: pki.Revoked, Reason: o.Reason, RevokedAt: o.At}
	case revocation.Hold:
		next = pki.Status{State: pki.Hold, Reason: pki.CertificateHold, RevokedAt: o.At}
	}
	if c.Status.State == next.State && c.Status.Reason == next.Reason {
		return revocation.ChangeResult{}, nil
	}
	if c.Status.State == pki.Revoked && next.Reason != pki.KeyCompromise {
		return revocation.ChangeResult{}, pki.Refuse(pki.RuleAlreadyRevoked, "nothing undoes a revocation", "revoked already for %v", c.Status.Reason)
	}
	c.Status.State, c.Status.Reason, c.Status.RevokedAt = next.State, next.Reason, next.RevokedAt
	c = b.put(c)
	b.marks[c.Ref] = mark{b.marks[c.Ref].partition, uint64(len(b.log))}
	return revocation.ChangeResult{Changed: []pki.StatusChange{c}}, nil
}

// TakeNumber implements crl.Store.
func (b *Book) TakeNumber(ctx context.Context, issuer pki.IssuerID, _ time.Time) (*big.Int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.numbers[issuer]++
	return big.NewInt(b.numbers[issuer]), ctx.Err()
}

// View implements crl.Store.
func (b *Book) View(ctx context.Context, issuer pki.IssuerID, read func(crl.View) error) error {
	b.mu.Lock()
	v := &view{issuer: issuer, statuses: maps.Clone(b.statuses), marks: maps.Clone(b.marks), position: uint64(len(b.log))}
	b.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return err
	}
	return read(v)
}

// view is a copy of a Book's statuses.
type view struct {
	issuer   pki.IssuerID
	statuses map[pki.CertRef]pki.StatusChange
	marks    map[pki.CertRef]mark
	position uint64
}

func (v *view) Position() uint64 { return v.position }

func (v *view) Changed(since uint64) ([]uint16, error) {
	changed := map[uint16]bool{}
	for ref, m := range v.marks {
		if ref.Issuer == v.issuer && m.changed > since {
			changed[m.partition] = true
		}
	}
	return slices.Sorted(maps.Keys(changed)), nil
}

func (v *view) Entries(l crl.Listing) iter.Seq2[crl.Entry, error] {
	var entries []crl.Entry
	for ref, c := range v.statuses {
		m := v.marks[ref]
		if ref.Issuer != v.issuer || l.Partition != 0 && m.partition != l.Partition || c.NotAfter.Before(l.NotExpiredAt) ||
			l.Delta && m.changed <= l.Since {
			continue
		}
		switch {
		case c.Status.State != pki.Good:
			entries = append(entries, crl.Entry{Serial: ref.Serial, RevokedAt: c.Status.RevokedAt, Reason: c.Status.Reason})
		case l.Delta:
			entries = append(entries, crl.Entry{Serial: ref.Serial, Removed: true})
		}
	}
	slices.SortFunc(entries, func(x, y crl.Entry) int { return bytes.Compare(x.Serial.Bytes(), y.Serial.Bytes()) })
	return func(yield func(crl.Entry, error) bool) {
		for _, e := range entries {
			if !yield(e, nil) {
				return
			}
		}
	}
}

// Compact implements crl.Store.
func (b *Book) Compact(ctx context.Context, _ pki.IssuerID) error { return ctx.Err() }

// PutCRLs implements crl.Store.
func (b *Book) PutCRLs(ctx context.Context, crls []crl.CRL, by pki.Actor, _ time.Time) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, c := range crls {
		if old, ok := b.crls[c.Scope()]; ok && c.Number.Cmp(old.Number) <= 0 {
			return pki.Refuse(pki.RuleCRL, "import a newer one", "CRL %v is not above %v, which is recorded", c.Number, old.Number)
		} else if ok && c.DER == nil && c.Position < old.Position {
			return pki.Refuse(pki.RuleCRL, "sign a newer one", "CRL %v ends before CRL %v, which is recorded", c.Number, old.Number)
		}
	}
	for _, c := range crls {
		b.crls[c.Scope()], b.by[c.Issuer] = c, by
	}
	return ctx.Err()
}

// PutBy returns the actor that recorded the newest CRL of an issuer.
func (b *Book) PutBy(issuer pki.IssuerID) pki.Actor {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.by[issuer]
}

// CRLs implements crl.Store.
func (b *Book) CRLs(ctx context.Context) ([]crl.CRL, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Collect(maps.Values(b.crls)), ctx.Err()
}

// PutPoints implements crl.Store.
func (b *Book) PutPoints(ctx context.Context, points []crl.Point, _ time.Time) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, p := range points {
		if !slices.Contains(b.points, p) {
			b.points = append(b.points, p)
		}
	}
	return ctx.Err()
}

// Points implements crl.Store.
func (b *Book) Points(ctx context.Context) ([]crl.Point, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.points), ctx.Err()
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
func (b *Book) Changes(ctx context.Context, after uint64, limit int, apply func([]pki.StatusChange)) (uint64, error) {
	b.mu.Lock()
	changes := b.log[min(after, uint64(len(b.log))):]
	changes = slices.Clone(changes[:min(limit, len(changes))])
	b.mu.Unlock()
	apply(changes)
	return after + uint64(len(changes)), ctx.Err()
}

// Written implements responder.Feed. Every entry is in the feed at once.
func (b *Book) Written(ctx context.Context) (uint64, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return uint64(len(b.log)), ctx.Err()
}
