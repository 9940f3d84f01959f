// Package frontdoor serves protocols over HTTPS on one listener. It does for them what package grpcapi does for gRPC:
// it limits handshakes, headers, bodies and connections, authenticates callers for each request, admits requests by
// their operation and source, records refusals, and recovers from panics.
//
// A protocol is a [Door]: a list of routes that decode a request, call package ra and encode the response, and a function
// that encodes errors. A door has no rule of its own.
package frontdoor
