// Package authz decides who may call what. One table maps every operation to the callers that it is open to. An
// [Authorizer] authenticates callers by their client certificates and holds them against the table, when a request begins,
// when its message is used, and again while a stream is open.
//
// It refuses an operation that is not in the table, and a client certificate that does not verify, is not valid now, is for
// another use or is revoked (RFC 5280 §6). It does not know gRPC or HTTP: front doors map their requests to operations and
// give it the certificate of the TLS handshake.
package authz
