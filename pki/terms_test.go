package pki_test

import (
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/brevet-pki/brevet/pki"
)

// TestTermsAnd checks that the terms of two enrollments together allow exactly what both allow.
func TestTermsAnd(t *testing.T) {
	types := []pki.KeyType{"P-256", "P-384", "Ed25519"}
	draw := rapid.Custom(func(t *rapid.T) pki.Terms {
		return pki.Terms{
			HardwareKey: rapid.Bool().Draw(t, "hardware"), Keys: rapid.SliceOfNDistinct(rapid.SampledFrom(types), 0, 3, rapid.ID).Draw(t, "keys"),
			MaxLifetime: time.Duration(rapid.IntRange(0, 3).Draw(t, "hours")) * time.Hour,
		}
	})
	allows := func(terms pki.Terms, key pki.KeyType, lifetime time.Duration, hardware bool) bool {
		return (len(terms.Keys) == 0 || slices.Contains(terms.Keys, key)) &&
			(terms.MaxLifetime == 0 || lifetime <= terms.MaxLifetime) && (!terms.HardwareKey || hardware)
	}
	rapid.Check(t, func(t *rapid.T) {
		a, b := draw.Draw(t, "a"), draw.Draw(t, "b")
		both, err := a.And(b)
		for _, key := range types {
			for hours := range time.Duration(5) {
				for _, hardware := range []bool{false, true} {
					want := allows(a, key, hours*time.Hour, hardware) && allows(b, key, hours*time.Hour, hardware)
					if got := err == nil && allows(both, key, hours*time.Hour, hardware); got != want {
						t.Fatalf("%v and %v: %v, %v allows %s, %d hours, hardware %v: %v", a, b, both, err, key, hours, hardware, got)
					}
				}
			}
		}
	})
}
