package ca

import (
	"errors"
	"time"
)

// ErrFenced means that another process has taken over the journal. This process signs nothing from then on.
var ErrFenced = errors.New("another process has taken over this store: stop one of the two")

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
