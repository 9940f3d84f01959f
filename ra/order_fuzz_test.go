package ra

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/pki"
)

// FuzzOrderCSR checks that a CSR is accepted for an order only if it asks for exactly the names of the order.
func FuzzOrderCSR(f *testing.F) {
	order := &Order{Names: ca.Names{
		DNS: []string{"*.shop.example", "shop.example"}, IPs: []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")},
	}}
	names := []string{"*.shop.example", "Shop.example"}
	ips := []net.IP{net.ParseIP("192.0.2.1"), net.ParseIP("2001:db8::1")}
	for _, template := range []*x509.CertificateRequest{
		{DNSNames: names, IPAddresses: ips},
		{DNSNames: names[:1], IPAddresses: ips, Subject: pkix.Name{CommonName: "shop.example", Country: []string{"DE"}}},
		{DNSNames: names, IPAddresses: ips[:1], Subject: pkix.Name{CommonName: "2001:DB8::1"}},
		{DNSNames: names, IPAddresses: ips, ExtraExtensions: []pkix.Extension{{Id: []int{2, 5, 29, 15}, Value: []byte{3, 2, 7, 128}}}},
		{DNSNames: append(slices.Clone(names), "b.example"), IPAddresses: ips},
		{DNSNames: names, IPAddresses: ips, EmailAddresses: []string{"a@shop.example"}},
		{},
	} {
		der, err := x509.CreateCertificateRequest(nil, template, fuzzKey) // Ed25519 needs no random bytes
		if err != nil {
			f.Fatal(err)
		}
		f.Add(der)
	}
	want := order.texts()
	slices.Sort(want)
	f.Fuzz(func(t *testing.T, der []byte) {
		c, err := readCSR(der)
		if err == nil {
			err = c.checkOrder(order)
		}
		if err != nil {
			if r, ok := pki.AsRefusal(err); !ok || r.Rule == "" || r.Detail == "" || r.Hint == "" {
				t.Fatalf("%v is not a refusal with rule, detail and hint", err)
			}
			return
		}
		var asked []string
		for _, n := range c.request.DNSNames {
			asked = append(asked, strings.ToLower(n))
		}
		for _, ip := range c.request.IPAddresses {
			addr, _ := netip.AddrFromSlice(ip)
			asked = append(asked, addr.Unmap().String())
		}
		if cn := c.request.Subject.CommonName; cn != "" {
			asked = append(asked, commonName(cn))
		}
		slices.Sort(asked)
		for _, n := range asked {
			if !slices.Contains(want, n) {
				t.Errorf("a request for %q is accepted for %q", asked, want)
			}
		}
		if len(c.request.URIs)+len(c.request.EmailAddresses) > 0 {
			t.Error("a request for other names is accepted")
		}
	})
}
