// Package ra implements the registration authority (RA). The RA decides which identity may have which certificate.
//
// A [Registrar] handles requests for first certificates ([Registrar.Enroll]), for renewals ([Registrar.Renew]) and
// operators' requests ([Registrar.Issue]). An [Authenticator] verifies the evidence of an enrollment and returns a
// [Claim]. The policy then turns the claim and the certification request (RFC 2986) into a [ca.Request] with guards. The
// Registrar also manages identities, which are named by SPIFFE IDs, and enrollment tokens.
//
// Everything that was not granted is refused:
//   - identities that are not registered
//   - names and extensions in a certification request that the identity does not have
//   - keys of a CA, keys of another identity, and keys that were ever compromised
//   - identities under /brevet/, which are reserved for operators and the parts of Brevet itself
package ra
