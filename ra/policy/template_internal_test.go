package policy

import (
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra"
)

const testKind pki.EvidenceKind = 2

func testSchema() *schema {
	return newSchema([]Kind{{Evidence: testKind, Name: "x", Facts: map[string]ra.FactType{
		"x.a": ra.FactString, "x.b": ra.FactString, "x.n": ra.FactInt, "x.t": ra.FactBool,
	}}})
}

type fataler interface{ Fatal(args ...any) }

func testFacts(t fataler, values map[string]any) *facts {
	f, err := newFacts(testSchema(), ra.Claims{{Kind: testKind, Claim: ra.Claim{Facts: values}}})
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func TestExpand(t *testing.T) {
	for _, c := range []struct {
		use            use
		template, a, b string
		want           string // the text, or what is wrong with a value
	}{
		{usePath, "device/1", "", "", "device/1"},
		{usePath, "device/{x.a}", "Cam-1_x.y", "", "device/Cam-1_x.y"},
		{usePath, "{ x.a }/{x.b}", "v", "w", "v/w"},
		{usePath, "a/cam-{x.a}.v2", "7", "", "a/cam-7.v2"},
		{usePath, "a/{x.n}", "", "", "a/-42"},
		{usePath, "a/{digest(x.a)}", "CAM-17", "", "a/02714941084f6563620119f55cf7da28"},
		{usePath, "a/{digest( x.a )}", "not / valid *", "", "a/00209c55fbe5fba4f0597fa314cef725"},
		{usePath, `a/{split(x.a, ":", 2)}`, "system:serviceaccount:ns:name", "", "a/ns"},
		{usePath, `a/{split(x.a,':',3)}`, "system:serviceaccount:ns:name", "", "a/name"},
		{usePath, `a/{split(x.a, ":", 4)}`, "system:serviceaccount:ns:name", "", "has no part 4"},
		{usePath, `a/{split(x.a, ":", 1)}`, "a::b", "", "is empty"},
		{usePath, `a/{split(x.a, "::", 1)}`, "a::b", "", "a/b"},
		{usePath, `a/{split(x.a, "-", 63)}`, strings.Repeat("-", 62) + "-x-y", "", "a/x"},
		{usePath, `a/{extract(x.a, "SN([0-9]{3})")}`, "SN123", "", "a/123"},
		{usePath, `a/{extract(x.a, "SN([0-9]{3})")}`, "SN1234", "", "does not match the pattern"},
		{usePath, `a/{extract(x.a, "SN([0-9]{3})")}`, "SN123\n", "", "does not match the pattern"},
		{usePath, `a/{extract(x.a, "a(b)?c")}`, "ac", "", "is empty"},
		{usePath, `a/{extract(x.a, "b|(a)")}`, "a", "", "a/a"},
		{usePath, `a/{extract(x.a, "b|(a)")}`, "ab", "", "does not match the pattern"},
		{usePath, "a/{x.a}", "", "", "is empty"},
		{usePath, "a/{digest(x.a)}", "", "", "is empty"},
		{usePath, "a/{x.a}", "b/c", "", "has a slash"},
		{usePath, "a/{x.a}", `b\c`, "", "has a slash"},
		{usePath, "a/{x.a}", ".", "", "is a dot segment"},
		{usePath, "a/{x.a}", "..", "", "is a dot segment"},
		{usePath, "a/.{x.a}", ".", "", "is a dot segment"},
		{usePath, "a/{x.a}", "*", "", "has a wildcard"},
		{usePath, "a/{x.a}", "b?", "", "has a wildcard"},
		{usePath, "a/{x.a}", "[b]", "", "has a wildcard"},
		{usePath, "a/{x.a}", "{x.b}", "", "has a wildcard or a bracket"},
		{usePath, "a/{x.a}", "b\x00", "", "has control characters"},
		{usePath, "a/{x.a}", "b\n", "", "has control characters"},
		{usePath, "a/{x.a}", "bä", "", "outside of ASCII"},
		{usePath, "a/{x.a}", "b c", "", "has a character that a path segment cannot have (0x20)"},
		{usePath, "a/{x.a}", "b%2fc", "", "has a character that a path segment cannot have"},
		{usePath, "a/{x.a}", strings.Repeat("x", 256), "", "has more than 255 bytes"},
		{useDNS, "{x.a}.fleet.example", "cam-1", "", "cam-1.fleet.example"},
		{useDNS, "cam{x.n}.example", "", "", "cam-42.example"},
		{useDNS, "{x.a}.fleet.example", "CAM", "", "has a character that a DNS label cannot have"},
		{useDNS, "{x.a}.fleet.example", "a.b", "", "has a character that a DNS label cannot have"},
		{useDNS, "{x.a}.fleet.example", "a_b", "", "has a character that a DNS label cannot have"},
		{useDNS, "{x.a}.fleet.example", "*", "", "has a wildcard"},
		{useDNS, "{x.a}.fleet.example", "-a", "", "with a hyphen at an end"},
		{useDNS, "cam-{x.a}.example", "-", "", "with a hyphen at an end"},
		{useDNS, "cam-{x.a}.example", strings.Repeat("a", 60), "", "over 63 bytes"},
		{useLabel, "{x.a}", "Pump 1, north: 40%", "", "Pump 1, north: 40%"},
		{useLabel, "a/b {x.a}", "c", "", "a/b c"},
		{useLabel, "{x.a}", "a/b", "", "has a slash"},
		{useLabel, "{x.a}", " ", "", "with a space at an end"},
		{useLabel, "{x.a}", "é", "", "outside of ASCII"},
		{useLabel, strings.Repeat("x", 250) + "{x.a}", "1234567", "", "over 256 bytes"},
	} {
		parsed, err := parseTemplate(c.template, c.use, testSchema())
		if err != nil {
			t.Errorf("%q: %v", c.template, err)
			continue
		}
		got, err := parsed.expand("r", testFacts(t, map[string]any{"x.a": c.a, "x.b": c.b, "x.n": int64(-42)}))
		if err == nil && got != c.want || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q with %q: %q, %v, want %q", c.template, c.a, got, err, c.want)
		}
		if refusal, ok := pki.AsRefusal(err); err != nil && (!ok || refusal.Rule != pki.RulePolicy || len(c.a) > 3 && strings.Contains(err.Error(), c.a)) {
			t.Errorf("%q with %q: %v, want a refusal policy.no_rule without the value", c.template, c.a, err)
		}
	}
}

