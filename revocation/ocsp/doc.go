// Package ocsp parses requests and signs responses of the Online Certificate Status Protocol (OCSP): RFC 6960, as
// profiled by RFC 5019, with the nonces of RFC 9654. It encodes, decodes and signs; the caller supplies the statuses.
//
// A nonce of 1 to [MaxNonce] bytes is copied into the response. RFC 9654 §2.1 requires this for 16 to 32 octets and
// leaves other lengths to the responder; clients that follow it send at least 32.
//
// The package refuses a request that is not DER, is larger than [MaxRequestSize] or names more than [MaxIDs]
// certificates. It also refuses an empty nonce, a nonce over [MaxNonce] bytes, and an unknown critical extension. The
// signature of a signed request is not checked, because every client gets the same response. Responses identify their
// responder by key hash and carry its certificate.
package ocsp
