package revocation

import (
	"context"
	"slices"
	"time"

	"github.com/brevet-pki/brevet/pki"
)

// Action is what a Change does to certificates.
type Action uint8

// Revoke is final. Unhold undoes Hold.
const (
	Revoke Action = iota + 1
	Hold
	Unhold
)

// Change changes the status of one certificate, of an identity and its unexpired certificates, or of a key's
// certificates.
type Change struct {
	Action Action
	// Reason is the reason for Revoke. For Hold it is certificateHold or zero, and for Unhold zero.
	Reason pki.Reason
	// Exactly one of Certificate, Identity and Key is set. A change of a key revokes for keyCompromise.
	Certificate pki.CertRef
	Identity    pki.SPIFFEID
	Key         pki.KeyHash
	// State is the identity's new state, set in the same transaction: Suspended with Hold, Retired with Revoke. It is zero
	// with Unhold, which restores the state before the suspension. Zero with Revoke leaves the identity's state unchanged.
	State pki.IdentityState
	// InvalidSince is when the certificates are known or suspected to have become invalid (RFC 5280 §5.3.2), in whole
	// seconds and not after At. It is zero if unknown, and always with Hold and Unhold.
	InvalidSince time.Time
	Actor        pki.Actor
	// Comment is a comment for the log, checked by [pki.CheckText].
	Comment string
	At      time.Time
}

// ChangeResult is the result of a Change.
type ChangeResult struct {
	// Changed are the statuses that the change changed. Unchanged are those of the other certificates in its scope.
	Changed, Unchanged []pki.StatusChange
	// BulkRevocation is the ID of the bulk revocation that applies the change, if it affects more certificates than one
	// transaction changes. If the same change was requested before and its bulk revocation is not yet done, it is that
	// one. Changed and Unchanged do not list its certificates. Zero means none.
	BulkRevocation int64
	// Affected counts the certificates that the change changed. A store counts none but those that an earlier call with the
	// same request changed; Authority.Apply adds the others.
	Affected Affected
}

// All returns the statuses in Changed and Unchanged.
func (o ChangeResult) All() []pki.StatusChange { return slices.Concat(o.Changed, o.Unchanged) }

// Affected counts the certificates that a change affects.
type Affected struct {
	Valid   int // those that had not expired at the time of the change
	Expired int // those that had
}

// Add counts a certificate that is valid until notAfter, for a change at a time.
func (r *Affected) Add(notAfter, at time.Time) {
	if notAfter.Before(at) {
		r.Expired++
	} else {
		r.Valid++
	}
}

// Store is what the Authority reads and writes. Methods are safe for concurrent use. A change and its log entry are one
// durable transaction.
type Store interface {
	StatusStore
	BulkStore
}

// StatusStore changes which certificates are revoked or on hold.
type StatusStore interface {
	// Apply applies a change and returns the current status of every certificate in its scope. If the change was applied
	// before, Apply changes nothing and returns the same: a caller that repeats a change after an ambiguous failure
	// notifies the responders of it. A change that affects more certificates than one transaction changes becomes a bulk
	// revocation, which is in effect for all of them at once. The identity's state changes immediately.
	//
	// A repeat of the actor's request returns the current statuses and what the first call affected, and changes nothing.
	//
	// A revocation is final. Another reason is refused (certificate.already_revoked), except keyCompromise. Revoking for
	// keyCompromise marks the certificate's key as compromised, and revokes every other unexpired certificate of it. A key
	// with no certificate on record is refused (not_found).
	//
	// A change of an identity or key affects the certificates that expire at the time of the change or later. The age of
	// the records ([retention.Store]) replaces that time if it is earlier, so that a fast clock hides no unexpired
	// certificate. Before there is an age, a change affects all certificates on record.
	Apply(ctx context.Context, o Change) (ChangeResult, error)
}
