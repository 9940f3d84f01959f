// Package pki defines the values that every other package uses: serial numbers, issuer and key identifiers, revocation
// reasons, SPIFFE IDs, actors, guards and refusals.
//
// The values are opaque. A [Serial] or [SPIFFEID] is well-formed, unless it is the zero value. The package only parses,
// formats and checks. It reads no clock, generates no random numbers and opens no files, so that every package can
// import it.
//
// Serial numbers and reasons are those of RFC 5280. Identities follow the SPIFFE ID specification.
package pki
