// Package ra is the registration authority: it decides who may have which certificate. An Authenticator turns evidence
// into a claim, the policy turns the claim and the certification request into a ca.Request with guards, and the
// Registrar runs both, for first certificates and for renewals, and keeps identities and enrollment tokens.
//
// It refuses whatever nobody granted: identities that are not registered, names and extensions in a certification
// request beyond the identity's own, keys that belong to a CA or to somebody else or were ever compromised, and
// everything under /brevet/, which only Brevet's own parts can have.
//
// Certification requests follow RFC 2986, identities the SPIFFE ID specification.
package ra
