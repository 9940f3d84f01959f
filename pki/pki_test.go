package pki_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"fmt"
	"math/big"
	"strings"
	"testing"
	"time"

	"github.com/brevet-pki/brevet/pki"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"pgregory.net/rapid"
)

func TestSerialRoundTrips(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var random [pki.SerialRandomSize]byte
		copy(random[:], rapid.SliceOfN(rapid.Byte(), len(random), len(random)).Draw(t, "random"))
		at := time.UnixMilli(rapid.Int64Range(1<<40, 1<<46).Draw(t, "ms"))
		s, err := pki.MakeSerial(at, random)
		if err != nil {
			t.Fatal(err)
		}
		if n := s.Int(); n.Sign() <= 0 || len(n.Bytes()) > 20 {
			t.Fatalf("serial %v is not positive and within 20 bytes", n)
		}
		for name, back := range map[string]func() (pki.Serial, error){
			"text":  func() (pki.Serial, error) { return pki.ParseSerial(s.String()) },
			"lower": func() (pki.Serial, error) { return pki.ParseSerial(strings.ToLower(s.String())) },
			"bytes": func() (pki.Serial, error) { return pki.SerialFromBytes(s.Bytes()) },
			"int":   func() (pki.Serial, error) { return pki.SerialFromInt(s.Int()) },
		} {
			if got, err := back(); err != nil || got != s {
				t.Fatalf("%s: %v, %v; want %v", name, got, err, s)
			}
		}
	})
}

func TestSerialRefusals(t *testing.T) {
	for _, text := range []string{"", "0", "00", "xyz", "-1", strings.Repeat("f", 40), strings.Repeat("1", 41), "80" + strings.Repeat("0", 38)} {
		if s, err := pki.ParseSerial(text); err == nil {
			t.Errorf("ParseSerial(%q) = %v, want a refusal", text, s)
		}
	}
	for _, n := range []*big.Int{nil, big.NewInt(0), big.NewInt(-5), new(big.Int).Lsh(big.NewInt(1), 159)} {
		if s, err := pki.SerialFromInt(n); err == nil {
			t.Errorf("SerialFromInt(%v) = %v, want a refusal", n, s)
		}
	}
	for _, at := range []time.Time{time.Unix(0, 0), time.Date(9000, 1, 1, 0, 0, 0, 0, time.UTC)} {
		if s, err := pki.MakeSerial(at, [pki.SerialRandomSize]byte{1}); err == nil {
			t.Errorf("MakeSerial(%v) = %v, want a refusal", at, s)
		}
	}
	if got, err := pki.ParseSerial("01:ab"); err != nil || got.String() != "01AB" {
		t.Errorf("ParseSerial with colons = %v, %v", got, err)
	}
}

func TestSPIFFEIDAgreesWithGoSPIFFE(t *testing.T) {
	for _, text := range []string{
		"spiffe://fleet.example/device/42", "spiffe://fleet.example/a/b/c", "spiffe://fleet.example", "spiffe://fleet.example/",
		"spiffe://Fleet.example/a", "spiffe://fleet.example/a//b", "spiffe://fleet.example/../a", "spiffe://fleet.example/a b",
		"http://fleet.example/a", "spiffe://fleet.example/%61", "spiffe://fleet.example/brevеt/server", "spiffe://fleet.example:7/a",
		"spiffe://fleet.example/a\x00b", "spiffe://fleet.example/a\u202eb", "", "spiffe:///a",
	} {
		want, wantErr := spiffeid.FromString(text)
		got, err := pki.ParseSPIFFEID(text)
		if wantOK := wantErr == nil && want.Path() != ""; wantOK != (err == nil) {
			t.Errorf("ParseSPIFFEID(%q): %v, go-spiffe: %v", text, err, wantErr)
		} else if err == nil && got.String() != want.String() {
			t.Errorf("ParseSPIFFEID(%q) = %v", text, got)
		}
	}
}

func TestReservedIdentities(t *testing.T) {
	for path, want := range map[string]bool{
		"brevet/server": true, "Brevet/server": true, "BREVET/x": true, "brevet": true,
		"brevet2/server": false, "device/brevet": false, "a": false,
	} {
		id, err := pki.SPIFFEIDIn("fleet.example", path)
		if err != nil {
			t.Fatal(err)
		}
		if id.Reserved() != want {
			t.Errorf("%s reserved: %v, want %v", id, id.Reserved(), want)
		}
	}
	if _, err := pki.OperatorID("fleet.example", "a/b"); err == nil {
		t.Error("an operator's name with a slash passed")
	}
}

func TestTokenSecretDoesNotFormat(t *testing.T) {
	s, err := pki.TokenSecretFromBytes([]byte("0123456789abcdef0123456789abcdef"))
	if err != nil {
		t.Fatal(err)
	}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
		if text := fmt.Sprintf(verb, s); strings.Contains(text, "0123") || strings.Contains(text, "30313233") || strings.Contains(text, "48 49") {
			t.Errorf("%s shows the secret: %s", verb, text)
		}
	}
}

