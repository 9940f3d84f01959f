package revocation

import (
	"context"
	"iter"
	"math/big"
	"time"

	"github.com/brevet-pki/brevet/pki"
)

// Action is what an Order does to certificates.
type Action uint8

// Revoke is for ever; Hold can be undone by Release.
const (
	Revoke Action = iota + 1
	Hold
	Release
)

// Order changes the status of one certificate, of an identity and all its unexpired certificates, or of those of a key.
type Order struct {
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
	By           pki.Actor
	// Why is a comment for the log, in printable ASCII of 256 octets at most.
	Why string
	At  time.Time
}

// Entry is one line of a CRL (RFC 5280 §5.3).
type Entry struct {
	Serial    pki.Serial
	RevokedAt time.Time
	Reason    pki.Reason
}

// CRL is a signed certificate revocation list.
type CRL struct {
	Issuer     pki.IssuerID
	Number     *big.Int
	ThisUpdate time.Time
	NextUpdate time.Time
	DER        []byte
}

// Records is what the revocation authority writes and reads. Methods are safe for concurrent use. A change and its
// log entry are one durable transaction.
type Records interface {
	StatusRecords
	SetRecords
	CRLRecords
}

// StatusRecords keeps which certificates are revoked or on hold.
type StatusRecords interface {
	// Apply carries out an order and returns the status of every certificate that it is about as it stands now. An
	// order that changes nothing, because it was carried out before, succeeds and returns the same: whoever repeats an
	// order after an ambiguous failure tells the responders what the first one did. A revocation is final: another reason is refused
	// (revocation.final), except an upgrade to keyCompromise. Revoking for keyCompromise marks the certificate's key, and revokes every
	// other unexpired certificate of it. A key that was never certified, or whose certificates have all left, is refused
	// (record.unknown). An order about an identity or a key reaches certificates that expired within the last
	// hour too, for a clock may be ahead.
	Apply(ctx context.Context, o Order) ([]pki.StatusChange, error)
	// Revoked yields every certificate of the issuer that is revoked or on hold and was not expired at the given
	// time, in the order of serial numbers, in one consistent read.
	Revoked(ctx context.Context, issuer pki.IssuerID, notExpiredAt time.Time) iter.Seq2[Entry, error]
}

// CRLRecords keeps the newest CRL of every issuer, and which numbers are taken.
type CRLRecords interface {
	// TakeNumber takes the next CRL number of an issuer, durably: it is never given again, used or not (RFC 5280 §5.2.3).
	TakeNumber(ctx context.Context, issuer pki.IssuerID) (*big.Int, error)
	// PutCRL records a CRL, at the time at which it is published; one with a number not above the recorded one's is
	// refused (crl.invalid).
	PutCRL(ctx context.Context, c CRL, by pki.Actor, at time.Time) error
	// CRLs returns the newest CRL of every issuer that has one.
	CRLs(ctx context.Context) ([]CRL, error)
}
