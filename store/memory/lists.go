package memory

import (
	"bytes"
	"cmp"
	"context"
	"slices"
	"strings"
	"time"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra"
	"github.com/brevet-pki/brevet/revocation"
	"github.com/brevet-pki/brevet/store/rules"
)

// pageOf returns the first limit records that match. The second result is the position of the last record that it read, and
// zero if no records are left.
func pageOf[R, P any](all []R, limit int, place func(R) P, matches func(R) bool) (page []R, next P) {
	for i, r := range all {
		if len(page) == limit || i == ra.MaxLooked {
			return page, place(all[i-1])
		}
		if matches(r) {
			page = append(page, r)
		}
	}
	return page, next
}

// in reports whether values is empty or contains v.
func in[V comparable](values []V, v V) bool { return len(values) == 0 || slices.Contains(values, v) }

// within reports whether t is in the window from (inclusive) to until (exclusive). A zero time is no limit.
func within(t, from, until time.Time) bool {
	return (from.IsZero() || !t.Before(from)) && (until.IsZero() || t.Before(until))
}

func hasLabel(id ra.Identity, l pki.Label) bool {
	value, has := id.Labels[l.Name]
	return l.IsZero() || has && value == l.Value
}

// renewedSince reports whether the identity has a certificate that was issued at the time since or later.
func (s *state) renewedSince(id pki.SPIFFEID, since time.Time) bool {
	return slices.ContainsFunc(s.certs, func(c cert) bool { return c.Delivered && c.Identity == id && !c.IssuedAt.Before(since) })
}

// Identities implements ra.IdentityStore.
func (st *Store) Identities(
	ctx context.Context, f ra.IdentityFilter, at time.Time, after pki.SPIFFEID, limit int,
) (page []ra.Identity, next pki.SPIFFEID, err error) {
	if err := rules.CheckLimit(limit); err != nil {
		return nil, next, err
	}
	err = st.read(ctx, func(s *state) error {
		var all []ra.Identity
		for _, id := range s.identities {
			if id.ID.String() > after.String() {
				all = append(all, id.Identity)
			}
		}
		slices.SortFunc(all, func(a, b ra.Identity) int { return strings.Compare(a.ID.String(), b.ID.String()) })
		page, next = pageOf(all, limit, func(id ra.Identity) pki.SPIFFEID { return id.ID }, func(id ra.Identity) bool {
			return in(f.Kinds, id.Kind) && in(f.States, id.State) && (f.Profile == "" || id.Profile == f.Profile) && hasLabel(id, f.Label) &&
				(!f.WithoutUnexpired || s.unexpired(id.ID, at, 1, func(*cert) bool { return true }) == 0) &&
				(f.NotRenewedSince.IsZero() || !s.renewedSince(id.ID, f.NotRenewedSince))
		})
		return nil
	})
	return page, next, err
}

// Tokens implements ra.TokenInventory.
func (st *Store) Tokens(
	ctx context.Context, f ra.TokenFilter, at time.Time, after ra.TokenPosition, limit int,
) (page []ra.ListedToken, next ra.TokenPosition, err error) {
	if err := rules.CheckLimit(limit); err != nil {
		return nil, next, err
	}
	err = st.read(ctx, func(s *state) error {
		var all []ra.ListedToken
		for i := range s.tokens {
			t := &s.tokens[i]
			if after.IsZero() || compareTokens(ra.PositionOf(t), after) < 0 {
				state := rules.TokenState(t, s.identities[t.Identity].Revision, at)
				all = append(all, ra.ListedToken{Token: *t, State: state})
			}
		}
		slices.SortFunc(all, func(a, b ra.ListedToken) int { return compareTokens(ra.PositionOf(&b.Token), ra.PositionOf(&a.Token)) })
		page, next = pageOf(all, limit, func(t ra.ListedToken) ra.TokenPosition { return ra.PositionOf(&t.Token) }, func(t ra.ListedToken) bool {
			return in(f.States, t.State) && (f.Identity.IsZero() || t.Identity == f.Identity) && within(t.CreatedAt, f.CreatedFrom, f.CreatedUntil) &&
				(f.CreatedBy.IsZero() || t.CreatedBy.Caller().Identity == f.CreatedBy)
		})
		for i := range page {
			page[i].Token = named(page[i].Token)
		}
		return nil
	})
	return page, next, err
}

func compareTokens(a, b ra.TokenPosition) int {
	return cmp.Or(a.CreatedAt.Compare(b.CreatedAt), bytes.Compare(a.ID.Bytes(), b.ID.Bytes()))
}

