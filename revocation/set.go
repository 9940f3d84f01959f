package revocation

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/brevet-pki/brevet/pki"
)

// Selection says which certificates a SetOrder is about: those for which every field that is set holds. At least one is
// set. Certificates that were never released have neither identity nor profile, are revoked already, and are selected by
// none.
type Selection struct {
	// Issuer is the CA that issued it: all of one issuing CA where nothing else is set.
	Issuer pki.IssuerID
	// Identity is whose it is.
	Identity pki.SPIFFEID
	// LineageOf is the certificate that it was renewed from, over any number of renewals, or itself. What the store knows
	// of a renewal is its key: a certificate is of the lineage if it is the first one, or if it is the identity's, has the
	// key that one of the lineage was renewed with, and was recorded after that one. So where renewals keep their key,
	// all later certificates of that key are of the lineage: whoever holds one of them can use the others.
	LineageOf pki.CertRef
	// Key is its public key.
	Key pki.KeyHash
	// Profile is what it was issued under.
	Profile string
	// Label is one that its identity has.
	Label Label
	// IssuedFrom and IssuedUntil bound the time of its issue, to the millisecond, the first included and the second not.
	// That time is the one that its serial number begins with; notBefore lies before it, by what the profile backdates.
	IssuedFrom, IssuedUntil time.Time
}

// Label is a label of identities: a name with its value. The zero value is none.
type Label struct{ Name, Value string }

// IsZero reports whether l is no label.
func (l Label) IsZero() bool { return l == Label{} }

// IsZero reports whether nothing is selected by.
func (s Selection) IsZero() bool {
	return s.Issuer.IsZero() && !s.OfOneIdentity() && s.Profile == "" && s.Label.IsZero() && s.IssuedFrom.IsZero() && s.IssuedUntil.IsZero()
}

// OfOneIdentity reports whether all that is selected belongs to one identity at most. There are few of those, and one
// transaction changes them all.
func (s Selection) OfOneIdentity() bool {
	return !s.Identity.IsZero() || !s.LineageOf.IsZero() || !s.Key.IsZero()
}

// BulkRequest changes all certificates of a selection that are on record when it is given and within its reach, as
// StatusRecords has it. What is issued afterwards is not changed: to keep the holders from getting more, suspend or retire
// the identities.
//
// What is on hold is revoked; what is revoked already stays as it is, unless the order's reason is keyCompromise. With that
// reason, the members' keys are marked, and every other certificate of one of them is a member too; a key that is selected
// by is marked whether it has members or not, for it has leaked all the same.
type BulkRequest struct {
	Selection
	// Action is Revoke for RevokeSet, which sets it. An Order about many certificates of one identity has its own.
	Action Action
	// Reason is any but certificateHold.
	Reason pki.Reason
	// InvalidSince, By, Why and At are as in Order.
	InvalidSince time.Time
	Actor        pki.Actor
	Comment      string
	At           time.Time
}

// BulkRevocation is a SetOrder that was given, and how far it has come. It is in effect for all its members from its record on.
type BulkRevocation struct {
	ID int64
	BulkRequest
	// Total is how many certificates it changes, zero until Counted. Expired are those of them that had ended when it was given.
	Total, Expired int
	Counted        bool
	// Applied is how many of their own records say so by now, and so the next CRL.
	Applied int
	// Done says that all do.
	Done bool
}

// BulkStore keeps orders about sets of certificates. An order is one durable row, with one log entry; the records of its
// members follow in steps. From the row on, whatever is asked of the records takes every member for revoked: the version
// of its status is the one that its own record will have.
type BulkStore interface {
	BulkCreator
	BulkSteps
}

// BulkState says how far a bulk revocation has come. It is in effect in every state.
type BulkState uint8

// A bulk revocation is selecting until its certificates are counted, and applying until every record has its status.
const (
	BulkSelecting BulkState = iota + 1
	BulkApplying
	BulkDone
)

// State returns how far the bulk revocation has come.
func (b *BulkRevocation) State() BulkState {
	switch {
	case b.Done:
		return BulkDone
	case b.Counted:
		return BulkApplying
	default:
		return BulkSelecting
	}
}

