package crl

import (
	"context"
	"crypto/sha256"
	"fmt"
	"iter"
	"math/big"
	"time"

	"github.com/brevet-pki/brevet/pki"
)

// Scope identifies one of an issuer's CRLs. It works as a map key.
type Scope struct {
	Issuer pki.IssuerID
	// Partition is zero for the full CRL, which lists all partitions and has no issuing distribution point.
	Partition uint16
	Delta     bool
}

// Path returns the path of the CRL below a directory or URL, with slashes: ISSUER.crl, ISSUER/3.crl or
// ISSUER/3-delta.crl.
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

// Point is a distribution point in certificates (RFC 5280 §4.2.1.13 and §4.2.1.15).
type Point struct {
	Issuer    pki.IssuerID
	Partition uint16 // 1 to MaxPartition; the full CRL has no distribution point of its own
	URL       string // of the partition's CRL
	DeltaURL  string // of its delta CRL; empty for none
}

// Entry is one entry of a CRL (RFC 5280 §5.3).
type Entry struct {
	Serial    pki.Serial
	RevokedAt time.Time // zero if Removed
	Reason    pki.Reason
	// InvalidSince is the invalidity date, or zero (RFC 5280 §5.3.2).
	InvalidSince time.Time
	// Removed means that the certificate was on hold and is good again. Its reason is removeFromCRL, in delta CRLs only.
	Removed bool
}

// Base is the CRL that a delta CRL is relative to.
type Base struct {
	Number     *big.Int
	ThisUpdate time.Time
	Position   uint64 // index of the last log entry that the base covers
}

// CRL is the record of a signed certificate revocation list. The list itself is a file.
type CRL struct {
	Issuer    pki.IssuerID
	Partition uint16
	Delta     bool

	Number     *big.Int
	ThisUpdate time.Time
	NextUpdate time.Time
	// Position is the index of the last log entry that the CRL covers.
	Position uint64
	// Base is the CRL that deltas are relative to. For a delta it is its base. For the CRL of a partition it is the last
	// one that was issued on schedule, which may be this CRL. If Base.Number is nil, there is none.
	Base    Base
	SHA256  [sha256.Size]byte // of the file
	Size    int64             // of the file, in bytes
	Entries int64
	// DER is the list if it was signed elsewhere, since it cannot be signed again here. Otherwise it is nil.
	DER []byte
}

// Scope returns the scope of the CRL.
func (c CRL) Scope() Scope { return Scope{Issuer: c.Issuer, Partition: c.Partition, Delta: c.Delta} }

// Listing selects the entries of a CRL.
type Listing struct {
	// Partition selects the certificates of one partition; zero selects all of the issuer.
	Partition uint16
	// NotExpiredAt leaves out certificates that expired before that time.
	NotExpiredAt time.Time
	// Delta selects only what changed after the log entry Since, including certificates that were taken off hold.
	Delta bool
	Since uint64
}

// View is a consistent snapshot of an issuer's statuses. It is valid until the function that received it returns, and
// only in that goroutine.
type View interface {
	// Position returns the index of the last log entry of the snapshot; zero for an empty log.
	Position() uint64
	// Changed returns the partitions, zero among them, in which a certificate's status changed after a log entry: it was
	// revoked, held, taken off hold or recorded as never delivered. They are in ascending order.
	Changed(since uint64) ([]uint16, error)
	// Entries yields the entries of a CRL: certificates that are revoked or on hold, those never delivered included. Every
	// call yields the same entries in the same order, and holds a bounded part of them in memory. It ends with the first
	// error.
	Entries(l Listing) iter.Seq2[Entry, error]
}

// Store stores the revoked certificates and the record of each CRL. Methods are safe for concurrent use. A change and
// its log entry are one durable transaction.
type Store interface {
	EntryStore
	RecordStore
	PointStore
}

// EntryStore reads the revoked certificates that CRLs list.
type EntryStore interface {
	// View calls read with a consistent snapshot of the issuer's revoked certificates.
	View(ctx context.Context, issuer pki.IssuerID, read func(View) error) error
	// Compact rewrites the index that View reads into the form that is fastest to read. It drops certificates that are
	// expired and listed in a CRL issued after their expiry. It writes in small steps with pauses, so that other writers
	// proceed. If there is little to do, it does nothing. If ctx ends, it stops after a step. Compact does not change the
	// results of View.
	Compact(ctx context.Context, issuer pki.IssuerID) error
}

// RecordStore stores the newest CRL of every scope, and the CRL numbers that were taken.
type RecordStore interface {
	// TakeNumber takes the next CRL number of an issuer, durably: it is never given again, used or not (RFC 5280 §5.2.3).
	// The log entry about it has the given time.
	TakeNumber(ctx context.Context, issuer pki.IssuerID, at time.Time) (*big.Int, error)
	// PutCRLs records CRLs in one transaction, at the time of their publication. If one of them has a number that is not
	// higher than the recorded one of its scope, PutCRLs refuses all of them (crl.invalid).
	PutCRLs(ctx context.Context, crls []CRL, by pki.Actor, at time.Time) error
	// CRLs returns the newest CRL of every scope that has one, by issuer, partition, and base before delta.
	CRLs(ctx context.Context) ([]CRL, error)
}

// PointStore stores the distribution points in certificates.
type PointStore interface {
	// PutPoints records distribution points, durably, with log entries of the given time. Points already on record do not change.
	PutPoints(ctx context.Context, points []Point, at time.Time) error
	// Points returns every distribution point on record, in the order in which they were recorded.
	Points(ctx context.Context) ([]Point, error)
}
