package acme_test

import (
	"encoding/base64"
	"math/big"
	"strings"
	"testing"

	"github.com/brevet-pki/brevet/server/acme"
)

// FuzzParseCertID checks that an identifier is parsed only if it is the one encoding of its parts.
func FuzzParseCertID(f *testing.F) {
	f.Add("aYhba4dGQEHhs3uEe6CuLN4ByNQ.AIdlQyE") // the example in RFC 9773 §4.1
	f.Add("AQ.AQ")
	f.Add("AQ.AAE")
	f.Fuzz(func(t *testing.T, text string) {
		keyID, serial, err := acme.ParseCertID(text)
		if err != nil {
			return
		}
		number := new(big.Int).SetBytes(serial.Bytes()).Bytes()
		if number[0]&0x80 != 0 {
			number = append([]byte{0}, number...)
		}
		encoded := base64.RawURLEncoding.EncodeToString(keyID) + "." + base64.RawURLEncoding.EncodeToString(number)
		if encoded != text || len(keyID) == 0 || serial.IsZero() {
			t.Fatalf("%q is parsed as %q", text, encoded)
		}
	})
}

func TestParseCertID(t *testing.T) {
	keyID, serial, err := acme.ParseCertID("aYhba4dGQEHhs3uEe6CuLN4ByNQ.AIdlQyE")
	if err != nil || serial.String() != "87654321" || len(keyID) != 20 {
		t.Errorf("the example of RFC 9773 is %x and %s, %v", keyID, serial, err)
	}
	for _, text := range []string{
		"", ".", "AQ", "AQ.", ".AQ", "AQ.AQ.AQ", "AQ.AA", "AQ.gA", "AQ.AAE", "AQ==.AQ==", "AQ.A", "AQ.AQ\n", "+w.AQ",
		strings.Repeat("AQID", 50) + ".AQ", "AQ." + strings.Repeat("AQID", 20),
	} {
		if _, _, err := acme.ParseCertID(text); err == nil {
			t.Errorf("%q is parsed", text)
		}
	}
}
