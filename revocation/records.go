package revocation

import (
	"context"
	"crypto/sha256"
	"fmt"
	"iter"
	"math/big"
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

// Scope says which of an issuer's CRLs one is. It works as a map key.
type Scope struct {
	Issuer pki.IssuerID
	// Partition is zero for the full CRL, which lists what all partitions do and has no issuing distribution point.
	Partition uint16
	Delta     bool
}

// Path is where the CRL lies below a directory or a URL, with slashes: ISSUER.crl, ISSUER/3.crl or ISSUER/3-delta.crl.
func (s Scope) Path() string {
	switch {
	case s.Partition == 0:
		return s.Issuer.Short() + ".crl"
	case s.Delta:
		return fmt.Sprintf("%s/%d-delta.crl", s.Issuer.Short(), s.Partition)
	default:
		return fmt.Sprintf("%s/%d.crl", s.Issuer.Short(), s.Partition)
	}
}

// DistributionPoint is a distribution point that certificates name (RFC 5280 §4.2.1.13 and §4.2.1.15).
type DistributionPoint struct {
	Issuer    pki.IssuerID
	Partition uint16 // 1 to MaxPartition; the full CRL has no distribution point of its own
	URL       string // of the partition's CRL, as certificates have it
	DeltaURL  string // of its delta CRL; empty for none
}

// Entry is one line of a CRL (RFC 5280 §5.3).
type Entry struct {
	Serial    pki.Serial
	RevokedAt time.Time // zero where Removed
	Reason    pki.Reason
	// InvalidSince is the invalidity date, or zero (RFC 5280 §5.3.2).
	InvalidSince time.Time
	// Removed says that the certificate was on hold and is good: the reason is removeFromCRL, which delta CRLs alone have.
	Removed bool
}

// Base is the CRL that a delta goes on from.
type Base struct {
	Number     *big.Int
	ThisUpdate time.Time
	Position   uint64 // in the log, up to which it knows all changes
}

// CRL is what is on record of a signed certificate revocation list. The list itself is a file.
type CRL struct {
	Issuer    pki.IssuerID
	Partition uint16
	Delta     bool

	Number     *big.Int
	ThisUpdate time.Time
	NextUpdate time.Time
	// Position is the index of the last log entry of whose changes it knows.
	Position uint64
	// Base is the base CRL of a delta, and for the CRL of a partition the last one that was issued on schedule, which may
	// be itself: deltas of the time after go on from there. Without a number there is none.
	Base    Base
	SHA256  [sha256.Size]byte // of the file
	Size    int64             // of the file, in octets
	Entries int64
	// DER is the list where it was signed elsewhere, and cannot be made again. It is nil for the others.
	DER []byte
}

// Scope returns which CRL of its issuer it is.
func (c CRL) Scope() Scope { return Scope{Issuer: c.Issuer, Partition: c.Partition, Delta: c.Delta} }

// Listing says what a CRL lists.
type Listing struct {
	// Partition is the one it is about; zero is all certificates of the issuer.
	Partition uint16
	// NotExpiredAt leaves out certificates that ended before that.
	NotExpiredAt time.Time
	// Delta has it list only what has changed after the log's entry Since, and also what was released since.
	Delta bool
	Since uint64
}

// View is one moment of an issuer's statuses. It belongs to the goroutine that got it, until its read ends.
type View interface {
	// Position returns the index of the last log entry at that moment; zero for an empty log.
	Position() uint64
	// Changed returns the partitions, zero among them, of which a certificate's status has changed after a log entry: it was
	// revoked, held, released or never released to anybody. They are in ascending order.
	Changed(since uint64) ([]uint16, error)
	// Entries yields what a CRL lists: certificates that are revoked or on hold, the never-released ones included. It yields
	// the same in the same order however often it is asked, and holds a bounded part of it in memory. It ends with the
	// first error.
	Entries(l Listing) iter.Seq2[Entry, error]
}

// Store is what the revocation authority writes and reads. Methods are safe for concurrent use. A change and its
// log entry are one durable transaction.
type Store interface {
	StatusStore
	BulkStore
	CRLStore
	DistributionPointStore
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
	// age of the records or later (ra.RetentionRecords), whichever is earlier. A clock that is ahead of that age therefore
	// hides no certificate that has not ended. Before there is an age, an order reaches all that is on record.
	Apply(ctx context.Context, o Change) (ChangeResult, error)
	// View reads what one moment's CRLs of an issuer list.
	View(ctx context.Context, issuer pki.IssuerID, read func(View) error) error
	// Compact brings what View reads of an issuer into the form in which it is read fastest, and drops from that what has ended
	// and is in a CRL from after its end. Where there is too little to do it does nothing. It writes in small steps with
	// pauses, so that others write meanwhile, and may be ended by ctx anywhere: nothing that View yields depends on it.
	Compact(ctx context.Context, issuer pki.IssuerID) error
}

// CRLStore keeps the newest CRL of every scope, and which numbers are taken.
type CRLStore interface {
	// TakeNumber takes the next CRL number of an issuer, durably: it is never given again, used or not (RFC 5280 §5.2.3).
	TakeNumber(ctx context.Context, issuer pki.IssuerID) (*big.Int, error)
	// PutCRLs records CRLs in one transaction, at the time at which they are published; one with a number not above the
	// recorded one's of its scope is refused (crl.invalid), and all with it.
	PutCRLs(ctx context.Context, crls []CRL, by pki.Actor, at time.Time) error
	// CRLs returns the newest CRL of every scope that has one, by issuer, partition, and base before delta.
	CRLs(ctx context.Context) ([]CRL, error)
}

// DistributionPointStore keeps what certificates name.
type DistributionPointStore interface {
	// PutPoints records distribution points, durably; those that are on record already stay as they are.
	PutPoints(ctx context.Context, points []DistributionPoint) error
	// Points returns every distribution point on record, in the order in which they came.
	Points(ctx context.Context) ([]DistributionPoint, error)
}
