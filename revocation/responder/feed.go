package responder

import (
	"context"
	"time"

	"github.com/brevet-pki/brevet/pki"
)

// Feed provides the statuses for a Responder, from the store of this process or of another one. Its methods are safe
// for concurrent use.
type Feed interface {
	// Snapshot calls visit with the status of every certificate that has not expired at the given time. It returns the
	// index of a log entry. The statuses include this entry and all earlier ones, and may include later ones.
	Snapshot(ctx context.Context, at time.Time, visit func(pki.StatusChange) error) (index uint64, err error)
	// Changes reads the log entries after an index: limit entries, or fewer if the log ends before that. It calls apply
	// with their status changes, some thousands at a time, and returns the index of the last entry that it read. If an
	// entry starts a bulk revocation, the changes include those of all certificates that it selects, although the
	// records are changed later. If Changes has read fewer than limit entries, the Responder knows all statuses. At the
	// end of the log it returns the given index. apply must not keep its argument. If the next entry has left the log, the
	// error has a method NeedsSnapshot() bool that returns true.
	//
	// Entries that have no index yet are not in the feed. The feed gets them soon.
	Changes(ctx context.Context, after uint64, limit int, apply func([]pki.StatusChange)) (last uint64, err error)
	// Written returns the number of log entries, including those that have no index yet. An entry that was durable before
	// the call will have at most this index. Changes has reached the state at the time of the call when it has returned the
	// entry with this index.
	Written(ctx context.Context) (uint64, error)
}
