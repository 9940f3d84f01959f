package pki

import (
	"fmt"
	"strings"
)

// Reason says why a certificate was revoked: the CRLReason codes of RFC 5280 §5.3.1. The zero value is unspecified.
type Reason uint8

// The reasons that Brevet gives. removeFromCRL (8) belongs to delta CRLs and is no reason to revoke; 7 is not used.
const (
	Unspecified          Reason = 0
	KeyCompromise        Reason = 1
	CACompromise         Reason = 2
	AffiliationChanged   Reason = 3
	Superseded           Reason = 4
	CessationOfOperation Reason = 5
	CertificateHold      Reason = 6
	PrivilegeWithdrawn   Reason = 9
	AACompromise         Reason = 10
)

var reasonNames = map[Reason]string{
	Unspecified: "unspecified", KeyCompromise: "keyCompromise", CACompromise: "cACompromise",
	AffiliationChanged: "affiliationChanged", Superseded: "superseded",
	CessationOfOperation: "cessationOfOperation", CertificateHold: "certificateHold",
	PrivilegeWithdrawn: "privilegeWithdrawn", AACompromise: "aACompromise",
}

// String returns the name that RFC 5280 gives the reason.
func (r Reason) String() string {
	if name, ok := reasonNames[r]; ok {
		return name
	}
	return fmt.Sprintf("reason(%d)", uint8(r))
}

// ParseReason reads a name of RFC 5280 §5.3.1, in any case.
func ParseReason(text string) (Reason, error) {
	for r, name := range reasonNames {
		if len(text) == len(name) && strings.EqualFold(name, text) { // a letter that looks like s or k folds to it, and is longer
			return r, nil
		}
	}
	return 0, fmt.Errorf("%q is not a revocation reason: use one of %s", text, strings.Join(ReasonNames(), ", "))
}

// ReasonFromCode checks a CRLReason code.
func ReasonFromCode(code int) (Reason, error) {
	if code >= 0 && code <= 255 {
		if _, ok := reasonNames[Reason(code)]; ok {
			return Reason(code), nil
		}
	}
	return 0, fmt.Errorf("%d is not a revocation reason (RFC 5280 section 5.3.1)", code)
}

// ReasonNames lists the names that ParseReason takes, in the order of their codes.
func ReasonNames() []string {
	names := make([]string, 0, len(reasonNames))
	for code := Reason(0); code <= AACompromise; code++ {
		if name, ok := reasonNames[code]; ok {
			names = append(names, name)
		}
	}
	return names
}
