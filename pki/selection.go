package pki

import (
	"fmt"
	"strings"
	"time"
)

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

// Check returns the refusal of a selection with a text or time that no certificate can have, or nil.
func (s Selection) Check() error {
	if err := s.Label.Check(); err != nil {
		return err
	}
	if err := CheckProfileName(s.Profile); err != nil {
		return err
	}
	if !s.IssuedFrom.IsZero() && !s.IssuedUntil.IsZero() && !s.IssuedFrom.Before(s.IssuedUntil) {
		return Refuse(RuleRequest, "give a start of the time of issue that is before its end", "no certificate is issued from %s until %s",
			s.IssuedFrom.UTC().Format(time.RFC3339), s.IssuedUntil.UTC().Format(time.RFC3339))
	}
	for _, t := range []time.Time{s.IssuedFrom, s.IssuedUntil} {
		if !t.IsZero() && (t.Year() < 1972 || t.Year() > 6428) {
			return Refuse(RuleRequest, "give a time between the years 1972 and 6428", "no certificate is issued at %s", t.UTC().Format(time.RFC3339))
		}
	}
	return nil
}

// Check returns the refusal of a label to select by that no identity can have, or nil. The zero value passes.
func (l Label) Check() error {
	if !l.IsZero() && l.Name == "" {
		return Refuse(RuleRequest, "write it NAME=VALUE", "the selection's label has no name")
	}
	for _, text := range []string{l.Name, l.Value} {
		if err := CheckText("the selection's label", text); err != nil {
			return err
		}
	}
	return nil
}

// CheckProfileName returns the refusal of a text to select by that cannot be the name of a profile, or nil. No text passes.
func CheckProfileName(name string) error {
	if len(name) > MaxText || strings.ContainsFunc(name, func(c rune) bool { return c < 0x20 || c > 0x7e }) {
		return Refuse(RuleRequest, fmt.Sprintf("use printable ASCII of %d bytes at most", MaxText), "the selection's profile is malformed")
	}
	return nil
}
