// Package frontdoor is what HTTPS doors share.
package frontdoor

import (
	"context"
	"net/http"
	"net/netip"

	"github.com/brevet-pki/brevet/server/authz"
)

// Door is a protocol that the HTTPS listener serves.
type Door struct {
	Name       string
	MinVersion uint16
	Routes     []Route
	Fail       func(r *Request, err error) Response
}

// Route is a route.
type Route struct {
	Method, Path string
	Operation    authz.Operation
	MaxBody      int64
	Handle       func(ctx context.Context, r *Request) (Response, error)
}

// Request is a request whose headers and body have arrived.
type Request struct {
	*http.Request
	Content []byte
	Caller  authz.Caller
	Chain   [][]byte
	From    netip.Addr
}

// Response is a response.
type Response struct {
	Status int
	Header http.Header
	Body   []byte
}
