// Package responder answers for certificates from memory: OCSP over HTTP (RFC 6960 and 5019, nonces of RFC 9654), the
// CRLs that it is given, and the certificates of the CAs. It follows a Feed of statuses, takes changes of its own
// process at once, and signs with a delegated key for every issuing CA.
//
// An answer about one certificate, without nonce, is signed once and kept, and renewed while it is asked for. Others are
// signed for their request alone. Signing has budgets, so that no flood takes all processors from what is in memory.
//
// What it will not do: say good of a certificate that was not issued; say anything but tryLater when what it knows is
// older than its limit, or when it has no valid delegate; answer from a cache what a change has made untrue; replace a
// CRL by an older one; answer one request about two CAs, since no one delegate can sign that (unauthorized).
//
// thisUpdate is when the status was last known to be current, not when the answer was signed.
package responder
