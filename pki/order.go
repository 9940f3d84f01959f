package pki

import (
	"crypto/sha256"
	"slices"
)

// Order identifies an ACME order for which a certificate is issued. Its account must be valid, all of its authorizations
// must be valid, and it must neither have expired nor have a certificate. The zero value identifies no order.
type Order struct {
	// ID is also the request ID of the certificate.
	ID RequestID
	// Names is the digest of the certificate's identity and names, see [DigestNames].
	Names NamesDigest
	// MaxUnexpired is the maximum number of unexpired certificates that accounts have ordered for the identity, with whatever
	// names and whatever their status. The new certificate counts. Zero means that there is no maximum.
	MaxUnexpired int
}

// IsZero reports whether o is the zero value, which identifies no order.
func (o Order) IsZero() bool { return o.ID.IsZero() }

// CheckUnexpired returns a refusal if an identity for which accounts have ordered n unexpired certificates may not get
// another one. Otherwise it returns nil.
func (o Order) CheckUnexpired(id SPIFFEID, n int) *Refusal {
	if o.MaxUnexpired == 0 || n < o.MaxUnexpired {
		return nil
	}
	return Refuse(RuleMaxUnexpired, "wait until some have expired, order certificates with more names each, or raise max_unexpired of the profile",
		"%s has %d unexpired certificates by ACME with different sets of names, and may have %d", id, n, o.MaxUnexpired)
}

// NamesDigest identifies an identity together with a set of names. It is the beginning of a SHA-256.
type NamesDigest [16]byte

// DigestNames returns the digest of an identity and a set of names, whose order does not matter.
func DigestNames(id SPIFFEID, names []string) NamesDigest {
	h := sha256.New()
	h.Write([]byte(id.String()))
	for _, n := range slices.Sorted(slices.Values(names)) {
		h.Write([]byte{0}) // is in no name
		h.Write([]byte(n))
	}
	return NamesDigest(h.Sum(nil)[:16])
}
