// Package pki defines the values that every other package uses: serial numbers, issuer and key identifiers, revocation
// reasons, SPIFFE IDs, actors, guards and refusals.
//
// The values are opaque: a [Serial] or [SPIFFEID] has been parsed and is well formed, unless it is the zero value. The
// package only parses, formats and checks. It reads no clock, draws no random numbers and opens no files, so that every
// package can import it.
//
// Serial numbers and reasons are those of RFC 5280. Identities follow the SPIFFE ID specification.
package pki
