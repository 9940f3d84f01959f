package validation_test

import (
	"crypto/x509"
	"strings"
	"testing"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/brevet-pki/brevet/ra/acme"
	"github.com/brevet-pki/brevet/server/acme/validation"
)

// FuzzDNSResponse checks that the number of answers is bounded, and that no response to another question has answers.
func FuzzDNSResponse(f *testing.F) {
	q := dnsmessage.Question{Name: dnsmessage.MustNewName("host.fleet.example."), Type: dnsmessage.TypeTXT, Class: dnsmessage.ClassINET}
	m := dnsmessage.Message{
		Header: dnsmessage.Header{ID: 7, Response: true}, Questions: []dnsmessage.Question{q},
		Answers: []dnsmessage.Resource{
			{Header: dnsmessage.ResourceHeader{Name: q.Name, Class: q.Class, Type: dnsmessage.TypeCNAME}, Body: &dnsmessage.CNAMEResource{CNAME: q.Name}},
			{Header: dnsmessage.ResourceHeader{Name: q.Name, Class: q.Class, Type: dnsmessage.TypeTXT}, Body: &dnsmessage.TXTResource{TXT: []string{"text"}}},
		},
	}
	packed, err := m.Pack()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(packed)
	f.Fuzz(func(t *testing.T, response []byte) {
		answers, isTruncated, err := validation.ParseResponse(response, 7, q)
		if err != nil && (len(answers) > 0 || isTruncated) || len(answers) > 200 {
			t.Fatalf("%d answers, truncated: %t, %v", len(answers), isTruncated, err)
		}
		if err == nil && (len(response) < 12 || response[0] != 0 || response[1] != 7) {
			t.Fatal("a response with another ID is accepted")
		}
		for _, a := range answers {
			if a.Header.Type != dnsmessage.TypeTXT && a.Header.Type != dnsmessage.TypeCNAME {
				t.Fatalf("an answer has the type %s", a.Header.Type)
			}
		}
	})
}

// FuzzALPNCertificate checks that only a certificate with the digest and the name is accepted.
func FuzzALPNCertificate(f *testing.F) {
	f.Add(certificate(f, nil).Certificate[0])
	f.Add(certificate(f, func(c *x509.Certificate) { c.DNSNames = append(c.DNSNames, "x.example") }).Certificate[0])
	f.Fuzz(func(t *testing.T, der []byte) {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return
		}
		if err := validation.CheckCertificate(c, acme.Identifier{Type: acme.DNS, Value: name}, digest); err != nil {
			return
		}
		if len(c.DNSNames) != 1 || !strings.EqualFold(c.DNSNames[0], name) || len(c.IPAddresses)+len(c.URIs)+len(c.EmailAddresses) > 0 {
			t.Fatalf("a certificate with the names %v is accepted", c.DNSNames)
		}
	})
}
