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

// AddPoints records the distribution points of new certificates, before a certificate contains them. From then on, the
// Updater keeps the CRLs of these points current. It requests the CRLs of new points, which are signed within a second if
// Run is running. AddPoints refuses a point that cannot be served, and then records none.
func (u *Updater) AddPoints(ctx context.Context, wanted []Point) error {
	u.adding.Lock()
	defer u.adding.Unlock()
	added, next, err := u.planPoints(wanted)
	if err != nil || len(added) == 0 {
		return err
	}
	if err := u.store.PutPoints(ctx, added, u.now()); err != nil {
		return fmt.Errorf("record the distribution points of CRLs: %w", err)
	}
	if err := u.use(next); err != nil {
		return err
	}
	for id := range next {
		u.issuers[id].want()
	}
	return nil
}

// CheckPoints returns the error that AddPoints would return for points that cannot be served. It changes nothing.
func (u *Updater) CheckPoints(wanted []Point) error {
	u.adding.Lock()
	defer u.adding.Unlock()
	_, _, err := u.planPoints(wanted)
	return err
}

// planPoints returns those of the wanted points that are new, and the points of their issuers with them.
func (u *Updater) planPoints(wanted []Point) (added []Point, next map[pki.IssuerID][]points, err error) {
	for _, p := range wanted {
		if err := p.check(); err != nil {
			return nil, nil, err
		}
		if u.issuers[p.Issuer] == nil {
			return nil, nil, fmt.Errorf("the CRLs of %s are not signed here, and have no partitions", p.Issuer.Short())
		}
		if !u.issuers[p.Issuer].has(p) {
			added = append(added, p)
		}
	}
	next = u.with(added)
	for id, all := range next {
		for _, p := range all {
			if len(p.names) > maxNames || len(p.deltas) > maxNames {
				return nil, nil, fmt.Errorf("partition %d of %s has had more than %d URLs: use another partition",
					p.partition, u.issuers[id].Certificate.Subject, maxNames)
			}
		}
	}
	return added, next, nil
}

// readPoints adds to each issuer all points that were ever recorded for it.
func (u *Updater) readPoints(ctx context.Context) error {
	recorded, err := u.store.Points(ctx)
	if err != nil {
		return fmt.Errorf("read the distribution points of CRLs: %w", err)
	}
	return u.use(u.with(recorded))
}

// with returns the points of each issuer that has one of added, together with those.
func (u *Updater) with(added []Point) map[pki.IssuerID][]points {
	next := map[pki.IssuerID][]points{}
	for _, p := range added {
		i := u.issuers[p.Issuer]
		if i == nil { // the CA was removed
			continue
		}
		all, found := next[p.Issuer]
		if !found {
			all = slices.Clone(i.distribution())
		}
		next[p.Issuer] = addPoint(all, p)
	}
	return next
}

// use makes these the points of the issuers.
func (u *Updater) use(next map[pki.IssuerID][]points) error {
	for id, all := range next {
		i := u.issuers[id]
		i.mu.Lock()
		i.points.Store(&all)
		err := u.findRenamed(i)
		i.mu.Unlock()
		if err != nil {
			return err
		}
	}
	return nil
}

// addPoint returns points with p. It does not change the points in all.
func addPoint(all []points, p Point) []points {
	at, found := slices.BinarySearchFunc(all, p.Partition, func(q points, n uint16) int { return int(q.partition) - int(n) })
	if !found {
		all = slices.Insert(all, at, points{partition: p.Partition})
	}
	q := &all[at]
	if !slices.Contains(q.names, p.URL) {
		q.names = append(slices.Clip(q.names), p.URL)
	}
	if p.DeltaURL != "" && !slices.Contains(q.deltas, p.DeltaURL) {
		q.deltas = append(slices.Clip(q.deltas), p.DeltaURL)
	}
	return all
}

// distribution returns the points of an issuer, sorted by partition. The caller must not change them.
func (i *issuer) distribution() []points {
	if all := i.points.Load(); all != nil {
		return *all
	}
	return nil
}

// has reports whether the issuer has a point.
func (i *issuer) has(p Point) bool {
	return slices.ContainsFunc(i.distribution(), func(q points) bool {
		return q.partition == p.Partition && slices.Contains(q.names, p.URL) && (p.DeltaURL == "" || slices.Contains(q.deltas, p.DeltaURL))
	})
}

// scopes returns the scopes of all CRLs of an issuer. The scope of each delta follows that of its base.
func (i *issuer) scopes() []Scope {
	all := []Scope{{Issuer: i.id}}
	for _, p := range i.distribution() {
		all = append(all, Scope{Issuer: i.id, Partition: p.partition})
		if len(p.deltas) > 0 {
			all = append(all, Scope{Issuer: i.id, Partition: p.partition, Delta: true})
		}
	}
	return all
}

// pointsOf returns the URLs of a scope's distribution point, and the URLs of its delta CRL.
func (i *issuer) pointsOf(s Scope) (names, deltas []string) {
	for _, p := range i.distribution() {
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
