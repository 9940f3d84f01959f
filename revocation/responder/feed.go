package responder

import (
	"context"
	"time"

	"github.com/brevet-pki/brevet/pki"
)

// Feed is where a responder learns statuses from: the store of the same process, or another one's. Methods are safe
// for concurrent use.
type Feed interface {
	// Snapshot visits the status of every certificate not expired at the given time, and returns the index of a log
	// entry up to which the visited statuses are complete. They may be newer than that.
	Snapshot(ctx context.Context, at time.Time, visit func(pki.StatusChange) error) (index uint64, err error)
	// Changes returns the status changes of the log entries after an index, of at most limit entries, and the index of
	// the last entry read. At the end of the log that is the given index, and there are no changes.
	Changes(ctx context.Context, after uint64, limit int) (changes []pki.StatusChange, last uint64, err error)
}
