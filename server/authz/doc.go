// Package authz authenticates and authorizes callers. One table maps every operation to the callers that may call it,
// and to the permission that operators need.
// An [Authorizer] authenticates callers by their client certificates and checks them against the table: when the
// headers of a request arrive, when its message has arrived, and repeatedly while a stream is open.
//
// It refuses an operation that is not in the table. It refuses a client certificate that does not verify, is not valid
// now, is for another use or is revoked (RFC 5280 §6). It does not depend on gRPC or HTTP: a package that serves a
// protocol maps its requests to operations, and passes the certificate from the TLS handshake.
package authz
