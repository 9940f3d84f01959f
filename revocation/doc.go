// Package revocation changes the status of certificates. An [Authority] records a change durably and notifies the responders
// of its process before it returns, and asks for new CRLs. A bulk revocation is in effect at once for all its members, and
// their records follow in steps. [VerifyCompromise] verifies that a caller possesses the private key that it reports.
//
// It refuses orders whose reason does not fit the action (RFC 5280 §5.3.1).
//
// Package crl, below it, makes the CRLs. Package responder answers OCSP and serves the CRLs.
package revocation
