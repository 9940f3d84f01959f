// Package ocsp reads requests and writes responses of the Online Certificate Status Protocol: RFC 6960, as the
// profile of RFC 5019 narrows it, with the nonces of RFC 9654. It is a codec and a signature, and knows no status.
//
// A nonce of 1 to MaxNonce octets is repeated. RFC 9654 §2.1 demands that of a responder for 16 to 32 octets and leaves the
// others to it; clients that follow it send 32 at least.
//
// It refuses what is not DER, what is larger than MaxRequestSize or names more than MaxIDs certificates, nonces of
// no or more than MaxNonce octets, and critical extensions that it does not know. The signature of a signed request
// is skipped: whoever asks gets the same answer. Responses name their responder by key hash and carry its certificate.
package ocsp
