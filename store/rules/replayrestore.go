package rules

import (
	"fmt"
	"time"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/translog"
)

// RestoredCause is the cause of the revocation of tokens and external keys by a restore.
const RestoredCause = "the store was restored from a backup"

// RestoreLog begins an epoch of the log, and voids what was open.
type RestoreLog struct{ translog.RestoredLog }

// AcceptRestore accepts a restore without the newest archive.
type AcceptRestore struct{ translog.AcceptedRestore }

func (RestoreLog) operation()    {}
func (AcceptRestore) operation() {}

// RestoredEntry is the log entry of a restore.
func RestoredEntry(r translog.RestoredLog, by pki.Actor, at time.Time) translog.Entry {
	return translog.Entry{Time: at, Actor: by, Action: translog.LogRestored, Outcome: translog.Done, Event: &r}
}

// AcceptedEntry is the log entry of the acceptance of a list.
func AcceptedEntry(list translog.Hash, by pki.Actor, at time.Time) translog.Entry {
	return translog.Entry{
		Time: at, Actor: by, Action: translog.RestoreAccepted, Outcome: translog.Done, Event: &translog.AcceptedRestore{List: list},
	}
}

// IncompleteError means that the restore of a store has not ended, or has not begun although the store lacks entries that a
// server has seen. Nothing may be served from it.
type IncompleteError struct{}

// Error says what the operator can do.
func (*IncompleteError) Error() string {
	return "nothing may be served from this store: a restore of it did not end, or a server has found that it lacks log entries; " +
		"if the log of a server has \"lacks log entry\", put the newest database in its place, such as the old primary, or stop all servers " +
		"and run brevet restore; otherwise run the same brevet restore again, or one with a newer archive if it refused that one"
}

// EndsServer returns true: after the restore, the log of the store is another one.
func (*IncompleteError) EndsServer() bool { return true }

// UnacceptedError means that an operator has not accepted what cannot be known after a restore. List is the SHA-256 of the list.
type UnacceptedError struct{ List translog.Hash }

// Error says what the operator can do.
func (e *UnacceptedError) Error() string {
	return fmt.Sprintf("the store was restored without the newest archive of its log, so revocations may be missing: read the list that brevet restore wrote, "+
		"and run brevet restore --accept %s", e.List)
}

// EndsServer returns true, as for an IncompleteError.
func (*UnacceptedError) EndsServer() bool { return true }
