package server

import (
	"slices"
	"testing"

	"github.com/brevet-pki/brevet/ra/acme"
)

func TestOwnNames(t *testing.T) {
	t.Parallel()
	for url, want := range map[string][]acme.Identifier{
		"https://[2001:DB8::1]:8443": {{Type: acme.DNS, Value: "ca.fleet.example"}, {Type: acme.IP, Value: "192.0.2.1"}, {Type: acme.IP, Value: "2001:db8::1"}},
		"https://est.fleet.example":  {{Type: acme.DNS, Value: "ca.fleet.example"}, {Type: acme.DNS, Value: "est.fleet.example"}, {Type: acme.IP, Value: "192.0.2.1"}},
		"":                           {{Type: acme.DNS, Value: "ca.fleet.example"}, {Type: acme.IP, Value: "192.0.2.1"}},
	} {
		have, err := ownNames([]string{"CA.fleet.example", "192.0.2.1"}, url)
		if err != nil || !slices.Equal(have, want) {
			t.Errorf("with the URL %q, the names are %v, %v, want %v", url, have, err, want)
		}
	}
}
