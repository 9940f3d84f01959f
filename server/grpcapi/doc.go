// Package grpcapi serves the gRPC API brevet.v1: it decodes requests, calls ra and revocation, and encodes responses.
// It decides nothing itself: package authz authorizes callers, and [ra.Registrar] decides which certificates are
// issued.
//
// If the caller may not call an RPC, or calls too often, the package refuses the RPC when its headers have arrived,
// before it reads the message. It refuses a message that is too large, does not decode or is late, and an RPC
// that maps to no operation. One table maps refusals to status codes, with typed details. A caller never gets the text
// of an internal error.
//
// The package accepts only TLS 1.3 (RFC 8446). Identities are SPIFFE IDs (X509-SVID §2).
package grpcapi
