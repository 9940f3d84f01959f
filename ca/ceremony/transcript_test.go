package ceremony_test

import (
	"crypto/elliptic"
	"crypto/x509"
	"encoding/pem"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/brevet-pki/brevet/ca/ceremony"
	"github.com/brevet-pki/brevet/pki"
)

func testdata(t *testing.T, name string) []byte {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(text)
	if block == nil {
		t.Fatalf("testdata/%s is not PEM", name)
	}
	return block.Bytes
}

// goldenTranscript returns the transcript of signing an issuing CA, with a CRL of the same day.
func goldenTranscript(t *testing.T) ceremony.Transcript {
	t.Helper()
	request, err := x509.ParseCertificateRequest(testdata(t, "issuing.csr"))
	if err != nil {
		t.Fatal(err)
	}
	crl, err := x509.ParseRevocationList(testdata(t, "root.crl"))
	if err != nil {
		t.Fatal(err)
	}
	return ceremony.Transcript{
		Act: "signed the certificate of an issuing CA, and the root's CRL", Command: "brevet ceremony sign --config /etc/brevet/root.yaml issuing.csr",
		At: time.Date(2026, 11, 22, 9, 30, 0, 0, time.FixedZone("CET", 3600)), Software: "brevet v0.1.0",
		HSM: ceremony.HSM{Label: "fleet-root", Serial: "1f2e3d4c5b6a7988", Key: "root-g1"}, TrustDomain: "fleet.example",
		Request: request, Certificate: parse(t, testdata(t, "issuing.pem")), CRL: crl,
		Signers: []string{"Master of ceremony", "Witness"},
	}
}

func TestTranscriptGolden(t *testing.T) {
	want, err := os.ReadFile("testdata/transcript.txt")
	if err != nil {
		t.Fatal(err)
	}
	if got := goldenTranscript(t).String(); got != string(want) {
		t.Errorf("the transcript is\n%s", got)
	}
}

// The fingerprints that people read aloud must equal those that other tools print.
func TestTranscriptShowsOpenSSLsFingerprints(t *testing.T) {
	p := build(t, ecPair(elliptic.P256()), nil)
	for file, c := range map[string]*x509.Certificate{"root.pem": p.root, "sub.pem": p.sub} {
		text := ceremony.Transcript{Act: "made it", Certificate: c}.String()
		digits := onlyDigits(text)
		for _, args := range [][]string{
			{"x509", "-in", file, "-noout", "-fingerprint", "-sha256"},
			{"x509", "-in", file, "-noout", "-serial"},
		} {
			out, err := p.run(t, "openssl", args...)
			if err != nil {
				t.Fatal(out)
			}
			_, value, _ := strings.Cut(strings.TrimSpace(out), "=")
			if value = strings.ReplaceAll(value, ":", ""); !strings.Contains(digits, value) {
				t.Errorf("%s shows %s, the transcript does not:\n%s", strings.Join(args, " "), value, text)
			}
		}
		if !strings.Contains(digits, strings.ToUpper(pki.HashSPKI(c.RawSubjectPublicKeyInfo).String())) {
			t.Errorf("the digest of the public key is missing:\n%s", text)
		}
	}
}

// onlyDigits removes the spaces and line numbers of a formatted digest.
func onlyDigits(text string) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		if _, groups, found := strings.Cut(line, ":  "); found {
			line = groups
		}
		b.WriteString(strings.Join(strings.Fields(line), ""))
	}
	return b.String()
}

func TestTranscriptFieldsCannotForgeLines(t *testing.T) {
	text := ceremony.Transcript{
		Act: "a\nSerial number   00", Command: "x\u202ey", Software: "v\xff", HSM: ceremony.HSM{Label: "\x1b[2J"},
	}.String()
	for _, bad := range []string{"\nSerial number", "\u202e", "\xff", "\x1b"} {
		if strings.Contains(text, bad) {
			t.Errorf("the transcript contains %q:\n%s", bad, text)
		}
	}
	if strings.Contains(text, "HSM serial") || strings.Contains(text, "Signatures") {
		t.Errorf("empty fields have lines:\n%s", text)
	}
}
