// Package server is Brevet's process from the inside: gRPC handlers for agents and operators, the public HTTP port, the
// interceptor that knows every caller, and the lifecycle of all parts. Handlers map messages to domain types and errors
// to status codes, and decide nothing.
//
// It refuses a call that the access table does not allow, and a call that is not in the table; a client certificate
// that does not verify, is out of its time, is for another use or is revoked, on every call and not only in the
// handshake; and calls that there is no room for, or that come more often than they may, with the time to come back at.
// A caller never sees an internal error's text.
//
// TLS 1.3 only (RFC 8446); identities are SPIFFE IDs (X509-SVID §2).
package server
