package responder

import (
	"context"
	"time"

	"github.com/brevet-pki/brevet/pki"
)

// Feed is the source of a responder's statuses: the store of this process or of another one. Methods are safe for
// concurrent use.
type Feed interface {
	// Snapshot calls visit with the status of every certificate that has not expired at the given time. It returns the
	// index of the last log entry that is certainly contained in these statuses; they may include newer entries.
	Snapshot(ctx context.Context, at time.Time, visit func(pki.StatusChange) error) (index uint64, err error)
	// Changes reads limit log entries after an index, or fewer at the end of the log, whatever their size: a Responder
	// that has read fewer knows all statuses. It returns their status changes and the index of the last entry read. At
	// the end of the log it returns no changes and the given index.
	Changes(ctx context.Context, after uint64, limit int) (changes []pki.StatusChange, last uint64, err error)
}
