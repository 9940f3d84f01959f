// Package pki holds the values that every part of Brevet speaks: serial numbers, issuer and key
// identifiers, revocation reasons, SPIFFE IDs, actors, guards and refusals.
//
// The values are opaque: a Serial or a SPIFFEID that exists has been parsed and is well formed. The
// package parses and formats and does nothing else. It refuses to read a clock, draw a random number
// or touch a file, so that every other package can depend on it.
//
// RFC 5280 names the serial numbers and reasons, the SPIFFE ID specification the identities.
package pki
