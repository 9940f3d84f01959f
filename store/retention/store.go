package retention

import (
	"context"
	"time"

	"github.com/brevet-pki/brevet/pki"
)

// Store keeps records until they expire. A record that has left is still in the log, which loses nothing. Methods are safe for
// concurrent use. A change and its log entry are one durable transaction.
type Store interface {
	// Advance adds a span of time that has passed to the age of the records, durably, up to now, and returns the earlier of
	// both. So a clock that is set ahead takes effect slowly, and one that is set back at once. Age begins at the newest log
	// entry's time.
	Advance(ctx context.Context, by time.Duration, now time.Time) (time.Time, error)
	// Expire removes the records of one step in one transaction, with a log entry that counts them, if there are any. A
	// certificate leaves if it expired before the step's time and before the newest log entry's. One that is revoked, on hold
	// or was never delivered leaves once a CRL of its issuer was issued after its end (RFC 5280 §3.3). With it go its request
	// ID, and its keys, unless another certificate names them or they were compromised. Tokens leave likewise, by their own
	// end. Identities stay. Writers that wait when a step ends are served before the next step.
	Expire(ctx context.Context, s Step) (Expired, error)
	// Waiting counts the certificates that expired before a time, up to most.
	Waiting(ctx context.Context, before time.Time, most int) (int, error)
	// Census counts the records at a time. Records that expired before the second time wait to leave. It blocks no writer.
	Census(ctx context.Context, at, before time.Time) (Census, error)
}

// Step is one step through the expired records, the oldest first.
type Step struct {
	Before time.Time
	At     time.Time // for the log
	// After is where the last step ended; the zero value is the beginning.
	After Place
	// Limit is how many certificates and how many tokens the step looks at.
	Limit int
}

// Place is a position among the certificates in the order of their ends.
type Place struct {
	NotAfter time.Time
	Row      int64
}

// Expired counts the records that left with one step.
type Expired struct {
	Certificates, Tokens, Keys int
	// Next is where the next step begins.
	Next Place
	// More says that the step ended at its limit.
	More bool
}

// Census counts the records of a store.
type Census struct {
	// Certificates by state. Those that were never released are revoked, and counted apart.
	Good, OnHold, Revoked, Unreleased Count
	// Certificates by their end: those alive, those that ended and stay for a while, and those that wait to leave.
	Unexpired, Expired, Waiting Count
	OldestNotAfter              time.Time // zero where there is no certificate
	Identities                  map[pki.IdentityState]Count
	// Tokens by what became of them: those that may still be used, those that were, those that ended or were revoked before.
	OpenTokens, SpentTokens, ExpiredTokens Count
	Keys, CompromisedKeys                  Count
	LogEntries                             uint64
	// Bytes are what the records take on disk, and FreeBytes what of it is left for new ones.
	Bytes, FreeBytes uint64
}

// Count is a number of records. If AtLeast is set, there are more: counting ended there.
type Count struct {
	N       uint64
	AtLeast bool
}

// Add returns the sum of two counts.
func (c Count) Add(d Count) Count { return Count{c.N + d.N, c.AtLeast || d.AtLeast} }

// Less returns the difference of two counts, as far as both are known.
func (c Count) Less(d Count) Count {
	return Count{c.N - min(c.N, d.N), c.AtLeast || d.AtLeast}
}
