// Package nonce seals the challenges that evidence responds to. A sealed challenge contains everything that a server
// needs to accept the response, so that the server which made it stores nothing, and any other server with the same
// store can open it.
//
// A challenge is valid for [Lifetime]. It belongs to a purpose, a kind of evidence, a key and a request (see
// [Binding]), and contains a random [pki.Nonce]. The store consumes the nonce in the transaction that records the
// certificate, which is why a challenge serves for one certificate on all servers together.
//
// [Sealer.Open] refuses a challenge that was changed, sealed by another CA, or sealed before the log was forked by a
// restore; a challenge for another purpose, kind, key or request; and an expired challenge. It does not know whether a
// nonce was consumed.
//
// The encryption is XChaCha20-Poly1305 (draft-irtf-cfrg-xchacha-03) with a random nonce. AES-GCM allows 2^32 random
// nonces for a key, and callers without a credential could use them up. The key is derived from the store's sealing key
// and the log epoch with HKDF-SHA-256 (RFC 5869).
package nonce
