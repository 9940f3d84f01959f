// Package ocsp parses requests and signs responses of the Online Certificate Status Protocol (OCSP), as in RFC 6960,
// the profile in RFC 5019, and RFC 9654 for nonces. It encodes, decodes and signs; the caller supplies the statuses.
//
// A nonce of 1 to [MaxNonce] bytes is copied into the response. RFC 9654 §2.1 requires this for 16 to 32 bytes, and
// lets the responder decide about other lengths. Clients that follow the RFC send at least 32.
//
// The package refuses a request that is not DER, is larger than [MaxRequestSize] or names more than [MaxIDs]
// certificates. It also refuses an empty nonce, a nonce over [MaxNonce] bytes, and an unknown critical extension. It
// does not check the signature of a signed request, because every client gets the same response. A response identifies
// its responder by key hash, and contains the responder's certificate.
package ocsp
