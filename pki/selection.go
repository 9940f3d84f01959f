package pki

import "time"

// Selection selects the certificates that satisfy every field that is set. Lists and bulk revocations use it. The zero
// value selects all certificates. A certificate that was never delivered has neither identity nor profile and is revoked.
// No selection but the zero value matches it.
type Selection struct {
	// Issuer is the issuing CA. Alone, it selects all certificates of the CA.
	Issuer IssuerID
	// Identity is the identity that the certificate was issued to.
	Identity SPIFFEID
	// LineageOf selects a certificate and all its renewals. The store records the key that a certificate was renewed with,
	// not the successor. A certificate therefore belongs to the lineage if it has the same identity, has the key that a
	// member was renewed with, and was recorded after that member. If renewals keep their key, the lineage includes all
	// later certificates with that key: the holder of one can use the others.
	LineageOf CertRef
	// Key is the certificate's public key.
	Key KeyHash
	// Profile is the profile that the certificate was issued with.
	Profile string
	// Label is a label of the certificate's identity.
	Label Label
	// IssuedFrom and IssuedUntil bound the time of issue, in whole milliseconds, the first inclusive and the second
	// exclusive. The time of issue is later than notBefore, which the profile backdates.
	IssuedFrom, IssuedUntil time.Time
}

// Label is a label of identities, a name with a value. The zero value is no label.
type Label struct{ Name, Value string }

// IsZero reports whether l is no label.
func (l Label) IsZero() bool { return l == Label{} }

// IsZero reports whether no field is set.
func (s Selection) IsZero() bool {
	return s.Issuer.IsZero() && !s.OfOneIdentity() && s.Profile == "" && s.Label.IsZero() && s.IssuedFrom.IsZero() && s.IssuedUntil.IsZero()
}

// OfOneIdentity reports whether the selection matches certificates of one identity at most. Those are few, and one
// transaction changes them all.
func (s Selection) OfOneIdentity() bool {
	return !s.Identity.IsZero() || !s.LineageOf.IsZero() || !s.Key.IsZero()
}
