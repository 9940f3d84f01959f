package pki_test

import (
	"bytes"
	"reflect"
	"strings"
	"testing"

	"github.com/brevet-pki/brevet/pki"
)

func TestRecoveryEvidenceIsEncodedOnce(t *testing.T) {
	e := pki.RecoveryEvidence{IssuerID: []byte{1}, Serial: []byte{2, 3}, PublicKey: []byte{}, Challenge: []byte{4}, Signature: []byte{5, 6, 7}}
	encoded := e.Encode()
	if got, err := pki.ParseRecoveryEvidence(encoded); err != nil || !reflect.DeepEqual(got, e) {
		t.Errorf("the parsed evidence is %+v, %v, want %+v", got, err, e)
	}
	for i := range encoded {
		if _, err := pki.ParseRecoveryEvidence(encoded[:i]); err == nil {
			t.Errorf("the first %d bytes are accepted", i)
		}
	}
	if _, err := pki.ParseRecoveryEvidence(append(encoded, 0)); err == nil {
		t.Error("a byte after the evidence is accepted")
	}
}

func FuzzParseRecoveryEvidence(f *testing.F) {
	f.Add([]byte{})
	f.Add(pki.RecoveryEvidence{IssuerID: []byte("issuer"), Signature: []byte("signature")}.Encode())
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		e, err := pki.ParseRecoveryEvidence(b)
		if err == nil && !bytes.Equal(e.Encode(), b) {
			t.Errorf("%x has two encodings", b)
		}
	})
}

// TestRecoveryStatement checks the lines that the contract describes, and that no other signature of the key could be one.
func TestRecoveryStatement(t *testing.T) {
	issuer, err := pki.IssuerIDFromBytes(bytes.Repeat([]byte{0xab}, 32))
	if err != nil {
		t.Fatal(err)
	}
	serial, err := pki.SerialFromBytes(bytes.Repeat([]byte{0x1c}, 20))
	if err != nil {
		t.Fatal(err)
	}
	request, err := pki.RequestIDFromBytes(bytes.Repeat([]byte{0xd}, 16))
	if err != nil {
		t.Fatal(err)
	}
	key := pki.HashSPKI(nil) // of no bytes, like the challenge
	got := string(pki.RecoveryStatement("fleet.example", pki.CertRef{Issuer: issuer, Serial: serial}, key, request, nil))
	const empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
	want := "brevet: the holder of this key recovers its identity, after its certificate expired, with a new key\nfleet.example\n" +
		strings.Repeat("ab", 32) + "\n" + strings.Repeat("1c", 20) + "\n" + empty + "\n" + strings.Repeat("0d", 16) + "\n" + empty + "\n"
	if got != want {
		t.Errorf("the statement is\n%s\nwant\n%s", got, want)
	}
}
