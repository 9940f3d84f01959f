package storetest

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra"
	"github.com/brevet-pki/brevet/revocation"
)

// testLists draws histories, and checks lists of certificates and dry runs of bulk revocations against the records.
func testLists(t *testing.T, open func(t *testing.T) Store) {
	rapid.Check(t, func(r *rapid.T) {
		l := &lister{world: newWorld(t, open(t))}
		l.history(r)
		for range 8 {
			l.check(r)
		}
	})
}

// lister is a world whose certificates are listed.
type lister struct {
	*world
	identities []ra.Identity
	records    []ca.Record
	labels     map[pki.SPIFFEID]map[string]string
}

var (
	listedSites    = []string{"north", "south"}
	listedProfiles = []string{"device", "server"}
)

// history registers identities, and issues, renews, revokes and holds their certificates.
func (l *lister) history(r *rapid.T) {
	l.labels = map[pki.SPIFFEID]map[string]string{}
	for range 3 {
		id := l.newIdentity(r)
		id.Labels = map[string]string{"site": rapid.SampledFrom(listedSites).Draw(r, "site")}
		id, err := l.RA.CreateIdentity(context.Background(), id, operator)
		must(r, err)
		l.identities, l.labels[id.ID] = append(l.identities, id), id.Labels
	}
	for range rapid.IntRange(1, 12).Draw(r, "steps") {
		l.now = l.now.Add(time.Duration(rapid.IntRange(0, 2).Draw(r, "milliseconds")) * time.Millisecond)
		if rapid.Bool().Draw(r, "minutes pass") {
			l.now = l.now.Add(25 * time.Minute)
		}
		switch rapid.SampledFrom([]string{"issue", "issue", "renew", "revoke", "hold", "abandon", "bulk"}).Draw(r, "step") {
		case "issue":
			l.issueOne(r, nil)
		case "renew":
			if len(l.records) > 0 {
				l.issueOne(r, &l.records[rapid.IntRange(0, len(l.records)-1).Draw(r, "which")])
			}
		case "revoke":
			l.order(r, revocation.Revoke, rapid.SampledFrom([]pki.Reason{pki.Superseded, pki.KeyCompromise}).Draw(r, "reason"))
		case "hold":
			l.order(r, revocation.Hold, pki.CertificateHold)
		case "abandon":
			record := l.record(r, l.identities[0].ID)
			l.commitBatch(r, l.writeIntent(r, record))
		case "bulk":
			l.openBulk(r)
		}
	}
}

func (l *lister) issueOne(r *rapid.T, before *ca.Record) {
	id := l.identities[rapid.IntRange(0, len(l.identities)-1).Draw(r, "whose")].ID
	if before != nil {
		id = before.Identity
	}
	next := l.record(r, id)
	next.Profile = rapid.SampledFrom(listedProfiles).Draw(r, "profile")
	next.Ref.Issuer = rapid.SampledFrom([]pki.IssuerID{issuerA, issuerB}).Draw(r, "issuer")
	if before != nil {
		next.Guard.Predecessor = before.Ref
		if rapid.Bool().Draw(r, "with the same key") {
			next.KeyHash, next.Guard.Key = before.KeyHash, before.KeyHash
		}
	}
	if l.commitBatch(r, l.writeIntent(r, next), next)[0] == nil {
		l.records = append(l.records, next)
	}
}

// order changes one certificate; a refusal changes nothing.
func (l *lister) order(r *rapid.T, action revocation.Action, reason pki.Reason) {
	if len(l.records) == 0 {
		return
	}
	ref := l.records[rapid.IntRange(0, len(l.records)-1).Draw(r, "which")].Ref
	_, _ = l.Orders.Apply(context.Background(), revocation.Change{Action: action, Reason: reason, Certificate: ref, Actor: operator, At: l.now})
}

// openBulk leaves a bulk revocation whose records have not changed yet, if the store has them.
func (l *lister) openBulk(r *rapid.T) {
	if l.Revocation == nil {
		return
	}
	_, _, err := l.Revocation.CreateBulk(context.Background(), revocation.BulkRequest{
		Action: revoke, Selection: pki.Selection{Label: pki.Label{Name: "site", Value: rapid.SampledFrom(listedSites).Draw(r, "bulk")}},
		Reason: pki.Superseded, Actor: operator, At: l.now,
	})
	must(r, err)
}

