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

// Scope identifies one CRL of an issuer. It can be a map key.
type Scope struct {
	Issuer pki.IssuerID
	// Partition is zero for the full CRL, which lists all partitions and has no issuing distribution point.
	Partition uint16
	Delta     bool
}

// Path returns the path of the CRL below a directory or URL, with slashes. It is ISSUER.crl for the full CRL, and
// ISSUER/3.crl or ISSUER/3-delta.crl for a partition.
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
	Partition uint16 // 1 to MaxPartition; there is no distribution point for the full CRL
	URL       string // URL of the partition's CRL
	DeltaURL  string // URL of the partition's delta CRL, or empty
}

// Entry is one entry of a CRL (RFC 5280 §5.3).
type Entry struct {
	Serial    pki.Serial
	RevokedAt time.Time // zero if Removed
	Reason    pki.Reason
	// InvalidSince is the invalidity date, or zero (RFC 5280 §5.3.2).
	InvalidSince time.Time
	// Removed means that the certificate was on hold and is good again. Only delta CRLs list it, with the reason
	// removeFromCRL.
	Removed bool
}

// Base is the CRL on which a delta CRL is based.
type Base struct {
	Number     *big.Int
	ThisUpdate time.Time
	Position   uint64 // index of the last log entry that is included in the base
}

// CRL is the record of a signed CRL. The CRL itself is in a file.
type CRL struct {
	Issuer    pki.IssuerID
	Partition uint16
	Delta     bool

	Number     *big.Int
	ThisUpdate time.Time
	NextUpdate time.Time
	// Position is the index of the last log entry that is included in the CRL.
	Position uint64
	// Base is the base of a delta CRL. For the CRL of a partition, it is the base of the deltas that are signed with
	// it: the last CRL that was issued on schedule, which may be this one. If Base.Number is nil, there is no base.
	Base    Base
	SHA256  [sha256.Size]byte // hash of the file
	Size    int64             // size of the file, in bytes
	Entries int64
	// DER is the CRL itself if it was signed elsewhere, because it cannot be signed again here. Otherwise it is nil.
	DER []byte
}

// Scope returns the scope of the CRL.
func (c CRL) Scope() Scope { return Scope{Issuer: c.Issuer, Partition: c.Partition, Delta: c.Delta} }

// Listing selects entries for a CRL.
type Listing struct {
	// Partition selects the certificates of one partition. Zero selects all certificates of the issuer.
	Partition uint16
	// NotExpiredAt excludes certificates that expired before that time.
	NotExpiredAt time.Time
	// Delta selects only the changes after the log entry Since. They include the certificates whose hold was removed.
	Delta bool
	Since uint64
}

// View is a consistent snapshot of the statuses of an issuer's certificates. A function that receives a View may use it
// only until it returns, and only in its own goroutine.
type View interface {
	// Position returns the index of the last log entry in the snapshot. It returns zero for an empty log.
	Position() uint64
	// Changed returns the partitions that contain a certificate whose status changed after a log entry: it was revoked,
	// put on hold, taken off hold, or recorded as never delivered. The numbers are in ascending order. Zero stands for
	// certificates in no partition.
	Changed(since uint64) ([]uint16, error)
	// Entries yields the entries of a CRL: the certificates that are revoked or on hold, including those that were
	// never delivered. Every call yields the same entries in the same order. It holds only a limited number of them in
	// memory. If there is an error, it yields the error last.
	Entries(l Listing) iter.Seq2[Entry, error]
}

// Store stores the revoked certificates and the records of CRLs. Its methods are safe for concurrent use. A change and
// its log entry are one durable transaction.
type Store interface {
	EntryStore
	RecordStore
	PointStore
}

// EntryStore reads the revoked certificates that CRLs list.
type EntryStore interface {
	// View calls read with a consistent snapshot of the issuer's revoked certificates. The snapshot is valid until read
	// returns.
	View(ctx context.Context, issuer pki.IssuerID, read func(View) error) error
	// Compact rewrites the index that View reads, so that reading it is fastest. It removes certificates that have
	// expired and that a CRL has listed after their expiry. It writes in small steps with pauses, in which others can
	// write. If there is little to do, it does nothing. If ctx ends, it stops after a step. Compact does not change
	// what View returns.
	Compact(ctx context.Context, issuer pki.IssuerID) error
}

// RecordStore stores the newest CRL of every scope, and the last CRL number of every issuer.
type RecordStore interface {
	// TakeNumber takes the next CRL number of an issuer. The number is durable and is never taken again, even if it is
	// not used (RFC 5280 §5.2.3). at is the time of the log entry.
	TakeNumber(ctx context.Context, issuer pki.IssuerID, at time.Time) (*big.Int, error)
	// PutCRLs records CRLs in one transaction, when they are published. If one of them has a number that is not higher
	// than that of the recorded CRL of its scope, PutCRLs refuses all of them (crl.invalid).
	PutCRLs(ctx context.Context, crls []CRL, by pki.Actor, at time.Time) error
	// CRLs returns the newest CRL of every scope that has one. They are sorted by issuer and partition, and each base
	// precedes its delta.
	CRLs(ctx context.Context) ([]CRL, error)
}

// PointStore stores the distribution points in certificates.
type PointStore interface {
	// PutPoints records distribution points and makes them durable. at is the time of the log entries. Points that are
	// already recorded stay unchanged.
	PutPoints(ctx context.Context, points []Point, at time.Time) error
	// Points returns all distribution points in the order in which they were recorded.
	Points(ctx context.Context) ([]Point, error)
}
