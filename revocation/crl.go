package revocation

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"time"

	"github.com/brevet-pki/brevet/pki"
)

const (
	// batch is how many CRLs share a transaction of their records; a base and its delta are in one.
	batch = 64
	// deltaShare is which part of a CRL's lifetime a delta has.
	deltaShare = 4
)

// signedBy is who records the CRLs that an Authority signs.
var signedBy = pki.ActorSystem("revocation")

// PublishNow signs and publishes all CRLs of every issuer anew. It tries all issuers, and returns what failed.
func (a *Authority) PublishNow(ctx context.Context) error {
	var failed []error
	for _, i := range a.issuers {
		failed = append(failed, a.publishNew(ctx, i, everything))
	}
	return errors.Join(failed...)
}

// cause is why a round is made.
type cause uint8

const (
	schedule   cause = iota // something is due
	change                  // somebody asked for it
	everything              // whatever is on record is not relied on
)

// publishNew makes a round of an issuer's CRLs, in the order that a crash at any point must find: the number is durably
// taken, then used for one signature of each scope, then the files are durable, then the records, then they are out.
func (a *Authority) publishNew(ctx context.Context, i *issuer, why cause) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	begun := time.Now()
	if i.unpublished {
		why = everything
	}
	fail := func(what string, number *big.Int, err error) error {
		return fmt.Errorf("revocation: %s CRL %v of %s: %w", what, number, i.Certificate.Subject, err)
	}
	// 1. A number that no CRL of this issuer has had, or will have again (RFC 5280 §5.2.3). All CRLs of a round have it: they
	// are issued at the same time, and say the same.
	number, err := a.records.TakeNumber(ctx, i.id)
	if err != nil {
		return fmt.Errorf("revocation: take a CRL number for %s: %w", i.Certificate.Subject, err)
	}
	// 2. What is revoked at one moment.
	sheets, position, err := a.draw(ctx, i, number, why)
	if err != nil {
		return fail("write", number, err)
	}
	for len(sheets) > 0 {
		n := min(batch, len(sheets))
		if n < len(sheets) && sheets[n].crl.Delta {
			n++ // a delta is on record with its base, or not at all
		}
		part := sheets[:n]
		sheets = sheets[n:]
		// 3. Signatures, and files that are flushed, with their names.
		crls := make([]CRL, len(part))
		for n, s := range part {
			if err := s.seal(i); err != nil {
				return fail("sign", number, err)
			}
			crls[n] = s.crl
		}
		if err := a.shelf.flush(crls); err != nil {
			return fail("write", number, err)
		}
		// 4. The records, which refuse a number below another process's.
		if err := a.records.PutCRLs(ctx, crls, signedBy, a.now()); err != nil {
			return fail("record", number, err)
		}
		i.unpublished = true
		for _, c := range crls {
			i.last[c.Scope()] = c
			if !c.Delta {
				delete(i.renamed, c.Partition)
			}
		}
		// 5. Out to the relying parties.
		if err := a.shelf.place(crls); err != nil {
			return fail("publish", number, err)
		}
		if err := a.publish(crls); err != nil {
			return fail("publish", number, err)
		}
	}
	i.looked, i.took, i.unpublished = position, time.Since(begun), false
	return nil
}

// publish hands out CRLs that lie on the shelf.
func (a *Authority) publish(crls []CRL) error {
	var failed []error
	for _, c := range crls {
		failed = append(failed, a.publisher.PublishCRL(c, a.shelf.path(c.Scope())))
	}
	for _, d := range a.directories {
		d.want(crls)
	}
	return errors.Join(failed...)
}

// draw writes everything of a round's CRLs but their signatures, as of one moment of the store.
func (a *Authority) draw(ctx context.Context, i *issuer, number *big.Int, why cause) (sheets []*sheet, position uint64, err error) {
	now, clock := a.now(), a.clock()
	err = a.records.View(ctx, i.id, func(view View) error {
		changed, err := view.Changed(i.looked)
		if err != nil {
			return fmt.Errorf("read what has changed: %w", err)
		}
		sheets, position = nil, view.Position()
		for _, scope := range i.plan(changed, why, a.lifetime, clock) {
			itself := Base{Number: number, ThisUpdate: now, Position: position}
			var before *sheet
			if len(sheets) > 0 {
				before = sheets[len(sheets)-1]
			}
			s, err := a.sheet(i, scope, itself, a.baseFor(i, scope, itself, before))
			if err != nil {
				return err
			}
			if err := a.shelf.prepare(scope); err != nil {
				return err
			}
			if err := s.draw(ctx, i, view); err != nil {
				return err
			}
			sheets = append(sheets, s)
		}
		return nil
	})
	return sheets, position, err
}

