package pki

import "errors"

// ErrNotLeader means that a store has changed nothing, because another server leads. Of the servers that share a store, the
// leader alone does the work that must be done once. It is the one whose epoch is the oldest that is not fenced, so that a
// server learns by asking again when it has to lead.
var ErrNotLeader = errors.New("another server leads")
