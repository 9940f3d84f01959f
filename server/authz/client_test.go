package authz

import (
	"crypto/x509"
	"math/big"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/brevet-pki/brevet/pki"
)

// A certificate of a few kilobytes parses to megabytes if it has thousands of short names. A connection keeps the parsed
// certificate, so it is refused.
func TestClientCertificatesHaveFewParts(t *testing.T) {
	ca, key := newCA(t, 1)
	for name, c := range map[string]struct {
		change func(c *x509.Certificate)
		passes bool
	}{
		"few names":  {func(c *x509.Certificate) { c.URIs = make([]*url.URL, 100) }, true},
		"many URIs":  {func(c *x509.Certificate) { c.URIs = make([]*url.URL, 5000) }, false},
		"many hosts": {func(c *x509.Certificate) { c.DNSNames = strings.Split(strings.Repeat("a ", 200), " ")[:200] }, false},
		"many attributes": {func(c *x509.Certificate) {
			c.Subject.OrganizationalUnit = strings.Split(strings.Repeat("a ", 200), " ")[:200]
		}, false},
		"many places of CRLs": {func(c *x509.Certificate) {
			c.CRLDistributionPoints = strings.Split(strings.Repeat("a ", 200), " ")[:200]
		}, false},
	} {
		template := &x509.Certificate{SerialNumber: big.NewInt(2), NotAfter: time.Unix(1<<33, 0)}
		c.change(template)
		for i := range template.URIs {
			template.URIs[i] = &url.URL{}
		}
		der, err := x509.CreateCertificate(nil, template, ca, key.Public(), key)
		if err != nil {
			t.Fatal(err)
		}
		client, err := NewClient(der)
		if r, ok := pki.AsRefusal(err); c.passes != (err == nil) || c.passes != (client != nil) || !c.passes && (!ok || r.Rule != pki.RuleCertificate) {
			t.Errorf("%s, in %d bytes: %v, %v", name, len(der), client, err)
		}
	}
}
