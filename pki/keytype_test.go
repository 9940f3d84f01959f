package pki_test

import (
	"strings"
	"testing"

	"github.com/brevet-pki/brevet/pki"
)

func TestKeyTypesReadBack(t *testing.T) {
	types := pki.KeyTypes()
	if len(types) != 6 {
		t.Errorf("there are %d key types, want 6", len(types))
	}
	for _, want := range types {
		if got, err := pki.ParseKeyType(string(want)); err != nil || got != want {
			t.Errorf("ParseKeyType(%q) = %q, %v", want, got, err)
		}
	}
	for _, text := range []string{"", "rsa", "p-256", "RSA-1024", "P-224"} {
		if _, err := pki.ParseKeyType(text); err == nil || !strings.Contains(err.Error(), "use one of P-256, P-384,") {
			t.Errorf("ParseKeyType(%q): %v", text, err)
		}
	}
}