// BulkCreator gives orders about sets.
type BulkCreator interface {
	// CountBulk counts the certificates that an order would change, and changes nothing.
	CountBulk(ctx context.Context, o BulkRequest) (Affected, error)
	// CreateBulk makes an order durable. Where it is of one identity that has few certificates, all records are changed in
	// the same transaction: the set is done, and the statuses of all that it selects are returned as they stand. What a
	// selection names has to be on record. Beside more than a few that are not done, one more is refused (server.overloaded).
	CreateBulk(ctx context.Context, o BulkRequest) (BulkRevocation, []pki.StatusChange, error)
	// BulkRevocation returns a set.
	BulkRevocation(ctx context.Context, id int64) (BulkRevocation, error)
	// BulkRevocations returns up to limit sets in one of the states, the newest first, and where the next page begins; zero
	// if there is none. No states mean all. A page begins after the set with the given ID; zero means the newest.
	BulkRevocations(ctx context.Context, states []BulkState, after int64, limit int) ([]BulkRevocation, int64, error)
}

// BulkSteps has the records of sets follow.
type BulkSteps interface {
	// OpenBulk returns the sets that are not done, the oldest first.
	OpenBulk(ctx context.Context) ([]BulkRevocation, error)
	// NotifyBulk passes to an observer the statuses of all certificates that a set which is not done selects, as they stand by
	// that order, some thousands at a time, and counts its members, durably.
	NotifyBulk(ctx context.Context, id int64, observer pki.StatusObserver) (BulkRevocation, error)
	// ApplyBulk takes one step: in one transaction, with a log entry as of the given time, it has the records of at most
	// limit further members say what the set says, and returns what has changed. The oldest set that is not done comes
	// first: for another one it does nothing.
	ApplyBulk(ctx context.Context, id int64, limit int, at time.Time) ([]pki.StatusChange, BulkRevocation, error)
}

// checkProfile refuses what cannot be the name of a profile.
func checkProfile(name string) error {
	if len(name) > pki.MaxText || strings.ContainsFunc(name, func(c rune) bool { return c < 0x20 || c > 0x7e }) {
		return pki.Refuse(pki.RuleRequest, fmt.Sprintf("use printable ASCII of %d octets at most", pki.MaxText), "a profile to select by is not of its form")
	}
	return nil
}

func checkWhy(why string) error { return pki.CheckText("the comment", why) }

// checkSince refuses an invalidity date that is no date before the order's.
func checkSince(since, at time.Time) error {
	if since.IsZero() {
		return nil
	}
	if since.After(at) || since.Unix() < 1 { // of what is packed, zero is none
		return pki.Refuse(pki.RuleRequest, "give a time after the beginning of 1970 and not after now, or leave it out",
			"a certificate cannot be known to be invalid since %s: it is %s here", since.UTC().Format(time.RFC3339), at.UTC().Format(time.RFC3339))
	}
	return nil
}

// check refuses an order that makes no sense whatever the records say.
func (o BulkRequest) check(now time.Time) error {
	if o.IsZero() {
		return pki.Refuse(pki.RuleRequest, "say what to revoke by: issuer, identity, lineage, key, profile, label or time of issue",
			"a selection without a criterion would be of all certificates")
	}
	if !o.Label.IsZero() && o.Label.Name == "" {
		return pki.Refuse(pki.RuleRequest, "write it NAME=VALUE", "a label has a name")
	}
	if err := checkProfile(o.Profile); err != nil {
		return err
	}
	for _, text := range []string{o.Label.Name, o.Label.Value} {
		if err := pki.CheckText("a label to select by", text); err != nil {
			return err
		}
	}
	if !o.IssuedFrom.IsZero() && !o.IssuedUntil.IsZero() && !o.IssuedFrom.Before(o.IssuedUntil) {
		return pki.Refuse(pki.RuleRequest, "give a time of issue that begins before it ends", "nothing is issued from %s until %s",
			o.IssuedFrom.UTC().Format(time.RFC3339), o.IssuedUntil.UTC().Format(time.RFC3339))
	}
	for _, t := range []time.Time{o.IssuedFrom, o.IssuedUntil} {
		if !t.IsZero() && (t.Year() < 1972 || t.Year() > 6428) {
			return pki.Refuse(pki.RuleRequest, "give a time between the years 1972 and 6428", "nothing is issued at %s", t.UTC().Format(time.RFC3339))
		}
	}
	if _, err := pki.ReasonFromCode(int(o.Reason)); err != nil || o.Reason == pki.CertificateHold {
		return pki.Refuse(pki.RuleReason, "revoke for any other reason of RFC 5280 section 5.3.1; to hold, suspend the identities",
			"%v is no reason to revoke", o.Reason)
	}
	if o.At.After(now) {
		return pki.Refuse(pki.RuleRequest, "leave the time out", "an order cannot take effect at %s, which is yet to come", o.At.Format(time.RFC3339))
	}
	if err := checkSince(o.InvalidSince, o.At); err != nil {
		return err
	}
	return checkWhy(o.Comment)
}
