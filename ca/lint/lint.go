// Package lint checks certificates and CRLs with zlint against RFC 5280 and its updates. It also checks certificates
// against RFC 9608, for which zlint has no rules. It omits the rules of the public web PKI, which do not apply to a
// private CA. It returns an error for violations of level error.
package lint

import (
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/zmap/zcrypto/x509"
	"github.com/zmap/zlint/v3"
	"github.com/zmap/zlint/v3/lint"
)

// registry returns zlint's rules of the RFCs that apply to a private CA.
var registry = sync.OnceValues(func() (lint.Registry, error) {
	return lint.GlobalRegistry().Filter(lint.FilterOptions{
		IncludeSources: lint.SourceList{lint.RFC3279, lint.RFC5280, lint.RFC5480, lint.RFC5891, lint.RFC6960, lint.RFC6962, lint.RFC8813},
	})
})

// Certificate checks a certificate in DER and returns an error that names every violated rule. It is safe for
// concurrent use.
func Certificate(der []byte) error {
	reg, err := registry()
	if err != nil {
		return fmt.Errorf("lint: select the rules: %w", err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		return fmt.Errorf("lint: parse certificate: %w", err)
	}
	return result(zlint.LintCertificateEx(c, reg), noRevAvail(c)...)
}

// CRL checks a certificate revocation list in DER, and returns an error that names every violated rule.
func CRL(der []byte) error {
	reg, err := registry()
	if err != nil {
		return fmt.Errorf("lint: select the rules: %w", err)
	}
	crl, err := x509.ParseRevocationList(der)
	if err != nil {
		return fmt.Errorf("lint: parse CRL: %w", err)
	}
	return result(zlint.LintRevocationListEx(crl, reg))
}

// result returns an error for the violations found by zlint and the other violated rules.
func result(set *zlint.ResultSet, broken ...string) error {
	for name, r := range set.Results {
		if r.Status >= lint.Error {
			broken = append(broken, strings.TrimSpace(name+" "+r.Details))
		}
	}
	if len(broken) == 0 {
		return nil
	}
	slices.Sort(broken)
	return fmt.Errorf("lint: violates %s", strings.Join(broken, ", "))
}
