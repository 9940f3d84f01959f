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

// testLists draws random histories. It compares lists of certificates, and the counts of bulk revocations, with the
// records.
func testLists(t *testing.T, open func(t *testing.T) Store) {
	rapid.Check(t, func(r *rapid.T) {
		l := &lister{world: newWorld(t, open(t))}
		r.Cleanup(func() { l.close(t) })
		l.history(r)
		for range 8 {
			l.check(r)
		}
	})
}

// lister is a world with the identities and records of a history.
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
		id, err := l.RA.CreateIdentity(context.Background(), ra.Registration{Identity: id}, operator)
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
			l.changeOne(r, revocation.Revoke, rapid.SampledFrom([]pki.Reason{pki.Superseded, pki.KeyCompromise}).Draw(r, "reason"))
		case "hold":
			l.changeOne(r, revocation.Hold, pki.CertificateHold)
		case "abandon":
			record := l.record(r, l.identities[0].ID)
			l.commitBatch(r, l.writeIntent(r, record))
		case "bulk":
			l.createBulk(r)
		}
	}
}

func (l *lister) issueOne(r *rapid.T, before *ca.Record) {
	id := l.identities[rapid.IntRange(0, len(l.identities)-1).Draw(r, "identity")].ID
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

// changeOne changes one certificate, or tries to: the store may refuse.
func (l *lister) changeOne(r *rapid.T, action revocation.Action, reason pki.Reason) {
	if len(l.records) == 0 {
		return
	}
	ref := l.records[rapid.IntRange(0, len(l.records)-1).Draw(r, "which")].Ref
	_, _ = l.Statuses.Apply(context.Background(), revocation.Change{Action: action, Reason: reason, Certificate: ref, Actor: operator, At: l.now})
}

// createBulk creates a bulk revocation and does not apply it to the records. Without bulk revocations it does nothing.
func (l *lister) createBulk(r *rapid.T) {
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
	oneInFour := func(what string) bool { return rapid.IntRange(0, 3).Draw(r, what) == 0 }
	drawRecord := func(what string) ca.Record { return l.records[rapid.IntRange(0, len(l.records)-1).Draw(r, what)] }
	if oneInFour("by profile") {
		s.Profile = rapid.SampledFrom(listedProfiles).Draw(r, "profile")
	}
	if oneInFour("by label") {
		s.Label = pki.Label{Name: "site", Value: rapid.SampledFrom(listedSites).Draw(r, "label")}
	}
	if oneInFour("by identity") {
		s.Identity = l.identities[rapid.IntRange(0, len(l.identities)-1).Draw(r, "identity")].ID
	}
	if len(l.records) == 0 {
		return s
	}
	if oneInFour("by issuer") {
		s.Issuer = drawRecord("issuer of").Ref.Issuer
	}
	if oneInFour("by key") {
		s.Key = drawRecord("key of").KeyHash
	}
	if oneInFour("by lineage") {
		s.LineageOf = drawRecord("lineage of").Ref
	}
	if oneInFour("from") {
		s.IssuedFrom = drawRecord("issued from").IssuedAt
	}
	if oneInFour("until") {
		s.IssuedUntil = drawRecord("issued until").IssuedAt
	}
	return s
}

// check draws a filter. It compares the list with the records, and the count of a bulk revocation with the list.
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
	// CountBulk counts the certificates in the list that are good or on hold.
	revocable := ra.CertificateFilter{Selection: f.Selection, States: []pki.State{pki.Good, pki.Hold}}
	n, err := l.Counts.CountBulk(context.Background(), revocation.BulkRequest{Action: revoke, Selection: f.Selection, Reason: pki.Superseded, Actor: operator, At: l.now})
	must(r, err)
	mustEqual(r, fmt.Sprintf("the count of a bulk revocation of %+v", f.Selection), n.Valid+n.Expired, len(l.list(r, revocable, limit)))
	revocable.ExpiresFrom = l.now
	mustEqual(r, "the count of unexpired certificates", n.Valid, len(l.list(r, revocable, limit)))
}

// matches reports whether a filter matches a certificate. It reads the records only.
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

// ofLineage reports whether c is the certificate first, or was renewed from it.
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
