package pki

import (
	"fmt"
	"strings"
)

// Reason is the reason for a revocation: a CRLReason code of RFC 5280 §5.3.1. The zero value is unspecified.
type Reason uint8

// The reasons that Brevet uses. Code 8, removeFromCRL, is only in delta CRLs. RFC 5280 does not use code 7.
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

// String returns the name of the reason in RFC 5280.
func (r Reason) String() string {
	if name, ok := reasonNames[r]; ok {
		return name
	}
	return fmt.Sprintf("reason(%d)", uint8(r))
}

// ParseReason parses a name in RFC 5280 §5.3.1. It ignores case.
func ParseReason(text string) (Reason, error) {
	for r, name := range reasonNames {
		// EqualFold treats some longer Unicode letters as equal to s and k. Comparing the lengths excludes them.
		if len(text) == len(name) && strings.EqualFold(name, text) {
			return r, nil
		}
	}
	return 0, fmt.Errorf("%q is not a revocation reason: use one of %s", text, strings.Join(ReasonNames(), ", "))
}

// ReasonFromCode returns the reason with a CRLReason code.
func ReasonFromCode(code int) (Reason, error) {
	if code >= 0 && code <= 255 {
		if _, ok := reasonNames[Reason(code)]; ok {
			return Reason(code), nil
		}
	}
	return 0, fmt.Errorf("%d is not a revocation reason (RFC 5280 section 5.3.1)", code)
}

// ReasonNames returns the names that ParseReason accepts, in the order of their codes.
func ReasonNames() []string {
	names := make([]string, 0, len(reasonNames))
	for code := Reason(0); code <= AACompromise; code++ {
		if name, ok := reasonNames[code]; ok {
			names = append(names, name)
		}
	}
	return names
}
