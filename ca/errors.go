package ca

import (
	"errors"
	"fmt"
	"time"
)

// ErrFenced means that another process has fenced the epoch. What the epoch has not recorded is not delivered.
var ErrFenced = errors.New("another server has fenced this one")

// ErrReplaced means that another process of the same server has begun a newer epoch. This process signs nothing from then
// on. The error wraps ErrFenced.
var ErrReplaced = fmt.Errorf("another process runs under this server's name: stop one of the two, and restart the other: %w", ErrFenced)

// unavailable is a temporary failure: of the HSM, of the store, or because the request's context ended.
type unavailable struct {
	what  string
	after time.Duration
	cause error
}

func (e *unavailable) Error() string {
	if e.cause == nil {
		return e.what
	}
	return e.what + ": " + e.cause.Error()
}

func (e *unavailable) Unwrap() error { return e.cause }

// Temporary reports that the same request, with the same request ID, may succeed later.
func (e *unavailable) Temporary() bool { return true }

// RetryAfter returns how long to wait before a retry.
func (e *unavailable) RetryAfter() time.Duration { return e.after }
