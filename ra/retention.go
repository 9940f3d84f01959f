package ra

import (
	"context"
	"time"

	"github.com/brevet-pki/brevet/pki"
)

// RetentionRecords are the records as they grow old. What has left them is in the log, which loses nothing.
type RetentionRecords interface {
	// Advance moves the age of the records on by a span of time that has passed, durably, though not beyond now, and
	// returns the earlier of both. So a clock that is set ahead is not believed at once, and one that is set back is. Age
	// begins at the newest log entry's time.
	Advance(ctx context.Context, by time.Duration, now time.Time) (time.Time, error)
	// Expire takes one step: in one transaction, with a log entry that counts what has left, if anything has. A
	// certificate leaves that ended before the step's time and before the newest log entry's; one that is revoked, on
	// hold or was never released leaves once a CRL of its issuer was issued after its end (RFC 5280 §3.3). With it go its
	// request ID, and its keys, unless another certificate names them or they were compromised. Tokens leave likewise, by
	// their own end. Identities stay. Whoever waits to write when a step ends is served before the next step is.
	Expire(ctx context.Context, s ExpiryStep) (Expired, error)
	// Waiting counts the certificates that ended before a time, but no more than most.
	Waiting(ctx context.Context, before time.Time, most int) (int, error)
	// Census counts what there is, as of a time and with the time before whose end records leave. It holds up no writer.
	Census(ctx context.Context, at, before time.Time) (Census, error)
}

// ExpiryStep is one step through what has ended, the oldest first.
type ExpiryStep struct {
	Before time.Time
	At     time.Time // for the log
	// After is where the last step ended; the zero value is the beginning.
	After Place
	// Limit is how many certificates and how many tokens the step looks at.
	Limit int
}

// Place is one among the certificates in the order of their ends.
type Place struct {
	NotAfter time.Time
	Row      int64
}

// Expired is what has left with one step.
type Expired struct {
	Certificates, Tokens, Keys int
	// Next is where the next step goes on.
	Next Place
	// More says that the step ended at its limit.
	More bool
}

// Census is what the records hold.
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

// Count is a number of records. Where AtLeast is set, there are more: counting ended there.
type Count struct {
	N       uint64
	AtLeast bool
}

// Add returns the sum of two counts.
func (c Count) Add(d Count) Count { return Count{c.N + d.N, c.AtLeast || d.AtLeast} }

// Less returns what is left of a count without another, as far as both are known.
func (c Count) Less(d Count) Count {
	return Count{c.N - min(c.N, d.N), c.AtLeast || d.AtLeast}
}
