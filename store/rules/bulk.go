package rules

import (
	"time"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/revocation"
)

// Maximum numbers of open bulk revocations. Each open one makes every read of a status more expensive.
const (
	maxOpenBulk    = 16 // of bulk revocations that can match several identities
	maxOpenBulkAll = 48 // in total; the masks of members have 64 bits
)

// BulkChange returns the change that a bulk revocation makes to each of its members.
func BulkChange(o revocation.BulkRequest) revocation.Change {
	return revocation.Change{
		Action: o.Action, Reason: o.Reason, InvalidSince: o.InvalidSince, Actor: o.Actor, Comment: o.Comment, At: o.At,
	}
}

// BulkOf returns a bulk revocation that makes the change o to the certificates that by selects.
func BulkOf(o revocation.Change, by pki.Selection) revocation.BulkRequest {
	bulk := revocation.BulkRequest{
		Selection: by, Action: o.Action, Reason: o.Reason, InvalidSince: o.InvalidSince, Actor: o.Actor, Comment: o.Comment,
		At: o.At, Grace: o.Grace,
	}
	if o.Action == revocation.Hold {
		bulk.Reason = pki.CertificateHold
	}
	return bulk
}

// BulkStatus returns the status that a bulk revocation gives to a member that was not revoked. The version is zero.
func BulkStatus(o revocation.BulkRequest) pki.Status {
	before := pki.Status{State: pki.Good}
	if o.Action == revocation.Unhold {
		before.State = pki.Hold
	}
	s, _ := NextMember(before, BulkChange(o))
	s.Version = 0
	return s
}

// CheckOpenBulk refuses a bulk revocation if too many are open already.
func CheckOpenBulk(o revocation.BulkRequest, open int) error {
	limit := maxOpenBulk
	if o.OfOneIdentity() {
		limit = maxOpenBulkAll
	}
	if open < limit {
		return nil
	}
	return pki.Refuse(pki.RuleOverloaded, "retry after an earlier one has been applied",
		"%d bulk revocations are in progress", open)
}

// MarksKey reports whether a bulk revocation selects by a key and revokes for keyCompromise. Then it marks the key as
// compromised, even if no certificate on record has the key.
func MarksKey(o revocation.BulkRequest) bool { return o.Reason == pki.KeyCompromise && !o.Key.IsZero() }

// Spreads reports whether a bulk revocation may have members that its selection does not match. If it marks a key as
// compromised, the other certificates of the key are members too. All certificates of a key have the same identity and
// labels, so a selection by identity or label already matches all of them.
func Spreads(o revocation.BulkRequest) bool {
	return o.Reason == pki.KeyCompromise &&
		(!o.Issuer.IsZero() || o.Profile != "" || !o.IssuedFrom.IsZero() || !o.IssuedUntil.IsZero())
}

// NextMember returns the status that a bulk revocation, as [BulkChange] returns it, gives to a member, and reports
// whether it differs from s. A final status does not change.
func NextMember(s pki.Status, o revocation.Change) (pki.Status, bool) {
	next, changed, err := NextStatus(s, o)
	if err != nil || !changed {
		return s, false
	}
	return next, true
}

// OpenBulk holds the changes of the open bulk revocations, oldest first, as [BulkChange] returns them. Each is in effect
// for its members, although it may not be applied to their records yet.
type OpenBulk []revocation.Change

// Status returns the effective status of a certificate whose record has the status s. Bit i of members is set if the
// certificate is a member of open[i].
func (open OpenBulk) Status(s pki.Status, members uint64) pki.Status {
	for i := range open {
		if members>>i&1 == 1 {
			s, _ = NextMember(s, open[i])
		}
	}
	return s
}

// InvalidSince returns the effective invalidity date of a certificate whose record has the status s and the invalidity
// date since. Bit i of members is as for Status.
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

// Repeats reports whether two bulk revocations have the same action and reason, for the same identity or key.
func Repeats(a, b revocation.BulkRequest) bool {
	return a.Identity == b.Identity && a.Key == b.Key && a.Action == b.Action && a.Reason == b.Reason
}

// BulkTotal returns a bulk revocation with the counts of the certificates that were changed in the transaction that
// created it.
func BulkTotal(s revocation.BulkRevocation, changes []pki.StatusChange) revocation.BulkRevocation {
	var n revocation.Affected
	for _, c := range changes {
		n.Add(c.NotAfter, s.At)
	}
	s.Total, s.Expired, s.Counted, s.Applied = len(changes), n.Expired, true, len(changes)
	return s
}

// BulkStep returns a bulk revocation after a step that changed the given number of records. After the last step it is
// done, and its total is the number of changed records. This may be less than was counted before, because single
// certificates may have been revoked since.
func BulkStep(s revocation.BulkRevocation, changed int, last bool) revocation.BulkRevocation {
	s.Applied += changed
	if last {
		s.Total, s.Counted, s.Done = s.Applied, true, true
	}
	return s
}

// Link is a certificate of an identity with its key and, if it was renewed, the key of its renewal. K is the type by
// which the store engine identifies a key.
type Link[K comparable] struct {
	ID           int64
	Key          K
	Successor    K
	HasSuccessor bool
}

// Lineage returns the IDs of the first link and of all certificates renewed from it (see pki.Selection). The links must
// be the certificates of one identity in the order in which they were recorded. A renewal is recorded after its
// predecessor, so one pass finds them all.
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

// Candidate is a certificate of the identity that a bulk revocation selects.
type Candidate[K comparable] struct {
	Key K
	// Selected is true if the selection matches the certificate.
	Selected bool
}

// BulkMembers reports for each candidate whether it is a member of the bulk revocation o. A candidate is a member if it
// is selected, or if o revokes for keyCompromise and a selected certificate has the same key.
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
