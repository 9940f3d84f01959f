package revocation

import (
	"context"
	"slices"
	"time"

	"github.com/brevet-pki/brevet/pki"
)

// Action is what an Order does to certificates.
type Action uint8

// Revoke is for ever; Hold can be undone by Unhold.
const (
	Revoke Action = iota + 1
	Hold
	Unhold
)

// Change changes the status of one certificate, of an identity and all its unexpired certificates, or of those of a key.
type Change struct {
	Action Action
	// Reason is why, for Revoke; Hold is certificateHold and Release has none.
	Reason pki.Reason
	// Exactly one of Certificate, Identity and Key is set. One about a key revokes for keyCompromise.
	Certificate pki.CertRef
	Identity    pki.SPIFFEID
	Key         pki.KeyHash
	// State is what the identity becomes in the same transaction: Suspended with Hold, Retired with Revoke, the
	// state before the suspension with Release, for which it is left zero. Zero with Revoke leaves the identity as it
	// is: only its certificates go.
	State pki.IdentityState
	// InvalidSince is when the certificates are known or suspected to have become invalid, to the second, where that is
	// known (RFC 5280 §5.3.2): not after At. It belongs to Revoke.
	InvalidSince time.Time
	Actor        pki.Actor
	// Comment is a comment for the log, as pki.CheckText has it.
	Comment string
	At      time.Time
}

// ChangeResult is what came of an Order.
type ChangeResult struct {
	// Changed are the statuses that the order has changed. Unchanged are those of the other certificates that it is about.
	Changed, Unchanged []pki.StatusChange
	// BulkRevocation is the bulk revocation that carries the order out where it is about more certificates than one transaction
	// changes. If the same order was given before, BulkRevocation is the one of that time until its records have followed. Its members are
	// not listed. It is zero for none.
	BulkRevocation int64
	// Affected counts all certificates that the order has changed. Authority.Apply sets it.
	Affected Affected
}

// All returns the statuses of all certificates that the order is about, less those of its set.
func (o ChangeResult) All() []pki.StatusChange { return slices.Concat(o.Changed, o.Unchanged) }

// Affected counts the certificates that an order changes.
type Affected struct {
	Valid   int // those that had not ended when the order was given, by the clock of that time
	Expired int // those that had
}

// Add counts a certificate that ends at a time, for an order of a time.
func (r *Affected) Add(notAfter, at time.Time) {
	if notAfter.Before(at) {
		r.Expired++
	} else {
		r.Valid++
	}
}

// Store is what the revocation authority writes and reads. Methods are safe for concurrent use. A change and its
// log entry are one durable transaction.
type Store interface {
	StatusStore
	BulkStore
}

// StatusStore keeps which certificates are revoked or on hold.
type StatusStore interface {
	// Apply carries out an order and returns the status of every certificate that it is about as it stands now. An
	// order that changes nothing, because it was carried out before, succeeds and returns the same: whoever repeats an
	// order after an ambiguous failure tells the responders what the first one did. An order about more certificates than
	// one transaction changes becomes a set, which is in effect for all of them; the identity changes at once.
	// A revocation is final: another reason is refused
	// (certificate.already_revoked), except an upgrade to keyCompromise. Revoking for keyCompromise marks the certificate's key, and revokes every
	// other unexpired certificate of it. A key that was never certified, or whose certificates have all left, is refused
	// (not_found).
	//
	// An order about an identity, a key or a selection reaches every certificate that ends at its time or later, or at the
	// age of the records or later (retention.Store), whichever is earlier. A clock that is ahead of that age therefore
	// hides no certificate that has not ended. Before there is an age, an order reaches all that is on record.
	Apply(ctx context.Context, o Change) (ChangeResult, error)
}
