package pki_test

import (
	"strings"
	"testing"

	"github.com/brevet-pki/brevet/pki"
)

// Each fuzz test parses text. If the text is accepted, formatting and parsing it again must give the same value. If it
// is refused, the result must be the zero value.

func FuzzParseSPIFFEID(f *testing.F) {
	for _, seed := range []string{
		"spiffe://fleet.example/device/42", "spiffe://fleet.example/Brevet/server", "spiffe://fleet.example", "spiffe://fleet.example/a//b",
		"spiffe://fleet.example/..", "SPIFFE://fleet.example/a", "spiffe://fleet.example/br\u0435vet/x", "spiffe://u@h:1/p?q#f", "\x00",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		id, err := pki.ParseSPIFFEID(text)
		if err != nil {
			if !id.IsZero() {
				t.Fatalf("%q is refused, but the result is %s instead of the zero value", text, id)
			}
			return
		}
		if again, err := pki.ParseSPIFFEID(id.String()); err != nil || again != id {
			t.Fatalf("%q reads as %s, and that as %s, %v", text, id, again, err)
		}
		if id.URL().String() != id.String() || len(id.String()) > 2048 || id.Path() == "" {
			t.Fatalf("%q reads as %s, with the URL %s", text, id, id.URL())
		}
		for _, segment := range strings.Split(id.Path(), "/") {
			if segment == "" || segment == "." || segment == ".." || strings.Trim(segment, letters) != "" {
				t.Fatalf("%q has the segment %q", text, segment)
			}
		}
		if first, _, _ := strings.Cut(id.Path(), "/"); id.Reserved() != (strings.ToLower(first) == "brevet") {
			t.Fatalf("%s: reserved is %t", id, id.Reserved())
		}
	})
}

const letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-"

func FuzzParseSerial(f *testing.F) {
	for _, seed := range []string{"01", "0", "", "7F:FF", "80" + strings.Repeat("0", 38), strings.Repeat("f", 40), strings.Repeat("0", 41), " a ", "::", "\u0661"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		s, err := pki.ParseSerial(text)
		if err != nil {
			if !s.IsZero() {
				t.Fatalf("%q is refused, but the result is %s instead of the zero value", text, s)
			}
			return
		}
		again, err := pki.ParseSerial(s.String())
		if err != nil || again != s {
			t.Fatalf("%q reads as %s, and that as %s, %v", text, s, again, err)
		}
		if fromInt, err := pki.SerialFromInt(s.Int()); err != nil || fromInt != s || s.Int().Sign() <= 0 {
			t.Fatalf("%q: its integer %d reads as %s, %v", text, s.Int(), fromInt, err)
		}
		if fromBytes, err := pki.SerialFromBytes(s.Bytes()); err != nil || fromBytes != s {
			t.Fatalf("%q: its bytes read as %s, %v", text, fromBytes, err)
		}
	})
}

// FuzzParseOthers parses arbitrary text and numbers with the other parsers of this package. If text is accepted,
// formatting the value must give the same text.
func FuzzParseOthers(f *testing.F) {
	for _, seed := range []string{
		"keyCompromise", "KEYCOMPROMISE", "removeFromCRL", "device", "suspended", "90s", "7d", "1d12h", "106751d23h47m", "-1d", "1d-1h", "d",
		"fleet.example", "Fleet", strings.Repeat("ab", 32), strings.Repeat("a", 255), strings.Repeat("a", 2048),
	} {
		f.Add(seed, len(seed))
	}
	f.Fuzz(func(t *testing.T, text string, code int) {
		if r, err := pki.ParseReason(text); err == nil && !strings.EqualFold(r.String(), text) {
			t.Errorf("%q reads as the reason %s", text, r)
		}
		if r, err := pki.ReasonFromCode(code); err == nil {
			if again, err := pki.ParseReason(r.String()); err != nil || again != r || int(r) != code {
				t.Errorf("code %d is the reason %s, which reads as %s, %v", code, r, again, err)
			}
		}
		if k, err := pki.ParseKind(text); err == nil && k.String() != text {
			t.Errorf("%q reads as the kind %s", text, k)
		}
		if s, err := pki.ParseIdentityState(text); err == nil && s.String() != text {
			t.Errorf("%q reads as the state %s", text, s)
		}
		if d, err := pki.ParseDuration(text); err == nil && d <= 0 {
			t.Errorf("%q reads as the duration %s", text, d)
		}
		if id, err := pki.ParseIssuerID(text); err == nil && !strings.EqualFold(id.String(), text) {
			t.Errorf("%q reads as the issuer %s", text, id)
		}
		if td, err := pki.ParseTrustDomain(text); err == nil {
			if id, err := pki.SPIFFEIDIn(td, "a"); err != nil || id.TrustDomain() != text {
				t.Errorf("the trust domain %q has the identity %s, %v", text, id, err)
			}
		}
	})
}
