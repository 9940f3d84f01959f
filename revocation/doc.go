// Package revocation changes the status of certificates. An [Authority] makes a change durable, notifies the responders
// of its process, and requests new CRLs. A bulk revocation takes effect at once for all certificates that it selects,
// but their records are changed in steps. [VerifyCompromise] checks a report that a private key is compromised: the
// caller must sign it with that key.
//
// The package refuses changes whose reason does not fit the action (RFC 5280 §5.3.1).
//
// The CRLs are made in package crl, below this one. Package responder serves OCSP and the CRLs.
package revocation
