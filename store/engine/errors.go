package engine

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/pki"
)

// RetryLate is the wait before an operation is repeated that was too late.
const RetryLate = 500 * time.Millisecond

// Unavailable is a temporary failure of the store.
type Unavailable struct {
	What  string // the operation, and advice for the operator
	After time.Duration
	Cause error
	// Passes means that the cause passes without an operator, and that it has passed when a lease is renewed.
	Passes bool
}

// Error names the operation, the advice and the cause.
func (e *Unavailable) Error() string { return fmt.Sprintf("%s: %v", e.What, e.Cause) }

// Unwrap returns the cause.
func (e *Unavailable) Unwrap() error { return e.Cause }

// Temporary returns true: the same operation may succeed later.
func (e *Unavailable) Temporary() bool { return true }

// RetryAfter returns the wait before a retry.
func (e *Unavailable) RetryAfter() time.Duration { return e.After }

// IsPassing returns Passes.
func (e *Unavailable) IsPassing() bool { return e.Passes }

// Advice is what an operator should do about an error of the database that may pass.
type Advice struct {
	Text  string
	After time.Duration // the wait before a retry
	// Passes means that the error passes without an operator, and that it has passed when a lease is renewed.
	Passes bool
}

// Fail wraps an error of the database with the operation. advise returns the advice about an error that is temporary. Fail
// returns refusals, [ca.ErrFenced] and [Unavailable] unchanged.
func Fail(what string, err error, advise func(error) (Advice, bool)) error {
	if _, refused := pki.AsRefusal(err); err == nil || refused || errors.Is(err, ca.ErrFenced) {
		return err
	}
	var soft *Unavailable
	if errors.As(err, &soft) {
		return err
	}
	if advice, ok := advise(err); ok {
		return &Unavailable{what + ": " + advice.Text, advice.After, err, advice.Passes}
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return &Unavailable{What: what + ": no answer in time", After: RetryLate, Cause: err}
	}
	return fmt.Errorf("%s: %w", what, err)
}
