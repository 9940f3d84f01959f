package pki

import (
	"fmt"
	"strings"
	"time"
)

// Selection selects the certificates that match every field that is set. Lists and bulk revocations use it. The zero
// value selects all certificates. A certificate that was never delivered has no identity and no profile, and is
// revoked. Only the zero value selects it.
type Selection struct {
	// Issuer is the issuing CA. If only this field is set, all certificates of the CA are selected.
	Issuer IssuerID
	// Identity is the identity of the certificate.
	Identity SPIFFEID
	// LineageOf selects a certificate and all its renewals. The store records the key with which a certificate was
	// renewed, but not the new certificate. A certificate therefore belongs to the lineage if it has the same identity,
	// has the key with which a member was renewed, and was recorded after that member. If renewals keep the key, the
	// lineage includes all later certificates with that key: the holder of one can use the others.
	LineageOf CertRef
	// Key is the certificate's public key.
	Key KeyHash
	// Profile is the profile with which the certificate was issued.
	Profile string
	// Label is a label of the certificate's identity.
	Label Label
	// IssuedFrom (inclusive) and IssuedUntil (exclusive) limit the time of issue, in whole milliseconds. The time of
	// issue is later than notBefore, which is back-dated as the profile says.
	IssuedFrom, IssuedUntil time.Time
}

// Label is a label of an identity: a name with a value. The zero value is no label.
type Label struct{ Name, Value string }

// IsZero reports whether l is no label.
func (l Label) IsZero() bool { return l == Label{} }

// IsZero reports whether no field is set.
func (s Selection) IsZero() bool {
	return s.Issuer.IsZero() && !s.OfOneIdentity() && s.Profile == "" && s.Label.IsZero() && s.IssuedFrom.IsZero() && s.IssuedUntil.IsZero()
}

// OfOneIdentity reports whether the selection can only match certificates of one identity. These are few, and one
// transaction can change all of them.
func (s Selection) OfOneIdentity() bool {
	return !s.Identity.IsZero() || !s.LineageOf.IsZero() || !s.Key.IsZero()
}

// Check returns a refusal if the selection contains a text or time that no certificate can have. Otherwise it returns
// nil.
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

// Check returns a refusal if no identity can have the label. It returns nil otherwise, and for the zero value.
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

// CheckProfileName returns a refusal if no profile can have the name. It returns nil otherwise, and for an empty name.
func CheckProfileName(name string) error {
	if len(name) > MaxText || strings.ContainsFunc(name, func(c rune) bool { return c < 0x20 || c > 0x7e }) {
		return Refuse(RuleRequest, fmt.Sprintf("use printable ASCII of %d bytes at most", MaxText), "the selection's profile is malformed")
	}
	return nil
}
