// Package grpcapi is the front door over gRPC: it decodes requests, calls ra and revocation, and encodes responses. It
// decides nothing: callers are authorized by package authz, and [ra.Registrar] decides what is issued.
//
// It refuses a call by its headers if the caller may not make it or makes too many, before its message is read. It
// refuses a message that is too large, does not decode or is late, and an RPC that maps to no operation. Refusals map to
// status codes in one table, with typed details; a caller never sees the text of an internal error.
//
// TLS 1.3 only (RFC 8446); identities are SPIFFE IDs (X509-SVID §2).
package grpcapi
