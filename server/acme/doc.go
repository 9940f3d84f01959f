// Package acme is the ACME door of the HTTPS listener (RFC 8555, RFC 8738, RFC 9773 and draft-ietf-acme-profiles): it
// decodes requests, calls package ra/acme, and encodes responses. It has no rule about certificates of its own.
//
// Every request except those to the directory, to newNonce and to renewalInfo is a signed JWS, which package
// server/acme/jws verifies. The package refuses
//   - a request whose signature does not verify, or is for another URL: it compares with the configured external URL,
//     never with the Host header,
//   - a nonce that is not from this process, is over five minutes old, or was used before. A nonce is used only after
//     the signature has verified. The key that seals nonces is in the memory of the process, like the set of used nonces,
//     so that no nonce can be used again after a restart,
//   - a request about an object of another account, with the same response as if there were no such object,
//   - notBefore and notAfter in orders: the profile of a certificate determines how long it is valid.
//
// Challenges are validated by package server/acme/validation. A validation does not survive the process: the client
// starts it again.
package acme
