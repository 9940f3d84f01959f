// Package crl makes certificate revocation lists. An [Updater] builds, signs and publishes the CRLs of every CA whose
// key it has, on a schedule and soon after a change: a full CRL, and for each partition a CRL and its delta. It also
// imports CRLs that were signed elsewhere, such as the CRL of an offline root, and warns before they expire.
//
// It refuses to import a CRL that is not from a known CA, not current, not complete, or older than the recorded one.
// CRLs follow RFC 5280 §5. A full CRL has no issuing distribution point, so that every relying party can read it.
package crl
