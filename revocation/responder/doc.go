// Package responder is an OCSP responder (RFC 6960 and 5019, nonces of RFC 9654) that also serves CRLs and CA
// certificates over HTTP. It keeps every status in memory, which it reads from a [Feed]; [Responder.Apply] takes the
// changes of its own process at once. It signs with a delegated key for each issuing CA.
//
// A response about one certificate, without nonce, is signed once, cached, and renewed while clients request it. Any
// other response is signed for its request only. Signing has a queue of its own with a limit, so that a flood of
// requests leaves processors for responses from the cache.
//
// The responder refuses:
//   - to say good of a certificate that was not issued
//   - to say anything but tryLater when its statuses are older than its limit, or without a valid delegate
//   - to send a cached response after the status in it has changed
//   - to replace a CRL by an older one
//   - to answer one request about two CAs, because no delegate can sign for both (unauthorized)
//
// thisUpdate is the time at which the status was last known to be current, not the time of the signature.
package responder
