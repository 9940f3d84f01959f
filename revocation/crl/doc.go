// Package crl makes certificate revocation lists. An [Updater] builds and signs the CRLs of every CA whose key it has, on a
// schedule and soon after a change, and publishes them: a full CRL, and one for each partition with its delta. It imports
// CRLs that were signed elsewhere, such as an offline root's, and warns before they expire.
//
// It refuses CRLs that are not a known CA's, not current or not complete, and anything older than what is on record. CRLs
// follow RFC 5280 §5. A full CRL has no issuing distribution point, so every relying party can read it.
package crl
