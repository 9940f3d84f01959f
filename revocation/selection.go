package revocation

import (
	"context"
	"time"

	"github.com/brevet-pki/brevet/pki"
)

// BulkRequest requests a change of all certificates that the selection matches at the time of the request and that
// StatusStore.Apply would affect. It does not change certificates that are issued later: to prevent those, suspend or
// retire the identities.
//
// Certificates on hold are revoked. Revoked certificates stay as they are, unless the reason is keyCompromise. With
// that reason, the keys of the selected certificates are marked as compromised, and the other certificates of these
// keys are revoked too. A key in the selection is marked even if no certificate matches.
type BulkRequest struct {
	pki.Selection
	// Action is Revoke for RevokeBulk, which sets it. A Change that affects many certificates sets its own action.
	Action Action
	// Reason is any reason but certificateHold.
	Reason pki.Reason
	// InvalidSince, Actor, Comment and At are as in Change.
	InvalidSince time.Time
	Actor        pki.Actor
	Comment      string
	At           time.Time
}

// BulkRevocation is a bulk revocation and its progress. Once it is recorded, it is in effect for all selected
// certificates.
type BulkRevocation struct {
	ID int64
	BulkRequest
	// Total is the number of certificates that it changes, and Expired how many of them were expired at the request. Both
	// are zero until Counted.
	Total, Expired int
	Counted        bool
	// Applied is the number of certificates whose records have been changed. The next CRLs list them.
	Applied int
	// Done means that all records have been changed.
	Done bool
}

// BulkStore stores bulk revocations. A bulk revocation is one durable row with one log entry. The records of its
// certificates are changed in steps. From the row on, every read reports a selected certificate as revoked, with the
// status version that its record will have.
type BulkStore interface {
	BulkCreator
	BulkSteps
}

// BulkState is the progress of a bulk revocation. It is in effect in every state.
type BulkState uint8

// A bulk revocation is selecting until its certificates are counted, and applying until all their records are changed.
const (
	BulkSelecting BulkState = iota + 1
	BulkApplying
	BulkDone
)

// State returns the progress of the bulk revocation.
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

// BulkCreator creates and reads bulk revocations.
type BulkCreator interface {
	// CountBulk counts the certificates that a bulk revocation would change. It changes nothing.
	CountBulk(ctx context.Context, o BulkRequest) (Affected, error)
	// CreateBulk makes a bulk revocation durable. If it selects few certificates of one identity, their records are
	// changed in the same transaction: the bulk revocation is done, and CreateBulk returns the statuses of the selected
	// certificates. What the selection names must be on record. If too many bulk revocations are not done, CreateBulk
	// refuses another one (server.overloaded).
	CreateBulk(ctx context.Context, o BulkRequest) (BulkRevocation, []pki.StatusChange, error)
	// BulkRevocation returns a bulk revocation and its progress.
	BulkRevocation(ctx context.Context, id int64) (BulkRevocation, error)
	// BulkRevocations returns a page of at most limit bulk revocations in one of the given states, newest first, and the
	// start of the next page, or zero if there is none. An empty list of states means all states. The page starts after the
	// bulk revocation with the ID after, or at the newest one if after is zero.
	BulkRevocations(ctx context.Context, states []BulkState, after int64, limit int) ([]BulkRevocation, int64, error)
}

// BulkSteps applies bulk revocations to records.
type BulkSteps interface {
	// OpenBulk returns the bulk revocations that are not done, oldest first.
	OpenBulk(ctx context.Context) ([]BulkRevocation, error)
	// NotifyBulk notifies an observer of the statuses of all certificates that an unfinished bulk revocation selects, some
	// thousands at a time. It counts them and stores the count.
	NotifyBulk(ctx context.Context, id int64, observer pki.StatusObserver) (BulkRevocation, error)
	// ApplyBulk applies one step: in one transaction with a log entry as of the given time, it changes the records of at
	// most limit further certificates, and returns the changes. Bulk revocations are applied in order: for any but the
	// oldest unfinished one, ApplyBulk does nothing.
	ApplyBulk(ctx context.Context, id int64, limit int, at time.Time) ([]pki.StatusChange, BulkRevocation, error)
}

func checkComment(comment string) error { return pki.CheckText("the comment", comment) }

// checkSince returns a refusal unless the invalidity date is zero or a date up to the time of the change.
func checkSince(since, at time.Time) error {
	if since.IsZero() {
		return nil
	}
	if since.After(at) || since.Unix() < 1 { // stores encode none as zero
		return pki.Refuse(pki.RuleRequest, "give a time after the beginning of 1970 and not after now, or leave it out",
			"a certificate cannot be known to be invalid since %s (server time is %s)", since.UTC().Format(time.RFC3339), at.UTC().Format(time.RFC3339))
	}
	return nil
}

// check returns a refusal if the request is invalid whatever the store contains, or nil.
func (o BulkRequest) check(now time.Time) error {
	if o.IsZero() {
		return pki.Refuse(pki.RuleRequest, "select by issuer, identity, lineage, key, profile, label or time of issue",
			"an empty selection would match all certificates")
	}
	if err := o.Check(); err != nil {
		return err
	}
	if _, err := pki.ReasonFromCode(int(o.Reason)); err != nil || o.Reason == pki.CertificateHold {
		return pki.Refuse(pki.RuleReason, "revoke for any other reason of RFC 5280 section 5.3.1; to hold, suspend the identities",
			"the reason %v is not allowed for a bulk revocation", o.Reason)
	}
	if o.At.After(now) {
		return pki.Refuse(pki.RuleRequest, "leave the time out", "a bulk revocation cannot take effect in the future, at %s", o.At.Format(time.RFC3339))
	}
	if err := checkSince(o.InvalidSince, o.At); err != nil {
		return err
	}
	return checkComment(o.Comment)
}
