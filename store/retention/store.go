package retention

import (
	"context"
	"time"

	"github.com/brevet-pki/brevet/pki"
)

// Store stores records until they expire. A removed record stays in the log. Methods are safe for concurrent use. A
// change and its log entry are one durable transaction.
//
// If several servers share the store, Advance and Expire change nothing and return an error that wraps [pki.ErrNotLeader],
// unless this server leads.
type Store interface {
	// Advance advances the age of the records, durably, by the given duration, but not beyond now. It returns the earlier
	// of the age and now. A clock that is set forward therefore takes effect slowly, and one that is set back at once. The
	// age starts at the time of the newest log entry. The first call of another epoch than before ignores the duration,
	// because another server has advanced the age for a part of it.
	Advance(ctx context.Context, by time.Duration, now time.Time) (time.Time, error)
	// Expire removes the records of one step in one transaction. If it removes any, it writes a log entry with their
	// number.
	//
	// A certificate is removed if it expired before the step's time and before the newest log entry. If it is revoked, on
	// hold or was never delivered, a CRL must also have been issued after its expiry (RFC 5280 §3.3). Its request ID is
	// removed with it, and so are its keys, unless another certificate has them or they are compromised. Tokens are
	// removed after their own expiry, and so are consumed nonces, which are neither counted nor logged. Identities stay.
	// Other writers that wait at the end of a step are served before the next.
	Expire(ctx context.Context, s Step) (Expired, error)
	// Waiting counts the certificates that expired before a time, up to a maximum.
	Waiting(ctx context.Context, before time.Time, most int) (int, error)
	// Census counts the records as of a time. Those that expired before the second time count as waiting for removal. It
	// blocks no writer.
	Census(ctx context.Context, at, before time.Time) (Census, error)
}

// Step describes one step through the expired records, oldest first.
type Step struct {
	Before time.Time
	At     time.Time // for the log
	// After is the end of the previous step; zero for the first one.
	After Position
	// Limit is the maximum number of certificates, and of tokens, that the step examines.
	Limit int
}

// Position is a position among the certificates, which are ordered by expiry.
type Position struct {
	NotAfter time.Time
	Row      int64
}

// Expired counts the records that one step removed.
type Expired struct {
	Certificates, Tokens, Keys int
	// Next is the end of this step.
	Next Position
	// More means that the step ended at its limit.
	More bool
}

// Census counts the records of a store.
type Census struct {
	// Certificates by status. Unreleased counts those never delivered, which Revoked does not include.
	Good, OnHold, Revoked, Unreleased Count
	// Certificates by validity: valid ones, expired ones within the retention, and those that wait for removal.
	Unexpired, Expired, Waiting Count
	OldestNotAfter              time.Time // zero if there is no certificate
	Identities                  map[pki.IdentityState]Count
	// Tokens by use: those still valid, those used, and those that expired or were revoked unused.
	OpenTokens, SpentTokens, ExpiredTokens Count
	Keys, CompromisedKeys                  Count
	LogEntries                             uint64
	// Bytes is the size of the records on disk, and FreeBytes the part of it that is free for new records.
	Bytes, FreeBytes uint64
}

// Count is a number of records. AtLeast means that counting stopped there and that there may be more.
type Count struct {
	N       uint64
	AtLeast bool
}

// Add returns the sum of two counts.
func (c Count) Add(d Count) Count { return Count{c.N + d.N, c.AtLeast || d.AtLeast} }

// Less returns the difference of two counts, but not less than zero.
func (c Count) Less(d Count) Count {
	return Count{c.N - min(c.N, d.N), c.AtLeast || d.AtLeast}
}
