package crl

import (
	"context"
	"fmt"
	"net/url"
	"slices"

	"github.com/brevet-pki/brevet/pki"
)

// Limits on distribution points. A URL that a certificate ever contained must be served forever.
const (
	// MaxPartition is the highest number of a partition.
	MaxPartition = 4096
	// maxNames is the maximum number of URLs that a partition can have over time.
	maxNames = 64
	// maxURL is the maximum length of a URL, in bytes.
	maxURL = 1024
)

// points holds the distribution points of one partition: all URLs that certificates have ever contained.
type points struct {
	partition uint16
	names     []string // URLs of the partition's CRL
	deltas    []string // URLs of its delta CRL; empty if no certificate contains one
}

// check returns an error if the point cannot be served.
func (p Point) check() error {
	if p.Partition < 1 || p.Partition > MaxPartition {
		return fmt.Errorf("partition %d of %s is out of range: use 1 to %d; the full CRL has no distribution point of its own",
			p.Partition, p.Issuer.Short(), MaxPartition)
	}
	for _, name := range []string{p.URL, p.DeltaURL} {
		if name == "" && p.URL != "" {
			continue // the partition has no delta CRL
		}
		u, err := url.Parse(name)
		if err != nil || u.Host == "" || len(name) > maxURL {
			return fmt.Errorf("%q is not a URL for a distribution point: write it like http://pki.example/crl/0123456789abcdef/1.crl", name)
		}
	}
	return nil
}

// recordPoints records the configured points, before a certificate contains them. It then adds to each issuer all
// points that were ever recorded for it.
func (u *Updater) recordPoints(ctx context.Context, wanted []Point) error {
	for _, p := range wanted {
		if err := p.check(); err != nil {
			return err
		}
		if u.issuers[p.Issuer] == nil {
			return fmt.Errorf("the CRLs of %s are not signed here, and have no partitions", p.Issuer.Short())
		}
	}
	if len(wanted) > 0 {
		if err := u.store.PutPoints(ctx, wanted, u.now()); err != nil {
			return fmt.Errorf("record the distribution points of CRLs: %w", err)
		}
	}
	recorded, err := u.store.Points(ctx)
	if err != nil {
		return fmt.Errorf("read the distribution points of CRLs: %w", err)
	}
	for _, p := range recorded {
		if i := u.issuers[p.Issuer]; i != nil { // nil if the CA was removed
			i.addPoint(p)
		}
	}
	for _, i := range u.issuers {
		for _, p := range i.points {
			if len(p.names) > maxNames || len(p.deltas) > maxNames {
				return fmt.Errorf("partition %d of %s has had more than %d URLs: use another partition", p.partition, i.Certificate.Subject, maxNames)
			}
		}
	}
	return nil
}

// addPoint adds a point to an issuer's points.
func (i *issuer) addPoint(p Point) {
	at, found := slices.BinarySearchFunc(i.points, p.Partition, func(q *points, n uint16) int { return int(q.partition) - int(n) })
	if !found {
		i.points = slices.Insert(i.points, at, &points{partition: p.Partition})
	}
	q := i.points[at]
	if !slices.Contains(q.names, p.URL) {
		q.names = append(q.names, p.URL)
	}
	if p.DeltaURL != "" && !slices.Contains(q.deltas, p.DeltaURL) {
		q.deltas = append(q.deltas, p.DeltaURL)
	}
}

// scopes returns the scopes of all CRLs of an issuer. The scope of each delta follows that of its base.
func (i *issuer) scopes() []Scope {
	all := []Scope{{Issuer: i.id}}
	for _, p := range i.points {
		all = append(all, Scope{Issuer: i.id, Partition: p.partition})
		if len(p.deltas) > 0 {
			all = append(all, Scope{Issuer: i.id, Partition: p.partition, Delta: true})
		}
	}
	return all
}

// pointsOf returns the URLs of a scope's distribution point, and the URLs of its delta CRL.
func (i *issuer) pointsOf(s Scope) (names, deltas []string) {
	for _, p := range i.points {
		if p.partition == s.Partition {
			return p.names, p.deltas
		}
	}
	return nil, nil
}

// Scopes returns the scope of every CRL that the updater keeps current, in any order.
func (u *Updater) Scopes() []Scope {
	var all []Scope
	for _, i := range u.issuers {
		all = append(all, i.scopes()...)
	}
	for _, c := range u.elsewhere {
		all = append(all, Scope{Issuer: pki.IssuerOf(c)})
	}
	return all
}
