package revocation

import (
	"context"
	"slices"
	"time"

	"github.com/brevet-pki/brevet/pki"
)

// Action is what a Change does to certificates.
type Action uint8

// A Revoke cannot be undone. An Unhold undoes a Hold.
const (
	Revoke Action = iota + 1
	Hold
	Unhold
)

// Change changes the status of one certificate, of an identity's unexpired certificates, or of a key's certificates.
type Change struct {
	Action Action
	// Reason is the reason for Revoke. For Hold it is certificateHold or zero. For Unhold it is zero.
	Reason pki.Reason
	// Exactly one of Certificate, Identity and Key must be set. A change of a key must be a Revoke for keyCompromise.
	Certificate pki.CertRef
	Identity    pki.SPIFFEID
	Key         pki.KeyHash
	// State is the new state of the identity, which is set in the same transaction. It is Suspended with Hold. It is
	// Retired with Revoke, or zero to leave the state unchanged. It is zero with Unhold, which restores the state
	// before the suspension.
	State pki.IdentityState
	// InvalidSince is when the certificates are known or suspected to have become invalid (RFC 5280 §5.3.2). It is in
	// whole seconds, and not after At. It is zero if the time is unknown, and with Hold and Unhold.
	InvalidSince time.Time
	Actor        pki.Actor
	// Comment is a comment for the log. [pki.CheckText] checks it.
	Comment string
	At      time.Time
	// Grace extends a change of several certificates to those that expired this long before At, because they can still
	// recover their identities. The Authority sets it.
	Grace time.Duration
}

// ChangeResult is the result of a Change.
type ChangeResult struct {
	// Changed contains the statuses that the change changed. Unchanged contains those of the other certificates that
	// the change is about.
	Changed, Unchanged []pki.StatusChange
	// BulkRevocation is the ID of the bulk revocation that applies the change, if it affects more certificates than one
	// transaction can change. If a bulk revocation for the same change exists and is not yet done, it is the ID of that
	// one. Changed and Unchanged do not contain its certificates. Zero means that there is no bulk revocation.
	BulkRevocation int64
	// Affected counts the certificates that the change affected. A store returns counts only for a request that was
	// already applied; for a new one, Authority.Apply counts.
	Affected Affected
}

// All returns the statuses in Changed and Unchanged.
func (o ChangeResult) All() []pki.StatusChange { return slices.Concat(o.Changed, o.Unchanged) }

// Affected counts the certificates that a change affects.
type Affected struct {
	Valid   int // certificates that had not expired at the time of the change
	Expired int // certificates that had expired
}

// Add counts a certificate with the given expiry, for a change at the time at.
func (r *Affected) Add(notAfter, at time.Time) {
	if notAfter.Before(at) {
		r.Expired++
	} else {
		r.Valid++
	}
}

// Store is the store that an Authority uses. Its methods are safe for concurrent use. A change and its log entry are
// one durable transaction.
type Store interface {
	StatusStore
	BulkStore
}

// StatusStore changes the statuses of certificates.
type StatusStore interface {
	// Apply applies a change, and returns the current status of every certificate that the change is about. If the
	// change was applied before, Apply changes nothing and returns the same result. A caller can therefore repeat a
	// change after an ambiguous failure, and then notify the responders. If a change affects more certificates than one
	// transaction can change, Apply creates a bulk revocation, which is in effect for all of them at once. It changes
	// the identity's state immediately.
	//
	// If the actor repeats a request ID, Apply changes nothing. It returns the current statuses, and which certificates
	// the first request affected.
	//
	// A revocation cannot be undone. Apply refuses to change its reason (certificate.already_revoked), except to
	// keyCompromise. A revocation for keyCompromise records the certificate's key as compromised, and revokes all other
	// unexpired certificates of the key. If no certificate of the key is on record, Apply refuses the change
	// (not_found).
	//
	// A change of an identity or key affects the certificates that expire at the time of the change or later. If the
	// age of the records ([retention.Store]) is earlier than that time, Apply uses the age instead. Otherwise a clock
	// that is ahead would hide unexpired certificates. If there is no age yet, a change affects all certificates on
	// record.
	Apply(ctx context.Context, o Change) (ChangeResult, error)
}
