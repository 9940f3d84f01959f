package rules

import (
	"time"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/revocation"
)

// Bounds on the open bulk revocations, since each makes every read of a status more expensive.
const (
	maxOpenBulk    = 16 // of several identities
	maxOpenBulkAll = 48 // in all: a mask has 64 bits
)

// BulkOrder returns what a bulk revocation does to each of its members.
func BulkOrder(o revocation.BulkRequest) revocation.Change {
	return revocation.Change{
		Action: o.Action, Reason: o.Reason, InvalidSince: o.InvalidSince, Actor: o.Actor, Comment: o.Comment, At: o.At,
	}
}

// BulkOf returns an order about an identity or a key as a bulk revocation of a selection.
func BulkOf(o revocation.Change, by pki.Selection) revocation.BulkRequest {
	bulk := revocation.BulkRequest{
		Selection: by, Action: o.Action, Reason: o.Reason, InvalidSince: o.InvalidSince, Actor: o.Actor, Comment: o.Comment,
		At: o.At,
	}
	if o.Action == revocation.Hold {
		bulk.Reason = pki.CertificateHold
	}
	return bulk
}

// BulkStatus returns the status that a bulk revocation gives to a member that was not revoked, without its version.
func BulkStatus(o revocation.BulkRequest) pki.Status {
	before := pki.Status{State: pki.Good}
	if o.Action == revocation.Unhold {
		before.State = pki.Hold
	}
	s, _ := NextMember(before, BulkOrder(o))
	s.Version = 0
	return s
}

// CheckOpenBulk refuses one more bulk revocation beside so many open ones.
func CheckOpenBulk(o revocation.BulkRequest, open int) error {
	limit := maxOpenBulk
	if o.OfOneIdentity() {
		limit = maxOpenBulkAll
	}
	if open < limit {
		return nil
	}
	return pki.Refuse(pki.RuleOverloaded, "wait until the records of an earlier one have followed",
		"%d sets of certificates are being changed", open)
}

// MarksKey reports whether a bulk revocation selects by a key and marks it as compromised, which it does even if the
// key has no certificate.
func MarksKey(o revocation.BulkRequest) bool { return o.Reason == pki.KeyCompromise && !o.Key.IsZero() }

// Spreads reports whether a bulk revocation may have members that its selection does not match: other certificates of a
// key that it marks as compromised. All certificates of a key belong to one identity, and share its labels.
func Spreads(o revocation.BulkRequest) bool {
	return o.Reason == pki.KeyCompromise &&
		(!o.Issuer.IsZero() || o.Profile != "" || !o.IssuedFrom.IsZero() || !o.IssuedUntil.IsZero())
}

// NextMember returns the status that a bulk revocation, as [BulkOrder] returns it, gives to a member, and reports
// whether it differs from before. What is final stays.
func NextMember(s pki.Status, o revocation.Change) (pki.Status, bool) {
	next, changed, err := NextStatus(s, o)
	if err != nil || !changed {
		return s, false
	}
	return next, true
}

// OpenBulk is the open bulk revocations as [BulkOrder] returns them, the oldest first. Each is in effect for its
// members although their own records do not say so yet.
type OpenBulk []revocation.Change

// Status returns the effective status of a certificate. Bit i of members says whether it is a member of the i-th.
func (open OpenBulk) Status(s pki.Status, members uint64) pki.Status {
	for i := range open {
		if members>>i&1 == 1 {
			s, _ = NextMember(s, open[i])
		}
	}
	return s
}

// InvalidSince returns the invalidity date that goes with the effective status of a certificate.
func (open OpenBulk) InvalidSince(s pki.Status, members uint64, since time.Time) time.Time {
	for i := range open {
		if members>>i&1 == 0 {
			continue
		}
		var changed bool
		if s, changed = NextMember(s, open[i]); changed && !open[i].InvalidSince.IsZero() {
			since = open[i].InvalidSince
		}
	}
	return since
}

// Repeats reports whether two bulk revocations do the same to the same identity or key.
func Repeats(a, b revocation.BulkRequest) bool {
	return a.Identity == b.Identity && a.Key == b.Key && a.Action == b.Action && a.Reason == b.Reason
}

// BulkTotal counts the certificates that a bulk revocation has changed in the transaction of its order.
func BulkTotal(s revocation.BulkRevocation, changes []pki.StatusChange) revocation.BulkRevocation {
	var n revocation.Affected
	for _, c := range changes {
		n.Add(c.NotAfter, s.At)
	}
	s.Total, s.Expired, s.Counted, s.Applied = len(changes), n.Expired, true, len(changes)
	return s
}

// BulkStep returns a bulk revocation after a step that changed so many records. After the last one it is done, and its
// total is how many have changed: some may have been revoked alone since they were counted.
func BulkStep(s revocation.BulkRevocation, changed int, last bool) revocation.BulkRevocation {
	s.Applied += changed
	if last {
		s.Total, s.Counted, s.Done = s.Applied, true, true
	}
	return s
}

// Link is a certificate of an identity with its key and, if it was renewed, the key of its renewal. K is the engine's
// name for a key.
type Link[K comparable] struct {
	ID           int64
	Key          K
	Successor    K
	HasSuccessor bool
}

// Lineage returns the certificates that were renewed from the first link, itself included (pki.Selection). The
// links are all certificates of the identity from that one on, in the order of their recording. Each renewal comes
// after its predecessor, so one pass finds them.
func Lineage[K comparable](links []Link[K]) map[int64]bool {
	line, keys := map[int64]bool{}, map[K]bool{}
	for i, l := range links {
		if i > 0 && !keys[l.Key] {
			continue
		}
		line[l.ID] = true
		if l.HasSuccessor {
			keys[l.Successor] = true
		}
	}
	return line
}

// Candidate is a certificate of the identity that a bulk revocation is about.
type Candidate[K comparable] struct {
	Key K
	// Selected reports whether the selection matches it.
	Selected bool
}

// BulkMembers reports for each candidate whether it is a member: it is selected, or the order marks keys as compromised
// and one of the selected certificates has its key.
func BulkMembers[K comparable](o revocation.BulkRequest, all []Candidate[K]) []bool {
	keys := map[K]bool{}
	for _, c := range all {
		if c.Selected {
			keys[c.Key] = true
		}
	}
	members := make([]bool, len(all))
	for i, c := range all {
		members[i] = c.Selected || o.Reason == pki.KeyCompromise && keys[c.Key]
	}
	return members
}