// plan says which CRLs a round is of: those that are due, the full one and those of partitions in which something has
// changed, and with a base always its delta.
func (i *issuer) plan(changed []uint16, why cause, lifetime time.Duration, now time.Time) []Scope {
	var planned []Scope
	base := false // whether the scope before is planned
	for _, s := range i.scopes() {
		wanted := why == everything || i.dueAt(s, lifetime, now).Compare(now) <= 0 || s.Delta && base
		if s.Partition == 0 {
			wanted = wanted || why == change || len(changed) > 0
		} else if !s.Delta {
			wanted = wanted || slices.Contains(changed, s.Partition)
			base = wanted
		}
		if wanted {
			planned = append(planned, s)
		}
	}
	return planned
}

// lifetimeOf is how long a CRL of a scope is valid.
func lifetimeOf(s Scope, lifetime time.Duration) time.Duration {
	if s.Delta {
		return lifetime / deltaShare
	}
	return lifetime
}

// dueAt is when a scope needs its next CRL at the latest: once the last has lived half of its life, or at once where it is
// from a time yet to come, which a clock that was set back leaves behind and relying parties refuse.
func (i *issuer) dueAt(s Scope, lifetime time.Duration, now time.Time) time.Time {
	last, found := i.last[s]
	if !found || last.ThisUpdate.After(now) {
		return time.Time{}
	}
	return last.NextUpdate.Add(-lifetimeOf(s, lifetime) / 2)
}

// sheet begins a CRL, which is itself what a later one may go on from. The issuer's mutex is held.
func (a *Authority) sheet(i *issuer, scope Scope, itself, base Base) (*sheet, error) {
	now := itself.ThisUpdate
	c := CRL{
		Issuer: i.id, Partition: scope.Partition, Delta: scope.Delta, Number: itself.Number, ThisUpdate: now, Position: itself.Position, Base: base,
		NextUpdate: now.Add(lifetimeOf(scope, a.lifetime)).Truncate(time.Second),
	}
	s := &sheet{path: a.shelf.pathOfNew(scope), listing: Listing{Partition: scope.Partition, NotExpiredAt: now}, crl: c}
	// What has expired since the last CRL is in this one once more: an entry stays until a CRL was issued beyond the
	// certificate's validity (RFC 5280 §3.3); and in deltas until it is in a base (§5.2.4).
	last := i.last[scope].ThisUpdate
	if scope.Delta {
		last, s.listing.Delta, s.listing.Since = base.ThisUpdate, true, base.Position
	}
	if !last.IsZero() && last.Before(now) {
		s.listing.NotExpiredAt = last
	}
	s.head = []byte{tagInteger, 1, 1} // version 2
	s.head = append(s.head, i.scheme.algorithm...)
	s.head = append(s.head, i.Certificate.RawSubject...)
	s.head = append(s.head, encodeTime(c.ThisUpdate)...)
	s.head = append(s.head, encodeTime(c.NextUpdate)...)
	names, deltas := i.pointsOf(scope)
	var err error
	s.extensions, err = encodeExtensions(&c, i.Certificate.SubjectKeyId, names, deltas)
	return s, err
}

// baseFor says where deltas begin. A partition's CRL that is issued on schedule becomes the base once the next one is
// issued on schedule: so a delta goes with every base on schedule that is not over, and with those that were issued since.
// Where the names of the distribution point have changed, all begins anew, for a delta has those of its base (RFC 5280
// §5.2.4). Before is what was drawn before in this round: for a delta its base, if that is in it.
func (a *Authority) baseFor(i *issuer, scope Scope, itself Base, before *sheet) Base {
	last, found := i.last[Scope{Issuer: i.id, Partition: scope.Partition}]
	delta, there := i.last[scope]
	switch {
	case scope.Partition == 0:
		return Base{}
	case !found || i.renamed[scope.Partition]:
		return itself
	case !scope.Delta && a.onSchedule(last, itself.ThisUpdate):
		return itself
	case !scope.Delta:
		return last.Base
	case there && (before == nil || before.crl.Partition != scope.Partition || before.crl.Base.Number != itself.Number):
		return delta.Base // its base stays as it is, or comes between two of the schedule
	default:
		return last.Base
	}
}

// onSchedule reports whether the next CRL of a partition is the one that its schedule asks for, and not one in between.
func (a *Authority) onSchedule(last CRL, now time.Time) bool {
	begun := last.Base.ThisUpdate
	return last.Base.Number == nil || begun.After(now) || !now.Before(begun.Add(a.lifetime/2))
}

// findRenamed notes which partitions have other names than their published CRLs say.
func (a *Authority) findRenamed(i *issuer) error {
	for _, p := range i.points {
		scope := Scope{Issuer: i.id, Partition: p.partition}
		s, err := a.sheet(i, scope, Base{Number: new(big.Int), ThisUpdate: a.now()}, Base{})
		if err != nil {
			return err
		}
		content, err := readElement(bytes.NewReader(s.extensions), 0, int64(len(s.extensions)), tagExtensions)
		if err != nil {
			return err
		}
		h, err := parseHead(s.extensions[content.begin:content.end])
		if err != nil {
			return err
		}
		i.renamed[p.partition] = !bytes.Equal(h.point, a.shelf.pointOf(scope))
	}
	return nil
}
