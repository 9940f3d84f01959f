package crl

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
	// batch is the number of CRLs that are recorded in one transaction. A base and its delta are in the same
	// transaction.
	batch = 64
	// deltaShare is the lifetime of a CRL divided by the lifetime of its deltas.
	deltaShare = 4
)

// signedBy is the actor in the log entries about CRLs that an Updater signed.
var signedBy = pki.ActorSystem("revocation")

// PublishNow signs and publishes new CRLs of every scope of every issuer. It tries all issuers, and returns the joined
// errors.
func (u *Updater) PublishNow(ctx context.Context) error {
	var failed []error
	for _, i := range u.issuers {
		failed = append(failed, u.publishNew(ctx, i, everything))
	}
	return errors.Join(failed...)
}

// cause is why a round of CRLs is signed. A round is a set of CRLs of one issuer that are signed together.
type cause uint8

const (
	schedule   cause = iota // at least one CRL is due
	change                  // a status has changed
	everything              // all CRLs are signed again, even if none is due
)

// publishNew signs and publishes one round of an issuer's CRLs. A restart can continue after a crash between any two
// steps: the number is durable before the signatures, the files before the records, and the records before the
// publication.
func (u *Updater) publishNew(ctx context.Context, i *issuer, reason cause) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	defer u.keepLease(ctx, i)()
	if i.unpublished {
		reason = everything
	}
	fail := func(what string, number *big.Int, err error) error {
		return fmt.Errorf("%s CRL %v of %s: %w", what, number, i.Certificate.Subject, err)
	}
	// 1. Take a number that no CRL of this issuer has ever had, and that is never taken again (RFC 5280 §5.2.3). All
	// CRLs of the round have the same number, because they have the same time and come from the same snapshot.
	number, err := u.store.TakeNumber(ctx, i.id, u.now())
	if err != nil {
		return fmt.Errorf("take a CRL number for %s: %w", i.Certificate.Subject, err)
	}
	started := time.Now() // an outage of the store ends before
	// 2. Write the CRLs without their signatures, from one snapshot.
	builders, position, err := u.writeAll(ctx, i, number, reason)
	if err != nil {
		return fail("write", number, err)
	}
	for len(builders) > 0 {
		n := min(batch, len(builders))
		if n < len(builders) && builders[n].crl.Delta {
			n++ // a delta is recorded in the same transaction as its base
		}
		part := builders[:n]
		builders = builders[n:]
		// 3. Sign, and sync the files and their names to disk.
		crls := make([]CRL, len(part))
		for n, b := range part {
			if err := b.sign(i); err != nil {
				return fail("sign", number, err)
			}
			crls[n] = b.crl
		}
		if err := u.published.flush(crls); err != nil {
			return fail("write", number, err)
		}
		if err := u.passOn(ctx, crls); err != nil {
			return fail("pass on", number, err)
		}
		// 4. Record the CRLs. The store refuses a number that is not higher than the recorded one.
		if err := u.store.PutCRLs(ctx, crls, signedBy, u.now()); err != nil {
			return fail("record", number, err)
		}
		i.unpublished = true
		for _, c := range crls {
			i.last[c.Scope()] = c
			if !c.Delta {
				delete(i.renamed, c.Partition)
			}
		}
		// 5. Publish the CRLs to relying parties.
		if err := u.published.install(crls); err != nil {
			return fail("publish", number, err)
		}
		if err := u.publish(crls); err != nil {
			return fail("publish", number, err)
		}
	}
	i.covered, i.took, i.unpublished = position, time.Since(started), false
	return nil
}

// publish passes CRLs in the published directory to the publisher, and queues them for the mirrors.
func (u *Updater) publish(crls []CRL) error {
	var failed []error
	for _, c := range crls {
		err := u.publisher.PublishCRL(c, u.published.path(c.Scope()))
		if err == nil {
			u.shown.add(c)
		}
		failed = append(failed, err)
	}
	for _, m := range u.mirrors {
		m.enqueue(crls)
	}
	return errors.Join(failed...)
}

// writeAll writes all CRLs of a round from one snapshot of the store, without their signatures.
func (u *Updater) writeAll(ctx context.Context, i *issuer, number *big.Int, reason cause) (builders []*builder, position uint64, err error) {
	now, clock := u.now(), u.clock()
	err = u.store.View(ctx, i.id, func(view View) error {
		changed, err := view.Changed(i.covered)
		if err != nil {
			return fmt.Errorf("read the changed partitions: %w", err)
		}
		builders, position = nil, view.Position()
		for _, scope := range i.plan(changed, reason, u.lifetime, clock) {
			itself := Base{Number: number, ThisUpdate: now, Position: position}
			var before *builder
			if len(builders) > 0 {
				before = builders[len(builders)-1]
			}
			b, err := u.begin(i, scope, itself, u.baseFor(i, scope, itself, before))
			if err != nil {
				return err
			}
			if err := u.published.makeParent(scope); err != nil {
				return err
			}
			if err := b.write(ctx, i, view); err != nil {
				return err
			}
			builders = append(builders, b)
		}
		return nil
	})
	return builders, position, err
}

