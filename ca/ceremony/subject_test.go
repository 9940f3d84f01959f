package ceremony_test

import (
	"crypto/x509/pkix"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/brevet-pki/brevet/ca/ceremony"
	"github.com/brevet-pki/brevet/pki"
)

func subject(t *testing.T, text string) ceremony.Subject {
	t.Helper()
	s, err := ceremony.ParseSubject(text)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestParseSubject(t *testing.T) {
	for text, want := range map[string]string{
		"CN=Fleet Root G1":                     "CN=Fleet Root G1",
		"CN=Fleet Root G1,O=Example":           "CN=Fleet Root G1,O=Example",
		"cn=Fleet Root G1,o=Example,c=DE":      "CN=Fleet Root G1,O=Example,C=DE",
		"CN=a,OU=b,OU=c,O=d,L=e,ST=f,C=GB":     "CN=a,OU=b,OU=c,O=d,L=e,ST=f,C=GB",
		`CN=Wurst\, Käse & Co,O=Größe`:         `CN=Wurst\, Käse & Co,O=Größe`,
		`CN=\20leading\ ,O=\#1`:                `CN=\ leading\ ,O=\#1`,
		`CN=a\2Cb,O=\C3\A9`:                    `CN=a\,b,O=é`,
		"CN=a=b":                               "CN=a=b",
		`CN=a\\,O=b`:                           `CN=a\\,O=b`,
		"CN=" + strings.Repeat("é", 64):        "CN=" + strings.Repeat("é", 64),
		"CN=a,L=" + strings.Repeat("x", 128):   "CN=a,L=" + strings.Repeat("x", 128),
		"O=Example,CN=the order is the user's": "O=Example,CN=the order is the user's",
	} {
		s, err := ceremony.ParseSubject(text)
		if err != nil || s.String() != want || s.IsZero() {
			t.Errorf("ParseSubject(%q) = %q, %v; want %q", text, s, err, want)
		}
	}
}

func TestParseSubjectRefuses(t *testing.T) {
	for _, text := range []string{
		"", "CN", "CN=", "CN= ", "O=Example", "CN=a,", ",CN=a", "CN=a,,O=b", "CN=a, O=b", "CN= a", "CN=a ", `CN=a\\ `, "CN=#0401",
		"CN=a+O=b", `CN="a"`, "CN=a;O=b", "CN=a<b", "2.5.4.3=a", "EMAIL=a@b,CN=c", "CN=a,CN=b", "CN=a,O=b,O=c", `CN=a\`, `CN=a\x`, `CN=a\1`,
		"CN=a\nb", `CN=a\00b`, `CN=a\ff`, "CN=a\u202eb", "CN=" + strings.Repeat("a", 65), "CN=a,C=de", "CN=a,C=DEU", "CN=a,C=D1",
		"CN=a,O=" + strings.Repeat("b", 65), "CN=a,L=" + strings.Repeat("b", 129), "CN=a,OU=" + strings.Repeat("b", 1024), "/CN=a/O=b",
		"CN=\\\x10a",
	} {
		s, err := ceremony.ParseSubject(text)
		if r, ok := pki.AsRefusal(err); !ok || r.Rule != pki.RuleSubject || r.Hint == "" || !s.IsZero() {
			t.Errorf("ParseSubject(%q) = %q, %v; want a refusal", text, s, err)
		}
	}
}

// What crypto/x509 writes of a name, ParseSubject reads as the same name.
func TestSubjectRoundTrips(t *testing.T) {
	value := rapid.StringMatching(`[A-Za-z0-9 ,+"\\<>;#=äöü.-]{0,20}[A-Za-z]`)
	rapid.Check(t, func(t *rapid.T) {
		var name pkix.Name
		name.CommonName = value.Draw(t, "CN")
		if rapid.Bool().Draw(t, "has O") {
			name.Organization = []string{value.Draw(t, "O")}
		}
		name.OrganizationalUnit = rapid.SliceOfN(value, 0, 1).Draw(t, "OU")
		text := name.ToRDNSequence().String()
		s, err := ceremony.ParseSubject(text)
		if err != nil {
			t.Fatalf("ParseSubject(%q): %v", text, err)
		}
		if s.String() != text {
			t.Fatalf("ParseSubject(%q) = %q", text, s)
		}
		if again, err := ceremony.ParseSubject(s.String()); err != nil || again != s {
			t.Fatalf("ParseSubject(%q) = %q, %v", s, again, err)
		}
	})
}
