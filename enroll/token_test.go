package enroll

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/brevet-pki/brevet/pki"
)

func genToken(t *rapid.T) Token {
	secret, err := pki.TokenSecretFromBytes(append(rapid.SliceOfN(rapid.Byte(), 31, 31).Draw(t, "secret"), 1))
	if err != nil {
		t.Fatal(err)
	}
	token := Token{Secret: secret, Bootstrap: Bootstrap{
		TrustDomain: rapid.StringMatching(`[a-z0-9][a-z0-9._-]{0,60}`).Draw(t, "domain"),
		Server:      rapid.SampledFrom([]string{"ca.example:7443", "[::1]:1", "10.1.2.3:65535"}).Draw(t, "server"),
	}}
	copy(token.RootFingerprint[:], rapid.SliceOfN(rapid.Byte(), 32, 32).Draw(t, "root"))
	return token
}

func TestTokenTextRoundTrips(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		token := genToken(t)
		text := token.Text()
		if len(text) > MaxTokenText {
			t.Fatalf("the text has %d bytes", len(text))
		}
		if got, err := ParseToken(text); err != nil || got != token {
			t.Fatalf("ParseToken = %v, %v", got, err)
		}
		at := rapid.IntRange(0, len(text)).Draw(t, "wrapped at")
		if got, err := ParseToken(" " + text[:at] + "\r\n" + text[at:] + "\n"); err != nil || got != token {
			t.Fatalf("wrapped: ParseToken = %v, %v", got, err)
		}
	})
}

func TestDamagedTokensAreRefused(t *testing.T) {
	ca := newTestCA(t)
	text := ca.token(t, "device/1").Text()
	for n := range len(text) {
		if _, err := ParseToken(text[:n]); err == nil {
			t.Fatalf("the first %d of %d characters were accepted", n, len(text))
		} else if n > 20 && strings.Contains(err.Error(), text[8:20]) {
			t.Fatalf("the error contains the token: %v", err)
		}
		other := []byte(text)
		other[n] ^= 1
		if _, err := ParseToken(string(other)); err == nil && n < len(text)-1 { // the last character has unused bits
			t.Fatalf("a change of character %d was accepted", n)
		}
	}
	for name, bad := range map[string]Bootstrap{
		"server without port": {TrustDomain: testDomain, Server: "ca.example"},
		"empty server":        {TrustDomain: testDomain},
		"port 0":              {TrustDomain: testDomain, Server: "a:0"},
		"server with a slash": {TrustDomain: testDomain, Server: "a/b:1"},
		"server with a space": {TrustDomain: testDomain, Server: "a b:1"},
		"upper case domain":   {TrustDomain: "Fleet", Server: "a:1"},
		"no domain":           {Server: "a:1"},
		"domain too long":     {TrustDomain: strings.Repeat("a", 256), Server: "a:1"},
	} {
		token := Token{bad, ca.token(t, "device/2").Secret}
		if got, err := ParseToken(token.Text()); err == nil {
			t.Errorf("%s was accepted as %v", name, got)
		}
	}
	for _, text := range []string{"", "brevet1.", "hello", strings.Repeat("a", 1<<20)} {
		if _, err := ParseToken(text); err == nil {
			t.Errorf("%.20q was accepted", text)
		}
	}
}

func TestTokenHidesItsSecret(t *testing.T) {
	token := newTestCA(t).token(t, "device/1")
	secret := token.Secret.Bytes()
	var shown []string
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d"} {
		shown = append(shown, fmt.Sprintf(verb, token), fmt.Sprintf(verb, &token), fmt.Sprintf(verb, EnrollRequest{Bootstrap: token.Bootstrap, Evidence: []Evidence{token}}))
	}
	js, err := json.Marshal([]any{token, token.Secret.Evidence()})
	if err != nil {
		t.Fatal(err)
	}
	var logged bytes.Buffer
	slog.New(slog.NewTextHandler(&logged, nil)).Info("x", "token", token)
	slog.New(slog.NewJSONHandler(&logged, nil)).Info("x", "token", token)
	shown = append(shown, string(js), logged.String())
	for _, s := range shown {
		for _, leak := range []string{hex.EncodeToString(secret[:4]), fmt.Sprintf("%X", secret[:4]), fmt.Sprintf("%d %d %d %d", secret[0], secret[1], secret[2], secret[3]), token.Secret.Reveal()[:6]} {
			if strings.Contains(s, leak) {
				t.Errorf("%q contains the secret", s)
			}
		}
	}
}
