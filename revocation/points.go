package revocation

import (
	"context"
	"fmt"
	"net/url"
	"slices"

	"github.com/brevet-pki/brevet/pki"
)

// The bounds of what certificates may name, since every name that ever was in one is served from then on.
const (
	// MaxPartition is the highest number of a partition.
	MaxPartition = 4096
	// maxNames is how many URLs a partition may have had.
	maxNames = 64
	// maxURL is the length of one, in octets.
	maxURL = 1024
)

// points are the distribution points of one partition: every URL that was ever put into a certificate.
type points struct {
	partition uint16
	names     []string // of the partition's CRL
	deltas    []string // of its delta; none where no certificate names one
}

// check refuses a point that could not be served.
func (p DistributionPoint) check() error {
	if p.Partition < 1 || p.Partition > MaxPartition {
		return fmt.Errorf("revocation: partition %d of %s is out of range: use 1 to %d; the full CRL has no distribution point of its own",
			p.Partition, p.Issuer.Short(), MaxPartition)
	}
	for _, name := range []string{p.URL, p.DeltaURL} {
		if name == "" && p.URL != "" {
			continue // a partition without a delta
		}
		u, err := url.Parse(name)
		if err != nil || u.Host == "" || len(name) > maxURL {
			return fmt.Errorf("revocation: %q is no URL of a distribution point: write it like http://pki.example/crl/0123456789abcdef/1.crl", name)
		}
	}
	return nil
}

// recordPoints makes the points that certificates will name durable, before any certificate names them, and gives each
// issuer all that were ever recorded for it.
func (a *Authority) recordPoints(ctx context.Context, wanted []DistributionPoint) error {
	for _, p := range wanted {
		if err := p.check(); err != nil {
			return err
		}
		if a.issuers[p.Issuer] == nil {
			return fmt.Errorf("revocation: the CRLs of %s are not signed here, and have no partitions", p.Issuer.Short())
		}
	}
	if len(wanted) > 0 {
		if err := a.records.PutPoints(ctx, wanted); err != nil {
			return fmt.Errorf("revocation: record the distribution points of CRLs: %w", err)
		}
	}
	recorded, err := a.records.Points(ctx)
	if err != nil {
		return fmt.Errorf("revocation: read the distribution points of CRLs: %w", err)
	}
	for _, p := range recorded {
		if i := a.issuers[p.Issuer]; i != nil { // an issuer may have left since
			i.name(p)
		}
	}
	for _, i := range a.issuers {
		for _, p := range i.points {
			if len(p.names) > maxNames || len(p.deltas) > maxNames {
				return fmt.Errorf("revocation: partition %d of %s has had more than %d URLs: use another partition", p.partition, i.Certificate.Subject, maxNames)
			}
		}
	}
	return nil
}

// name adds a point to those of an issuer.
func (i *issuer) name(p DistributionPoint) {
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

// scopes returns the CRLs that an issuer has to have, a delta right after its base.
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

// pointsOf returns the names of a scope's distribution point and of its deltas'.
func (i *issuer) pointsOf(s Scope) (names, deltas []string) {
	for _, p := range i.points {
		if p.partition == s.Partition {
			return p.names, p.deltas
		}
	}
	return nil, nil
}

// Scopes returns every CRL that the authority keeps current, in no order.
func (a *Authority) Scopes() []Scope {
	var all []Scope
	for _, i := range a.issuers {
		all = append(all, i.scopes()...)
	}
	for _, c := range a.elsewhere {
		all = append(all, Scope{Issuer: pki.IssuerOf(c)})
	}
	return all
}