func (l *lister) selection(r *rapid.T) pki.Selection {
	var s pki.Selection
	some := func(what string) bool { return rapid.IntRange(0, 3).Draw(r, what) == 0 }
	which := func(what string) ca.Record { return l.records[rapid.IntRange(0, len(l.records)-1).Draw(r, what)] }
	if some("by profile") {
		s.Profile = rapid.SampledFrom(listedProfiles).Draw(r, "profile")
	}
	if some("by label") {
		s.Label = pki.Label{Name: "site", Value: rapid.SampledFrom(listedSites).Draw(r, "label")}
	}
	if some("by identity") {
		s.Identity = l.identities[rapid.IntRange(0, len(l.identities)-1).Draw(r, "identity")].ID
	}
	if len(l.records) == 0 {
		return s
	}
	if some("by issuer") {
		s.Issuer = which("issuer of").Ref.Issuer
	}
	if some("by key") {
		s.Key = which("key of").KeyHash
	}
	if some("by lineage") {
		s.LineageOf = which("lineage of").Ref
	}
	if some("from") {
		s.IssuedFrom = which("issued from").IssuedAt
	}
	if some("until") {
		s.IssuedUntil = which("issued until").IssuedAt
	}
	return s
}

// check draws a filter, and compares the list with the records and the dry run with the list.
func (l *lister) check(r *rapid.T) {
	f := ra.CertificateFilter{Selection: l.selection(r)}
	limit := rapid.IntRange(1, 5).Draw(r, "limit")
	switch rapid.IntRange(0, 5).Draw(r, "filter") {
	case 0:
		f.States = []pki.State{rapid.SampledFrom([]pki.State{pki.Good, pki.Hold, pki.Revoked}).Draw(r, "state")}
	case 1:
		f.ExpiresFrom = l.now
	case 2:
		f.ExpiresUntil = l.now
	case 3:
		f.WithoutSuccessor = true
	case 4:
		f.NotRenewedSince = l.now.Add(-30 * time.Minute)
	}
	all := l.list(r, ra.CertificateFilter{}, 100)
	want := slices.DeleteFunc(slices.Clone(all), func(c ra.Certificate) bool { return !l.matches(f, all, &c) })
	mustEqual(r, fmt.Sprintf("the list of %+v", f), l.list(r, f, limit), want)
	if f.IsZero() {
		return
	}
	// A dry run counts what the list holds that is good or on hold.
	revocable := ra.CertificateFilter{Selection: f.Selection, States: []pki.State{pki.Good, pki.Hold}}
	n, err := l.Counts.CountBulk(context.Background(), revocation.BulkRequest{Action: revoke, Selection: f.Selection, Reason: pki.Superseded, Actor: operator, At: l.now})
	must(r, err)
	mustEqual(r, fmt.Sprintf("the number that a dry run of %+v counts", f.Selection), n.Valid+n.Expired, len(l.list(r, revocable, limit)))
	revocable.ExpiresFrom = l.now
	mustEqual(r, "the number of those that have not ended", n.Valid, len(l.list(r, revocable, limit)))
}

// matches reports whether a filter matches a certificate, by the records alone.
func (l *lister) matches(f ra.CertificateFilter, all []ra.Certificate, c *ra.Certificate) bool {
	s := f.Selection
	if !s.IsZero() && !c.Delivered {
		return false
	}
	renewedSince := slices.ContainsFunc(all, func(o ra.Certificate) bool {
		return o.Delivered && o.Identity == c.Identity && !o.IssuedAt.Before(f.NotRenewedSince)
	})
	return (s.Issuer.IsZero() || c.Ref.Issuer == s.Issuer) && (s.Identity.IsZero() || c.Identity == s.Identity) &&
		(s.Key.IsZero() || c.KeyHash == s.Key) && (s.Profile == "" || c.Profile == s.Profile) &&
		(s.Label.IsZero() || l.labels[c.Identity][s.Label.Name] == s.Label.Value) &&
		(s.IssuedFrom.IsZero() || !c.IssuedAt.Before(s.IssuedFrom)) && (s.IssuedUntil.IsZero() || c.IssuedAt.Before(s.IssuedUntil)) &&
		(s.LineageOf.IsZero() || l.ofLineage(s.LineageOf, all, c)) &&
		(len(f.States) == 0 || slices.Contains(f.States, c.Status.State)) &&
		(f.ExpiresFrom.IsZero() || !c.NotAfter.Before(f.ExpiresFrom)) && (f.ExpiresUntil.IsZero() || c.NotAfter.Before(f.ExpiresUntil)) &&
		(!f.WithoutSuccessor || c.Delivered && c.Successor.IsZero()) && (f.NotRenewedSince.IsZero() || c.Delivered && !renewedSince)
}

// ofLineage walks from the first certificate on through those that were recorded after it.
func (l *lister) ofLineage(first pki.CertRef, all []ra.Certificate, c *ra.Certificate) bool {
	keys := map[pki.KeyHash]bool{}
	var identity pki.SPIFFEID
	for _, record := range l.records {
		i := slices.IndexFunc(all, func(o ra.Certificate) bool { return o.Ref == record.Ref })
		is := record.Ref == first || keys[record.KeyHash] && record.Identity == identity
		if record.Ref == first {
			identity = record.Identity
		}
		if is && !all[i].Successor.IsZero() {
			keys[all[i].Successor] = true
		}
		if record.Ref == c.Ref {
			return is
		}
	}
	return false
}
