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
}

// IsZero reports whether o is the zero value, which identifies no order.
func (o Order) IsZero() bool { return o.ID.IsZero() }

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
