// Package responder is an OCSP responder (RFC 6960 and 5019, with the nonces of RFC 9654). It also serves CRLs and CA
// certificates over HTTP. It keeps all statuses in memory, and reads them from a [Feed]. [Responder.Apply] adds the
// changes of its own process at once. It signs with a delegated key for each issuing CA.
//
// A response about one certificate, without a nonce, is signed once and cached. While clients request it, it is
// renewed. Every other response is signed for one request only. The number of responses that are signed at the same
// time is limited, and so is the number of requests that wait for a signature. During a flood of requests, the
// processors therefore still send responses from the cache.
//
// The responder never:
//   - reports a certificate as good that was not issued
//   - sends any response except tryLater if its statuses are too old, or if it has no valid delegate
//   - sends a cached response after the status in it has changed
//   - replaces a CRL by an older one
//   - reports statuses of two CAs in one response, because no delegate can sign for both (it sends unauthorized)
//
// thisUpdate is the time at which the status was last known to be current, not the time of the signature.
package responder
