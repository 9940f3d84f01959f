package acme

import "time"

// ParseCertID is for the fuzz target of identifiers of certificates.
var ParseCertID = parseCertID

// NewSmallNonceSet returns a set in which one generation has n nonces at most.
func NewSmallNonceSet(clock func() time.Time, n int) *NonceSet {
	s := NewNonceSet(clock)
	s.maxInNewer = n
	return s
}
