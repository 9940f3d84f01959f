// Package lint holds certificates and CRLs against the rules of RFC 5280 and its updates, with zlint, and certificates
// against RFC 9608, which zlint has no rules for. It leaves out the rules of the public web PKI, which misfire on a
// private CA, and refuses what breaks a rule at the level of an error.
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

var registry = sync.OnceValues(func() (lint.Registry, error) {
	return lint.GlobalRegistry().Filter(lint.FilterOptions{
		IncludeSources: lint.SourceList{lint.RFC3279, lint.RFC5280, lint.RFC5480, lint.RFC5891, lint.RFC6960, lint.RFC6962, lint.RFC8813},
	})
})

// Certificate checks a certificate in DER and returns an error that names every rule it breaks. It is safe for
// concurrent use.
func Certificate(der []byte) error {
	reg, err := registry()
	if err != nil {
		return fmt.Errorf("lint: choose the rules: %w", err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		return fmt.Errorf("lint: parse certificate: %w", err)
	}
	return verdict(zlint.LintCertificateEx(c, reg), noRevAvail(c)...)
}

// CRL checks a certificate revocation list in DER, as Certificate does a certificate.
func CRL(der []byte) error {
	reg, err := registry()
	if err != nil {
		return fmt.Errorf("lint: choose the rules: %w", err)
	}
	crl, err := x509.ParseRevocationList(der)
	if err != nil {
		return fmt.Errorf("lint: parse CRL: %w", err)
	}
	return verdict(zlint.LintRevocationListEx(crl, reg))
}

// verdict joins what zlint found with what rules of our own found.
func verdict(set *zlint.ResultSet, broken ...string) error {
	for name, r := range set.Results {
		if r.Status >= lint.Error {
			broken = append(broken, strings.TrimSpace(name+" "+r.Details))
		}
	}
	if len(broken) == 0 {
		return nil
	}
	slices.Sort(broken)
	return fmt.Errorf("lint: breaks %s", strings.Join(broken, ", "))
}