func TestReasons(t *testing.T) {
	for _, name := range pki.ReasonNames() {
		r, err := pki.ParseReason(strings.ToUpper(name))
		if err != nil || r.String() != name {
			t.Errorf("reason %s reads back as %v, %v", name, r, err)
		}
		if back, err := pki.ReasonFromCode(int(r)); err != nil || back != r {
			t.Errorf("reason code %d: %v, %v", r, back, err)
		}
	}
	for _, code := range []int{-1, 7, 8, 11, 256} {
		if _, err := pki.ReasonFromCode(code); err == nil {
			t.Errorf("reason code %d passed", code)
		}
	}
}

func TestRefusalKeepsItsTypeAndClass(t *testing.T) {
	err := fmt.Errorf("%w", pki.Refuse(pki.RuleToken, "ask for a new one", "the token %s", "expired"))
	r, ok := pki.AsRefusal(err)
	if !ok || r.Rule != pki.RuleToken || r.Rule.Class() != pki.Unauthenticated {
		t.Fatalf("AsRefusal = %v, %v", r, ok)
	}
	if want := "the token expired; ask for a new one [token.invalid]"; r.Error() != want {
		t.Errorf("Error() = %q, want %q", r, want)
	}
	if _, ok := pki.AsRefusal(errors.New("disk full")); ok {
		t.Error("a plain error counts as a refusal")
	}
}

func TestParseDurationAgreesWithTime(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		days := rapid.IntRange(0, 36500).Draw(t, "days")
		rest := time.Duration(rapid.Int64Range(1, int64(24*time.Hour)).Draw(t, "rest"))
		want := time.Duration(days)*24*time.Hour + rest
		if got, err := pki.ParseDuration(fmt.Sprintf("%dd%s", days, rest)); err != nil || got != want {
			t.Fatalf("%v, %v; want %v", got, err, want)
		}
		for _, text := range []string{want.String(), pki.FormatDuration(want)} {
			if got, err := pki.ParseDuration(text); err != nil || got != want {
				t.Fatalf("%s: %v, %v; want %v", text, got, err, want)
			}
		}
	})
	for text, d := range map[string]time.Duration{"120d": 120 * 24 * time.Hour, "36h": 36 * time.Hour, "90m": 90 * time.Minute, "1m30s": 90 * time.Second} {
		if got := pki.FormatDuration(d); got != text {
			t.Errorf("%s is formatted as %s, want %s", d, got, text)
		}
	}
	for _, text := range []string{"", "d", "-1d", "1.5d", "999999d", "106751d24h", "1d-1h", "1dd", "1d1d", "7", "0s", "0d", "-1h"} {
		if got, err := pki.ParseDuration(text); err == nil {
			t.Errorf("%q is %v", text, got)
		}
	}
}

func TestRefuseEscapesDetail(t *testing.T) {
	for text, want := range map[string]string{
		"device/42 is retired":    "device/42 is retired",
		`"a\b" is none`:           `"a\b" is none`,
		"br\u0435vet\u202e\x00\n": `br\u0435vet\u202e\u0000\u000a`,
		"\xff":                    `\ufffd`,
		"\U0001f600":              `\u1f600`,
	} {
		if got := pki.Refuse(pki.RuleRequest, "", "%s", text).Detail; got != want {
			t.Errorf("%q becomes %q, want %q", text, got, want)
		}
	}
	if got := pki.Refuse(pki.RuleRequest, "", "%s", strings.Repeat("\u202e", 1<<18)).Detail; len(got) > 1100 || !strings.HasSuffix(got, "...") {
		t.Errorf("a long detail has %d bytes", len(got))
	}
}

// Keys are on record by the hash of their encoding, so MarshalKey must encode a key as crypto/x509 does.
func TestMarshalKeyEncodesLikeX509(t *testing.T) {
	var keys []crypto.PublicKey
	for _, c := range []elliptic.Curve{elliptic.P224(), elliptic.P256(), elliptic.P384(), elliptic.P521()} {
		for range 20 {
			k, err := ecdsa.GenerateKey(c, rand.Reader)
			if err != nil {
				t.Fatal(err)
			}
			keys = append(keys, k.Public())
		}
	}
	r, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	keys = append(keys, r.Public(), ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize)).Public())
	for _, k := range keys {
		want, err := x509.MarshalPKIXPublicKey(k)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := pki.MarshalKey(k); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%T: %x, %v, want %x", k, got, err, want)
		}
	}
}

func TestMarshalKeyRefusesWhatIsNoKey(t *testing.T) {
	off := &ecdsa.PublicKey{Curve: elliptic.P256(), X: big.NewInt(1), Y: big.NewInt(1)} //nolint:staticcheck // parsing makes no point off the curve
	for _, k := range []crypto.PublicKey{nil, "key", off} {
		if der, err := pki.MarshalKey(k); err == nil {
			t.Errorf("%v is encoded as %x", k, der)
		}
	}
}
