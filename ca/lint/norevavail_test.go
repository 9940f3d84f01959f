package lint_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"math/big"
	"strings"
	"testing"
	"time"

	"github.com/brevet-pki/brevet/ca/lint"
)

// A certificate that violates one rule of RFC 9608 is reported for exactly that rule; a valid one is not reported.
func TestNoRevAvail(t *testing.T) {
	t.Parallel()
	extension := pkix.Extension{Id: asn1.ObjectIdentifier{2, 5, 29, 56}, Value: []byte{5, 0}}
	freshest := pkix.Extension{Id: asn1.ObjectIdentifier{2, 5, 29, 46}, Value: pointsTo(t, "http://pki.fleet.example/delta.crl")}
	for name, c := range map[string]struct {
		change func(*x509.Certificate)
		want   string // empty if the certificate is valid
	}{
		"as it should be":  {func(*x509.Certificate) {}, ""},
		"with a CA's URL":  {func(c *x509.Certificate) { c.IssuingCertificateURL = []string{"http://pki.fleet.example/ca.cer"} }, ""},
		"critical":         {func(c *x509.Certificate) { c.ExtraExtensions[0].Critical = true }, "e_no_rev_avail_critical"},
		"not NULL":         {func(c *x509.Certificate) { c.ExtraExtensions[0].Value = []byte{4, 0} }, "e_no_rev_avail_not_null"},
		"empty":            {func(c *x509.Certificate) { c.ExtraExtensions[0].Value = nil }, "e_no_rev_avail_not_null"},
		"with a CRL":       {func(c *x509.Certificate) { c.CRLDistributionPoints = []string{"http://pki.fleet.example/x.crl"} }, "e_no_rev_avail_with_crl_distribution_points"},
		"with a delta CRL": {func(c *x509.Certificate) { c.ExtraExtensions = append(c.ExtraExtensions, freshest) }, "e_no_rev_avail_with_freshest_crl"},
		"with OCSP":        {func(c *x509.Certificate) { c.OCSPServer = []string{"http://pki.fleet.example/ocsp"} }, "e_no_rev_avail_with_ocsp"},
		"of a CA":          {func(c *x509.Certificate) { c.IsCA, c.KeyUsage = true, x509.KeyUsageCertSign }, "e_no_rev_avail_in_ca_certificate"},
		"absent, and with everything": {func(c *x509.Certificate) {
			c.ExtraExtensions = []pkix.Extension{freshest}
			c.CRLDistributionPoints, c.OCSPServer = []string{"http://pki.fleet.example/x.crl"}, []string{"http://pki.fleet.example/ocsp"}
		}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			template := x509.Certificate{ExtraExtensions: []pkix.Extension{extension}}
			c.change(&template)
			err := lint.Certificate(sign(t, &template))
			if c.want == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), c.want) || strings.Count(err.Error(), "no_rev_avail") != 1 {
				t.Errorf("the certificate violates %v, want only %s", err, c.want)
			}
		})
	}
}

// sign completes a template and signs it with a CA's key.
func sign(t *testing.T, template *x509.Certificate) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template.SerialNumber, template.Subject = new(big.Int).Lsh(big.NewInt(1), 100), pkix.Name{CommonName: "device/1"}
	template.NotBefore = time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	template.NotAfter = template.NotBefore.Add(time.Hour)
	template.BasicConstraintsValid, template.SubjectKeyId = true, []byte{1, 2, 3, 4}
	if template.KeyUsage == 0 {
		template.KeyUsage = x509.KeyUsageDigitalSignature
	}
	parent := &x509.Certificate{Subject: pkix.Name{CommonName: "Issuing CA"}, SubjectKeyId: []byte{5, 6, 7, 8}}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// pointsTo returns a CRL distribution points extension with one URL, as crypto/x509 encodes it. The freshest CRL extension
// has the same syntax.
func pointsTo(t *testing.T, url string) []byte {
	t.Helper()
	cert, err := x509.ParseCertificate(sign(t, &x509.Certificate{CRLDistributionPoints: []string{url}}))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range cert.Extensions {
		if e.Id.Equal(asn1.ObjectIdentifier{2, 5, 29, 31}) {
			return e.Value
		}
	}
	t.Fatal("crypto/x509 wrote no CRL distribution points")
	return nil
}
