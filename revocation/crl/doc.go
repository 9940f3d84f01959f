// Package crl signs and publishes certificate revocation lists. An [Updater] does so for every CA whose key it has, on
// a schedule and soon after a change. For each CA there is a full CRL, and for each partition of its certificates a CRL
// and a delta CRL. The Updater also imports CRLs that were signed elsewhere, such as that of an offline root, and warns
// before they expire.
//
// It refuses to import a CRL that is incomplete, not current, not from a known CA, or older than the recorded one. CRLs
// follow RFC 5280 §5. A full CRL has no issuing distribution point, because not every relying party supports this
// extension.
package crl
