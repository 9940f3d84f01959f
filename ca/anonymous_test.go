package ca_test

import (
	"crypto/x509"
	"net/netip"
	"testing"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/pki"
)

// TestCertificatesWithoutSPIFFEID issues certificates of the profile acme. They contain DNS names and addresses alone, and
// need one of both.
func TestCertificatesWithoutSPIFFEID(t *testing.T) {
	w := newWorld(t)
	a := w.open(t, w.store.CA())
	defer closeAuthority(t, a)
	req := w.request(t)
	req.Profile = w.profile(t, "acme")
	_, err := a.Draft(req)
	if refusal, ok := pki.AsRefusal(err); !ok || refusal.Rule != pki.RuleNames {
		t.Errorf("without a name: %v", err)
	}
	for _, names := range []ca.Names{
		{DNS: []string{"a.fleet.example", "*.b.fleet.example"}}, {IPs: []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")}},
	} {
		req := w.request(t)
		req.Profile, req.Names = w.profile(t, "acme"), names
		issued, err := issue(t.Context(), a, req)
		if err != nil {
			t.Fatal(err)
		}
		c := parse(t, issued.DER)
		if len(c.URIs) > 0 || len(c.Subject.Names) > 0 || len(c.DNSNames) != len(names.DNS) || len(c.IPAddresses) != len(names.IPs) {
			t.Errorf("the certificate has the subject %s, the URIs %v and the names %v %v", c.Subject, c.URIs, c.DNSNames, c.IPAddresses)
		}
		if len(c.ExtKeyUsage) != 1 || c.ExtKeyUsage[0] != x509.ExtKeyUsageServerAuth {
			t.Errorf("the certificate is for %v", c.ExtKeyUsage)
		}
		for _, e := range c.Extensions {
			if e.Id.String() == "2.5.29.17" && !e.Critical {
				t.Error("with an empty subject, the subject alternative name is not critical")
			}
		}
	}
}
