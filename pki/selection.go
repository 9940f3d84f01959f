package pki

import "time"

// Selection matches the delivered certificates that satisfy every field that is set. The zero value matches all of them.
// Lists and bulk revocations select by it. A certificate that was never delivered has neither identity nor profile, is
// revoked, and matches no selection but the zero value.
type Selection struct {
	// Issuer is the CA that issued it.
	Issuer IssuerID
	// Identity is its holder.
	Identity SPIFFEID
	// LineageOf is the certificate that it was renewed from, over any number of renewals, or itself. A store knows the key
	// of a renewal. So a certificate is of the lineage if it is the first one, or if it is the same identity's, was recorded
	// after a certificate of the lineage, and has the key that this one was renewed with. If a renewal kept its key, all
	// later certificates of that key are of the lineage: the holder of one of them can use the others.
	LineageOf CertRef
	// Key is its public key.
	Key KeyHash
	// Profile is what it was issued under.
	Profile string
	// Label is one that its holder has now.
	Label Label
	// IssuedFrom and IssuedUntil bound the time of its issue, to the millisecond, the first included and the second not.
	// notBefore is earlier if the profile backdates.
	IssuedFrom, IssuedUntil time.Time
}

// Label is a label of identities: a name with its value. The zero value is none.
type Label struct{ Name, Value string }

// IsZero reports whether l is no label.
func (l Label) IsZero() bool { return l == Label{} }

// IsZero reports whether no field is set.
func (s Selection) IsZero() bool {
	return s.Issuer.IsZero() && !s.OfOneIdentity() && s.Profile == "" && s.Label.IsZero() && s.IssuedFrom.IsZero() && s.IssuedUntil.IsZero()
}

// OfOneIdentity reports whether all certificates that s can match belong to one identity.
func (s Selection) OfOneIdentity() bool {
	return !s.Identity.IsZero() || !s.LineageOf.IsZero() || !s.Key.IsZero()
}
