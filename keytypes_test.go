package brevet_test

import (
	"testing"

	"github.com/brevet-pki/brevet/hsm"
	"github.com/brevet-pki/brevet/pki"
)

// TestHSMMakesKnownKeyTypes checks that packages hsm and pki have the same names for key types. Package hsm imports no
// package of this module.
func TestHSMMakesKnownKeyTypes(t *testing.T) {
	for a := hsm.P256; a <= hsm.Ed25519; a++ {
		known, err := pki.ParseKeyType(a.String())
		if err != nil {
			t.Errorf("hsm makes a key of a type that pki does not know: %v", err)
		}
		if back, err := hsm.ParseAlgorithm(string(known)); err != nil || back != a {
			t.Errorf("hsm reads %q as %s, %v", known, back, err)
		}
	}
	if last := hsm.Ed25519 + 1; last.String() != "unknown" {
		t.Errorf("hsm makes %s keys: extend this test", last)
	}
}
