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
	// Changes reads the log entries after an index: limit entries, or fewer if the log ends before that. It returns
	// their status changes, and the index of the last entry that it read. If it has read fewer than limit entries, the
	// Responder knows all statuses. At the end of the log it returns no changes, and the given index.
	Changes(ctx context.Context, after uint64, limit int) (changes []pki.StatusChange, last uint64, err error)
}