// Certificates implements ra.CertificateStore.
func (st *Store) Certificates(
	ctx context.Context, f ra.CertificateFilter, after ra.CertificatePosition, limit int,
) (page []ra.Certificate, next ra.CertificatePosition, err error) {
	if err := rules.CheckLimit(limit); err != nil {
		return nil, next, err
	}
	err = st.read(ctx, func(s *state) error {
		selects, err := s.selector(f.Selection)
		if err != nil {
			return err
		}
		var all []ra.Certificate
		for i := range s.certs {
			if c := s.certs[i].Certificate; after.IsZero() || comparePositions(c.Position(), after) < 0 {
				all = append(all, c)
			}
		}
		slices.SortFunc(all, func(a, b ra.Certificate) int { return comparePositions(b.Position(), a.Position()) })
		page, next = pageOf(all, limit, func(c ra.Certificate) ra.CertificatePosition { return c.Position() }, func(c ra.Certificate) bool {
			return selects(&c) && in(f.States, c.Status.State) && within(c.NotAfter, f.ExpiresFrom, f.ExpiresUntil) &&
				(!f.WithoutSuccessor || c.Delivered && c.Successor.IsZero()) &&
				(f.NotRenewedSince.IsZero() || c.Delivered && !s.renewedSince(c.Identity, f.NotRenewedSince))
		})
		return nil
	})
	return page, next, err
}

func comparePositions(a, b ra.CertificatePosition) int {
	return cmp.Or(a.IssuedAt.Compare(b.IssuedAt), bytes.Compare(a.Serial.Bytes(), b.Serial.Bytes()))
}

// selector returns a function that reports whether sel matches a certificate. It refuses a selection that names a record
// that does not exist.
func (s *state) selector(sel pki.Selection) (func(c *ra.Certificate) bool, error) {
	if _, known := s.identities[sel.Identity]; !known && !sel.Identity.IsZero() {
		return nil, rules.NoIdentity(sel.Identity)
	}
	if !sel.Issuer.IsZero() && !slices.ContainsFunc(s.certs, func(c cert) bool { return c.Ref.Issuer == sel.Issuer }) {
		return nil, rules.NoIssuer(sel.Issuer)
	}
	if _, known := s.keys[sel.Key]; !known && !sel.Key.IsZero() {
		return nil, rules.NoKey(sel.Key)
	}
	line, err := s.lineage(sel.LineageOf)
	if err != nil {
		return nil, err
	}
	return func(c *ra.Certificate) bool {
		if !c.Delivered {
			return sel.IsZero()
		}
		return (sel.Issuer.IsZero() || c.Ref.Issuer == sel.Issuer) && (sel.Identity.IsZero() || c.Identity == sel.Identity) &&
			(sel.LineageOf.IsZero() || line[c.Ref.Serial]) && (sel.Key.IsZero() || c.KeyHash == sel.Key) &&
			(sel.Profile == "" || c.Profile == sel.Profile) && hasLabel(s.identities[c.Identity].Identity, sel.Label) &&
			within(c.IssuedAt, sel.IssuedFrom, sel.IssuedUntil)
	}, nil
}

// lineage returns the serial numbers of a certificate and of those renewed from it. For the zero value it returns nil.
func (s *state) lineage(of pki.CertRef) (map[pki.Serial]bool, error) {
	if of.IsZero() {
		return map[pki.Serial]bool{}, nil
	}
	first := s.certificate(of)
	if first == nil {
		return nil, rules.NoCertificate(of.Serial)
	}
	if !first.Delivered {
		return nil, rules.NeverDelivered(of.Serial)
	}
	var links []rules.Link[pki.KeyHash]
	for i := s.serials[of.Serial]; i < len(s.certs); i++ {
		if c := &s.certs[i]; c.Delivered && c.Identity == first.Identity {
			links = append(links, rules.Link[pki.KeyHash]{ID: int64(i), Key: c.KeyHash, Successor: c.Successor, HasSuccessor: !c.Successor.IsZero()})
		}
	}
	line := map[pki.Serial]bool{}
	for i := range rules.Lineage(links) {
		line[s.certs[i].Ref.Serial] = true
	}
	return line, nil
}

// CountBulk counts the certificates that a bulk revocation would change, as revocation.BulkCreator does. It reaches all
// certificates on record.
func (st *Store) CountBulk(ctx context.Context, o revocation.BulkRequest) (revocation.Affected, error) {
	var n revocation.Affected
	err := st.read(ctx, func(s *state) error {
		selects, err := s.selector(o.Selection)
		if err != nil {
			return err
		}
		candidates := make([]rules.Candidate[pki.KeyHash], len(s.certs))
		for i := range s.certs {
			c := &s.certs[i].Certificate
			candidates[i] = rules.Candidate[pki.KeyHash]{Key: c.KeyHash, Selected: c.Delivered && selects(c)}
		}
		for i, is := range rules.BulkMembers(o, candidates) {
			c := &s.certs[i]
			if _, changed := rules.NextMember(c.Status, rules.BulkChange(o)); is && c.Delivered && changed {
				n.Add(c.NotAfter, o.At)
			}
		}
		return nil
	})
	return n, err
}
