// Package jws parses and verifies the signed requests of ACME (RFC 8555 §6.2): JSON Web Signatures (RFC 7515) with one
// signature, in the flattened JSON serialization.
//
// It accepts the algorithms ES256, ES384, EdDSA with Ed25519, and RS256. It refuses other algorithms, unprotected
// headers, the general serialization, critical and unencoded extensions (RFC 7515 §4.1.11, RFC 7797), JSON with
// duplicate members, requests with both or neither of `jwk` and `kid`, and weak keys. An external account binding
// (RFC 8555 §7.3.4) is a JWS inside of a request: it accepts HS256, HS384 and HS512, and nothing else does.
//
// Parse checks the form and does no cryptography. The payload is available only from [Message.Verify]. The package does
// not know nonces, accounts and the time.
package jws