// A value never adds, removes or changes another unit, and never changes its own characters.
func TestValuesStayInTheirUnits(t *testing.T) {
	values := rapid.OneOf(rapid.StringN(-1, 40, 200), rapid.StringMatching(`[ -~]{0,12}`),
		rapid.StringMatching(`[a-z0-9./\\*-]{0,6}`))
	templates := map[use][]string{
		usePath: {"device/{x.a}", "{x.a}/{x.b}", "a/b-{x.a}.c/{x.b}/d"}, useDNS: {"{x.a}.{x.b}.example",
			"a-{x.a}.example"}, useLabel: {"{x.a}", "a/{x.a}"},
	}
	rapid.Check(t, func(t *rapid.T) {
		u := rapid.SampledFrom([]use{usePath, useDNS, useLabel}).Draw(t, "use")
		parsed, err := parseTemplate(rapid.SampledFrom(templates[u]).Draw(t, "template"), u, testSchema())
		if err != nil {
			t.Fatal(err)
		}
		given := map[string]any{"x.a": values.Draw(t, "a"), "x.b": values.Draw(t, "b")}
		got, err := parsed.expand("r", testFacts(t, given))
		if err != nil {
			return
		}
		units := []string{got}
		if u != useLabel {
			units = strings.Split(got, u.separator())
		}
		if len(units) != len(parsed.units) {
			t.Fatalf("%q has %d units, want %d", got, len(units), len(parsed.units))
		}
		for i, want := range parsed.units {
			text := want.before
			if want.value != nil {
				text += given[want.value.fact].(string) + want.after
			}
			if units[i] != text {
				t.Fatalf("unit %d is %q, want %q", i, units[i], text)
			}
		}
		if u == usePath {
			id, err := pki.SPIFFEIDIn("fleet.example", got)
			if err != nil || id.Path() != got {
				t.Fatalf("the path %q is not valid: %v", got, err)
			}
		}
		if u == useDNS {
			names, _, err := ra.CheckNames([]string{got}, nil)
			if err == nil && names[0] != got {
				t.Fatalf("the name %q was changed to %q", got, names[0])
			}
		}
	})
}

// Two different values never form the same text with one template, so that two devices never get the same identity.
func TestDifferentValuesFormDifferentTexts(t *testing.T) {
	value := rapid.StringMatching(`[a-zA-Z0-9._-]{1,4}`)
	rapid.Check(t, func(t *rapid.T) {
		text := rapid.SampledFrom([]string{"{x.a}/{x.b}", "a-{x.a}-b/{x.b}", "{digest(x.a)}/{x.b}", ".{x.a}/-{x.b}"}).Draw(t,
			"template")
		parsed, err := parseTemplate(text, usePath, testSchema())
		if err != nil {
			t.Fatal(err)
		}
		first := map[string]any{"x.a": value.Draw(t, "a"), "x.b": value.Draw(t, "b")}
		second := map[string]any{"x.a": value.Draw(t, "a2"), "x.b": value.Draw(t, "b2")}
		one, err1 := parsed.expand("r", testFacts(t, first))
		other, err2 := parsed.expand("r", testFacts(t, second))
		if err1 != nil || err2 != nil {
			return
		}
		if same := first["x.a"] == second["x.a"] && first["x.b"] == second["x.b"]; (one == other) != same {
			t.Fatalf("%q with %v and %v: %q and %q", text, first, second, one, other)
		}
	})
}

func FuzzTemplate(f *testing.F) {
	for _, text := range []string{
		"device/{x.a}", `{split(x.a, ":", 2)}-b.{digest(x.b)}`, `a/{extract(x.a, 'SN([0-9]{3})')}`, "{", "}", "{x.a", "{x.a}{x.b}", "//", "{f(", `{split(x.a, "`,
	} {
		f.Add(text, "value", uint8(0))
	}
	f.Fuzz(func(t *testing.T, text, value string, u uint8) {
		parsed, err := parseTemplate(text, use(u%3), testSchema())
		if err != nil {
			return
		}
		if len(value) > maxFactBytes {
			return
		}
		got, err := parsed.expand("r", testFacts(t, map[string]any{"x.a": value, "x.b": value}))
		if err == nil && parsed.use != useLabel && strings.Count(got, parsed.use.separator()) != len(parsed.units)-1 {
			t.Errorf("%q with %q: %q has another number of units", text, value, got)
		}
		_ = parsed.checkSample("fleet.example")
	})
}
