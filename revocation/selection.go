package revocation

import (
	"context"
	"time"

	"github.com/brevet-pki/brevet/pki"
)

// BulkRequest requests a change of all certificates that the selection matches at the time of the request, and whose
// status StatusStore.Apply would change. It does not change certificates that are issued later. To prevent these,
// suspend or retire the identities.
//
// Certificates on hold are revoked. Revoked certificates stay unchanged, unless the reason is keyCompromise. With that
// reason, the keys of the selected certificates are recorded as compromised, and all other certificates of these keys
// are also revoked. If the selection names a key, the key is recorded even if no certificate matches.
type BulkRequest struct {
	pki.Selection
	// Action is Revoke for RevokeBulk, which sets it. For a Change that affects many certificates, it is the Change's
	// action.
	Action Action
	// Reason may be any reason except certificateHold.
	Reason pki.Reason
	// InvalidSince, Actor, Comment, At and Grace are the same as in Change. A BulkRevocation on record has no Grace.
	InvalidSince time.Time
	Actor        pki.Actor
	Comment      string
	At           time.Time
	Grace        time.Duration
}

// BulkRevocation is a bulk revocation and its progress. As soon as it is recorded, it is in effect for all selected
// certificates.
type BulkRevocation struct {
	ID int64
	BulkRequest
	// Total is the number of certificates that it changes. Expired is the number of those that were expired when it was
	// requested. Both are zero until Counted is true.
	Total, Expired int
	Counted        bool
	// Applied is the number of certificates whose records have been changed. The next CRLs list these.
	Applied int
	// Done reports whether all records have been changed.
	Done bool
}

// BulkStore stores bulk revocations. A bulk revocation is one durable row with one log entry, and the records of its
// certificates are changed in steps. As soon as the row exists, every read reports a selected certificate as revoked,
// with the version that its record will have.
type BulkStore interface {
	BulkCreator
	BulkSteps
}

// BulkState is the progress of a bulk revocation, which is in effect in every state.
type BulkState uint8

// The state is selecting until the certificates are counted, applying until all their records are changed, and then
// done.
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

// BulkCreator creates bulk revocations, and reads them.
type BulkCreator interface {
	// CountBulk counts the certificates that a bulk revocation would change. It changes nothing.
	CountBulk(ctx context.Context, o BulkRequest) (Affected, error)
	// CreateBulk makes a bulk revocation durable. If it selects few certificates of one identity, CreateBulk changes
	// their records in the same transaction. It then returns a BulkRevocation that is done, and the statuses of the
	// selected certificates. Everything that the selection names must be on record. If too many bulk revocations are
	// not done, CreateBulk refuses another one (server.overloaded).
	CreateBulk(ctx context.Context, o BulkRequest) (BulkRevocation, []pki.StatusChange, error)
	// BulkRevocation returns a bulk revocation and its progress.
	BulkRevocation(ctx context.Context, id int64) (BulkRevocation, error)
	// BulkRevocations returns a page of at most limit bulk revocations in one of the given states, newest first. It
	// also returns the start of the next page, or zero if there is none. An empty list of states means all states. The
	// page starts after the bulk revocation with the ID after, or with the newest one if after is zero.
	BulkRevocations(ctx context.Context, states []BulkState, after int64, limit int) ([]BulkRevocation, int64, error)
}

// BulkSteps applies bulk revocations to records in steps. If several servers share the store, the leader does: to others,
// ApplyBulk returns an error that wraps [pki.ErrNotLeader], and changes nothing.
type BulkSteps interface {
	// OpenBulk returns the bulk revocations that are not done, oldest first.
	OpenBulk(ctx context.Context) ([]BulkRevocation, error)
	// NotifyBulk notifies an observer of the new statuses of all certificates that an unfinished bulk revocation
	// selects, some thousands at a time. It also counts the certificates and stores the count.
	NotifyBulk(ctx context.Context, id int64, observer pki.StatusObserver) (BulkRevocation, error)
	// ApplyBulk applies one step. In one transaction, with a log entry at the given time, it changes the records of at
	// most limit more certificates. It returns these changes. Bulk revocations are applied in the order of their
	// requests: if an older one is unfinished, ApplyBulk does nothing.
	ApplyBulk(ctx context.Context, id int64, limit int, at time.Time) ([]pki.StatusChange, BulkRevocation, error)
}

func checkComment(comment string) error { return pki.CheckText("the comment", comment) }

// checkSince returns a refusal unless the invalidity date is zero or at most the time of the change.
func checkSince(since, at time.Time) error {
	if since.IsZero() {
		return nil
	}
	if since.After(at) || since.Unix() < 1 { // stores encode a missing date as zero
		return pki.Refuse(pki.RuleRequest, "give a time after the beginning of 1970 and not after now, or leave it out",
			"a certificate cannot be known to be invalid since %s (server time is %s)", since.UTC().Format(time.RFC3339), at.UTC().Format(time.RFC3339))
	}
	return nil
}

// check returns a refusal if the request is invalid, whatever the store contains. Otherwise it returns nil.
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
