package frontdoor

import (
	"context"
	"net/http"
	"net/netip"
	"time"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/server/authz"
	"github.com/brevet-pki/brevet/server/outcome"
)

// Door is a protocol that a [Server] serves.
type Door struct {
	Name string // in metrics and in the log
	// MinVersion is the oldest version of TLS that the door accepts, such as tls.VersionTLS13.
	MinVersion uint16
	Routes     []Route
	// Fail encodes an error of a request to one of the routes. The client must not get the text of an error that is not a
	// [pki.Refusal]. StatusOf and RetryAfter say more about an error.
	Fail func(r *Request, err error) Response
}

// Route is the requests of a door with one method and one path.
type Route struct {
	Method    string
	Path      string // as in patterns of http.ServeMux
	Operation authz.Operation
	// MaxBody is the maximum size of the body in bytes. A larger body is refused (rule request.size).
	MaxBody int64
	// Handle responds to a request, or returns an error for Door.Fail.
	Handle func(ctx context.Context, r *Request) (Response, error)
}

// Request is a request that has arrived, and whose caller may call the operation of its route.
type Request struct {
	*http.Request
	Content []byte // the body
	// Caller is the caller that the client certificate proves. It is zero for operations that any caller may call.
	Caller authz.Caller
	// Chain is what the client sent in its TLS handshake: certificates in DER, its own first. The handshake proves that the
	// client has the key of the first. Nothing else about them is verified.
	Chain [][]byte
	// Old means that the connection has reached its maximum age, and ends with the response. The proof of its handshake
	// is then too old to be evidence.
	Old bool
	// From is the client's address. It is the zero Addr if the connection has none.
	From netip.Addr
}

// Response is the response to a request.
type Response struct {
	Status int // 200 if it is zero
	Header http.Header
	Body   []byte
}

// StatusOf returns the status of HTTP for an error: that of the refusal's rule, 503 for a temporary failure of the
// server, and otherwise 500.
func StatusOf(err error) int {
	if r, ok := pki.AsRefusal(err); ok {
		return outcome.Of(r.Rule).HTTP
	}
	if pki.IsTemporary(err) {
		return http.StatusServiceUnavailable
	}
	return http.StatusInternalServerError
}

// RetryAfter returns the value of the header Retry-After for an error (RFC 9110 §10.2.3): a number of whole seconds, at
// least 1. If the error has no time for a retry, it returns false.
func RetryAfter(err error) (seconds int, ok bool) {
	after := pki.RetryAfter(err)
	if after <= 0 {
		return 0, false
	}
	return int((after + time.Second - 1) / time.Second), true
}
