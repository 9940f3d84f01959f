// Package revocation takes certificates back. An Authority records changes of status durably, tells the responders
// of its process before it returns, and keeps a full CRL of every CA it signs for: on a schedule, and at once after
// a change. It takes in CRLs that were signed elsewhere, such as an offline root's, and warns before they go stale.
//
// It refuses orders whose reason does not fit the action, CRLs that are not a known CA's, not current or not complete,
// and anything older than what is recorded. CRLs follow RFC 5280 §5: full, without an issuing distribution point,
// which is what every relying party can read.
//
// Package responder, below it, answers OCSP and serves the CRLs.
package revocation
