package jwt

import "time"

// unavailable is a temporary failure of an issuer or of a cluster.
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

// Temporary reports that the same token may be accepted later.
func (*unavailable) Temporary() bool { return true }

// RetryAfter returns how long to wait before a retry.
func (e *unavailable) RetryAfter() time.Duration { return e.after }
