package lint

import (
	"bytes"
	"encoding/asn1"

	"github.com/zmap/zcrypto/x509"
)

const (
	oidNoRevAvail            = "2.5.29.56"
	oidCRLDistributionPoints = "2.5.29.31"
	oidFreshestCRL           = "2.5.29.46"
)

// noRevAvail returns the rules of RFC 9608 that a certificate violates, named like zlint's rules. The rules apply only
// to certificates with the extension.
func noRevAvail(c *x509.Certificate) []string {
	var present, crl, freshest bool
	var broken []string
	for _, e := range c.Extensions {
		switch e.Id.String() {
		case oidNoRevAvail:
			present = true
			if !bytes.Equal(e.Value, asn1.NullBytes) {
				broken = append(broken, "e_no_rev_avail_not_null (RFC 9608 section 2)")
			}
			if e.Critical {
				broken = append(broken, "e_no_rev_avail_critical (RFC 9608 section 2)")
			}
		case oidCRLDistributionPoints:
			crl = true
		case oidFreshestCRL:
			freshest = true
		}
	}
	if !present {
		return nil
	}
	for _, r := range []struct {
		is   bool
		name string
	}{
		{c.BasicConstraintsValid && c.IsCA, "e_no_rev_avail_in_ca_certificate"},
		{crl, "e_no_rev_avail_with_crl_distribution_points"},
		{freshest, "e_no_rev_avail_with_freshest_crl"},
		{len(c.OCSPServer) > 0, "e_no_rev_avail_with_ocsp"},
	} {
		if r.is {
			broken = append(broken, r.name+" (RFC 9608 section 3)")
		}
	}
	return broken
}
