package pki_test

import (
	"regexp"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/brevet-pki/brevet/pki"
)

// identityIn returns an identity of fleet.example.
func identityIn(t rapid.TB, path string) pki.SPIFFEID {
	t.Helper()
	id, err := pki.SPIFFEIDIn("fleet.example", path)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func TestIdentityPatterns(t *testing.T) {
	for _, c := range []struct {
		pattern  string
		in, outs []string
	}{
		{`sensor/S[0-9]{6}`, []string{"sensor/S000017", "sensor/S999999"}, []string{
			"sensor/S00001", "sensor/S0000170", "sensor/s000017", "sensors/S000017", "a/sensor/S000017", "sensor/S000017/x", "brevet/S000017",
		}},
		{`sensor/a|sensor/b`, []string{"sensor/a", "sensor/b"}, []string{"sensor/ab", "sensor/c"}},
		{`plant-7/(line|cell)/[A-Z]+`, []string{"plant-7/line/A", "plant-7/cell/BC"}, []string{"plant-7/line/", "plant-7/other/A", "plant-7/line/a"}[1:]},
		{`sensor/.*`, []string{"sensor/a", "sensor/a/b"}, []string{"sensors/a"}},
		{`sensor/(?i)s1`, []string{"sensor/s1", "sensor/S1"}, []string{"Sensor/s1"}},
		{`sensor/S000017`, []string{"sensor/S000017"}, []string{"sensor/S000018"}},
	} {
		p, err := pki.ParseIdentityPattern(c.pattern)
		if err != nil {
			t.Errorf("%s: %v", c.pattern, err)
			continue
		}
		for _, path := range c.in {
			if !p.Matches(identityIn(t, path)) {
				t.Errorf("%s does not match %s", c.pattern, path)
			}
		}
		for _, path := range c.outs {
			if p.Matches(identityIn(t, path)) {
				t.Errorf("%s matches %s", c.pattern, path)
			}
		}
	}
	if (pki.IdentityPattern{}).Matches(identityIn(t, "sensor/1")) {
		t.Error("the zero pattern matches an identity")
	}
}

func TestRefusedIdentityPatterns(t *testing.T) {
	for pattern, want := range map[string]string{
		"":                                   "does not begin with a whole path segment",
		"sensor":                             "does not begin with a whole path segment",
		"/sensor/x":                          "does not begin with a whole path segment",
		"sensor[/]?S[0-9]":                   "does not begin with a whole path segment",
		"(sensor|pump)/S[0-9]":               "does not begin with a whole path segment",
		"sensor/S|pump/S":                    "does not begin with a whole path segment",
		"(?i)sensor/S[0-9]":                  "does not begin with a whole path segment",
		".*":                                 "does not begin with a whole path segment",
		"^sensor/S[0-9]$":                    "has an assertion",
		`sensor/S\b[0-9]`:                    "has an assertion",
		"sen sor/S[0-9]":                     "has a character that no path has",
		"sensor/\n":                          "has a character that no path has",
		"sensor/\u00e9":                      "has a character that no path has",
		"sen:sor/S[0-9]":                     "does not begin with a path segment",
		"../S[0-9]":                          "does not begin with a whole path segment",
		`\.\./S[0-9]`:                        "does not begin with a path segment",
		"brevet/operator/[a-z]+":             "reserved",
		"Brevet/server":                      "reserved",
		"sensor/S[0-9":                       "is not a regular expression",
		"sensor/a)|(?:brevet/operator/alice": "is not a regular expression",
		`sensor/\Qx`:                         "is not a regular expression",
		`sensor/(?P<a>x)(?=y)`:               "is not a regular expression",
		"sensor/[0-9]{999}":                  "is too costly",
		"sensor/(([0-9]{9}){9}){9}":          "is too costly",
		"sensor/" + strings.Repeat("a", 250): "has 257 bytes, and may have 256",
	} {
		_, err := pki.ParseIdentityPattern(pattern)
		if r, ok := pki.AsRefusal(err); !ok || !strings.Contains(r.Detail, want) || r.Hint == "" {
			t.Errorf("%s: %v, want a refusal that it %s", pattern, err, want)
		}
	}
}

// TestPatternsStayInTheirSegment checks that a pattern matches exactly the paths that its expression matches, that all of
// them have its first segment, and that none is reserved.
func TestPatternsStayInTheirSegment(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		text := rapid.SampledFrom([]string{"sensor/", "sensor/S", "brevet/", "BREVET/", "", "a|", "(sensor/)?", "sensor|"}).Draw(t, "start") +
			rapid.StringMatching(`([a-z/|.*+?()]|\[a-c\]|\{1,3\}|brevet/){0,8}`).Draw(t, "rest")
		p, err := pki.ParseIdentityPattern(text)
		if err != nil {
			return
		}
		first, _, _ := strings.Cut(text, "/")
		first = strings.TrimLeft(first, "(?:")
		path := rapid.OneOf(
			rapid.StringMatching(`(sensor|brevet|a)/[a-z]{1,3}(/[a-z]{1,3})?`), rapid.StringMatching(regexp.QuoteMeta(strings.Trim(first, "()|?*+."))+`/[a-zS]{1,4}`),
		).Draw(t, "path")
		id, err := pki.SPIFFEIDIn("fleet.example", path)
		if err != nil {
			return
		}
		whole := regexp.MustCompile(`^(?:` + text + `)$`)
		if got, want := p.Matches(id), whole.MatchString(path) && !id.Reserved(); got != want {
			t.Errorf("%s matches %s: %v, want %v", text, path, got, want)
		}
		if segment, _, _ := strings.Cut(path, "/"); p.Matches(id) && (id.Reserved() || !strings.Contains(text, segment+"/")) {
			t.Errorf("%s matches %s, which is outside of its first segment", text, path)
		}
	})
}

// FuzzIdentityPattern checks that a pattern that is accepted is cheap, and matches no reserved identity.
func FuzzIdentityPattern(f *testing.F) {
	for _, text := range []string{
		"sensor/S[0-9]{6}", "sensor/a|sensor/b", "sensor/(?i)x", `sensor/\Qa`, "a/(b|brevet)*", "brevet/.*", "a/((x{9}){9}){6}", "a/x)|(?:brevet/y",
	} {
		f.Add(text, "sensor/S000017")
		f.Add(text, "brevet/operator/alice")
	}
	f.Fuzz(func(t *testing.T, text, path string) {
		p, err := pki.ParseIdentityPattern(text)
		if err != nil {
			if _, refused := pki.AsRefusal(err); !refused {
				t.Errorf("%q: %v is not a refusal", text, err)
			}
			return
		}
		id, err := pki.SPIFFEIDIn("fleet.example", path)
		if err != nil {
			return
		}
		start := time.Now()
		matches := p.Matches(id)
		if took := time.Since(start); took > time.Second {
			t.Errorf("matching %q takes %s", text, took)
		}
		if matches && id.Reserved() {
			t.Errorf("%q matches %s", text, id)
		}
	})
}
