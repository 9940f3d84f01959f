package pki_test

import (
	"bytes"
	"strings"
	"testing"

	"github.com/brevet-pki/brevet/pki"
)

func TestX5CEvidence(t *testing.T) {
	for _, e := range []pki.X5CEvidence{
		{},
		{Challenge: []byte("c")},
		{Certificates: [][]byte{{}, []byte("device"), []byte("issuer")}, Challenge: []byte("challenge"), Signature: make([]byte, 512)},
	} {
		encoded := e.Encode()
		got, err := pki.ParseX5CEvidence(encoded)
		if err != nil || len(got.Certificates) != len(e.Certificates) || !bytes.Equal(got.Challenge, e.Challenge) || !bytes.Equal(got.Signature, e.Signature) {
			t.Errorf("%+v is read as %+v, %v", e, got, err)
		}
		for i := range encoded {
			if cut, err := pki.ParseX5CEvidence(encoded[:i]); err == nil && len(cut.Certificates) >= len(e.Certificates) {
				t.Errorf("%d of %d bytes are read as %+v", i, len(encoded), cut)
			}
		}
	}
	for _, malformed := range []string{"", "\x00", "\xff\xff\xff\xff", "\x00\x00\x00\x00", strings.Repeat("\x00", 9), "\x00\x00\x00\x02\x00", strings.Repeat("\x00", 8) + "\x80\x00\x00\x00"} {
		if e, err := pki.ParseX5CEvidence([]byte(malformed)); err == nil {
			t.Errorf("%q is read as %+v", malformed, e)
		}
	}
}

// The text is part of the contract: devices sign it.
func TestX5CStatement(t *testing.T) {
	request, err := pki.RequestIDFromBytes(bytes.Repeat([]byte{0xab}, 16))
	if err != nil {
		t.Fatal(err)
	}
	got := string(pki.X5CStatement("fleet.example", pki.HashSPKI(nil), request, nil))
	const sha256OfNothing = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
	want := "brevet: the device with this factory key enrolls a new key\nfleet.example\n" + sha256OfNothing + "\n" + strings.Repeat("ab", 16) + "\n" + sha256OfNothing + "\n"
	if got != want {
		t.Errorf("the statement is %q, want %q", got, want)
	}
}

func FuzzParseX5CEvidence(f *testing.F) {
	f.Add([]byte{})
	f.Add(pki.X5CEvidence{}.Encode())
	f.Add(pki.X5CEvidence{Certificates: [][]byte{{1}, {2, 3}}, Challenge: []byte{4}, Signature: []byte{5}}.Encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		e, err := pki.ParseX5CEvidence(b)
		if err != nil {
			if e.Certificates != nil || e.Challenge != nil || e.Signature != nil {
				t.Fatalf("%x is refused, but the result is %+v instead of the zero value", b, e)
			}
			return
		}
		if again := e.Encode(); !bytes.Equal(again, b) {
			t.Fatalf("%x reads as %+v, which is encoded as %x", b, e, again)
		}
	})
}

func FuzzParseX5CTLSEvidence(f *testing.F) {
	f.Add([]byte{})
	f.Add(pki.X5CTLSEvidence{Certificates: [][]byte{{}, {1}, {2, 3}}}.Encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		e, err := pki.ParseX5CTLSEvidence(b)
		if err != nil {
			if e.Certificates != nil {
				t.Fatalf("%x is refused, but the result is %+v instead of the zero value", b, e)
			}
			return
		}
		if again := e.Encode(); !bytes.Equal(again, b) {
			t.Fatalf("%x reads as %+v, which is encoded as %x", b, e, again)
		}
	})
}
