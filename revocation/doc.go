// Package revocation changes the status of certificates. An [Authority] makes a change durable, notifies the responders
// of its process and requests new CRLs. A bulk revocation is in effect at once for all certificates that it selects; it
// is applied to their records in steps. [VerifyCompromise] verifies that a caller holds the private key that it reports
// as compromised.
//
// The package refuses changes whose reason does not fit the action (RFC 5280 §5.3.1).
//
// Package crl, below this one, makes the CRLs. Package responder serves OCSP and the CRLs.
package revocation