// plan returns the scopes of the CRLs in a round. These are the CRLs that are due, those of partitions with changes or new
// URLs and, after any change, the full CRL. If a base is in the round, its delta follows it.
func (i *issuer) plan(changed []uint16, reason cause, lifetime time.Duration, now time.Time) []Scope {
	var planned []Scope
	base := false // whether the last base that the loop reached is in the round
	for _, s := range i.scopes() {
		wanted := reason == everything || i.dueAt(s, lifetime, now).Compare(now) <= 0 || s.Delta && base
		if s.Partition == 0 {
			wanted = wanted || reason == change || len(changed) > 0
		} else if !s.Delta {
			wanted = wanted || slices.Contains(changed, s.Partition) || i.renamed[s.Partition]
			base = wanted
		}
		if wanted {
			planned = append(planned, s)
		}
	}
	return planned
}

// lifetimeOf returns how long a CRL of a scope is valid.
func lifetimeOf(s Scope, lifetime time.Duration) time.Duration {
	if s.Delta {
		return lifetime / deltaShare
	}
	return lifetime
}

// dueAt returns when the next CRL of a scope must be signed: after half of the last one's lifetime. If the clock was
// set back, the last CRL may be from the future, which relying parties refuse. In that case dueAt returns the zero
// time.
func (i *issuer) dueAt(s Scope, lifetime time.Duration, now time.Time) time.Time {
	last, found := i.last[s]
	if !found || last.ThisUpdate.After(now) {
		return time.Time{}
	}
	return last.NextUpdate.Add(-lifetimeOf(s, lifetime) / 2)
}

// begin returns a builder for a CRL. itself is this CRL in its possible role as a base of later deltas. The caller
// holds the issuer's mutex.
func (u *Updater) begin(i *issuer, scope Scope, itself, base Base) (*builder, error) {
	now := itself.ThisUpdate
	c := CRL{
		Issuer: i.id, Partition: scope.Partition, Delta: scope.Delta, Number: itself.Number, ThisUpdate: now, Position: itself.Position, Base: base,
		NextUpdate: now.Add(lifetimeOf(scope, u.lifetime)).Truncate(time.Second),
	}
	b := &builder{path: u.published.temporaryPath(scope), listing: Listing{Partition: scope.Partition, NotExpiredAt: now}, crl: c}
	// A certificate that has expired since the last CRL must be listed once more. RFC 5280 §3.3: an entry stays until
	// it is in a CRL that was issued after the certificate's validity. §5.2.4: an entry stays in deltas until it is in
	// a base.
	last := i.last[scope].ThisUpdate
	if scope.Delta {
		last, b.listing.Delta, b.listing.Since = base.ThisUpdate, true, base.Position
	}
	if !last.IsZero() && last.Before(now) {
		b.listing.NotExpiredAt = last
	}
	b.head = []byte{tagInteger, 1, 1} // version 2
	b.head = append(b.head, i.scheme.algorithm...)
	b.head = append(b.head, i.Certificate.RawSubject...)
	b.head = append(b.head, encodeTime(c.ThisUpdate)...)
	b.head = append(b.head, encodeTime(c.NextUpdate)...)
	names, deltas := i.pointsOf(scope)
	var err error
	b.extensions, err = encodeExtensions(&c, i.Certificate.SubjectKeyId, names, deltas)
	return b, err
}

// baseFor returns the base for the deltas of a scope.
//
// When a partition's CRL is issued on schedule, the scheduled CRL before it becomes the base of deltas. A delta
// therefore works with every scheduled CRL that is still valid, and with those between them. A delta must have the same
// URLs as its base (RFC 5280 §5.2.4). If the URLs of the distribution point have changed, the new CRL therefore becomes
// its own base.
//
// before is the builder of the previous scope in the round, or nil. For a delta, it is the builder of the base, if the
// base is in the round.
func (u *Updater) baseFor(i *issuer, scope Scope, itself Base, before *builder) Base {
	last, found := i.last[Scope{Issuer: i.id, Partition: scope.Partition}]
	delta, there := i.last[scope]
	switch {
	case scope.Partition == 0:
		return Base{}
	case !found || i.renamed[scope.Partition]:
		return itself
	case !scope.Delta && u.onSchedule(last, itself.ThisUpdate):
		return itself
	case !scope.Delta:
		return last.Base
	case there && (before == nil || before.crl.Partition != scope.Partition || before.crl.Base.Number != itself.Number):
		return delta.Base // the base was not signed in this round, or keeps its own base
	default:
		return last.Base
	}
}

// onSchedule reports whether the next CRL of a partition is a scheduled one. CRLs that are signed after a change are
// additional ones.
func (u *Updater) onSchedule(last CRL, now time.Time) bool {
	started := last.Base.ThisUpdate
	return last.Base.Number == nil || started.After(now) || !now.Before(started.Add(u.lifetime/2))
}

// findRenamed finds the partitions whose distribution point has other URLs than in their published CRLs. The caller holds
// the issuer's mutex.
func (u *Updater) findRenamed(i *issuer) error {
	for _, p := range i.distribution() {
		scope := Scope{Issuer: i.id, Partition: p.partition}
		b, err := u.begin(i, scope, Base{Number: new(big.Int), ThisUpdate: u.now()}, Base{})
		if err != nil {
			return err
		}
		content, err := readElement(bytes.NewReader(b.extensions), 0, int64(len(b.extensions)), tagExtensions)
		if err != nil {
			return err
		}
		m, err := parseExtensions(b.extensions[content.begin:content.end])
		if err != nil {
			return err
		}
		i.renamed[p.partition] = !bytes.Equal(m.point, u.published.pointOf(scope))
	}
	return nil
}
