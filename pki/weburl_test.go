package pki_test

import (
	"encoding/asn1"
	"strings"
	"testing"

	"github.com/brevet-pki/brevet/pki"
)

func TestCheckWebURL(t *testing.T) {
	for _, text := range []string{
		"http://pki.fleet.example", "http://pki.fleet.example:7080/a/b%20c", "http://192.0.2.1", "http://[2001:db8::1]:80/x", "http://xn--mller-kva.example",
		"http://localhost:1", "http://PKI.example./",
	} {
		if err := pki.CheckWebURL(text); err != nil {
			t.Errorf("%s: %v", text, err)
		}
		if _, err := asn1.MarshalWithParams(text, "ia5"); err != nil {
			t.Errorf("%s: %v", text, err)
		}
	}
	for _, text := range []string{
		"", "pki.example", "https://pki.example", "http://", "http://:80", "http://a@pki.example", "http://pki.example/?q", "http://pki.example/#f",
		"http://pki.müller.example:17080", "http://pki.example/ä", "http://pki.example/a b", "http://pki.example/\x7f", "http://pki.example/{x}",
		"http://pki_1.example", "http://-pki.example", "http://pki..example", "http://pki.example:", "http://pki.example:0", "http://pki.example:65536",
		"http://[fe80::1%25eth0]", "http://pki.example/%zz", "http://" + strings.Repeat("a", 64) + ".example", "http://pki.example/" + strings.Repeat("a", 512),
		"http://pki%2eexample", "http://pki.example\\x", "http:pki.example",
	} {
		if err := pki.CheckWebURL(text); err == nil {
			t.Errorf("CheckWebURL(%q) = nil, want an error", text)
		}
	}
}
