package policy_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra"
	"github.com/brevet-pki/brevet/ra/policy"
)

// one returns a document with one rule, which has the given keys.
func one(keys string) string { return "rules:\n  - {name: a, " + keys + "}\n" }

// faulty is a document, and a part of the faults that it should have.
type faulty struct{ document, want string }

func checkFaults(t *testing.T, all []faulty) {
	t.Helper()
	for _, c := range all {
		_, err := policy.Compile([]byte(c.document), 1, environment(t))
		var faults policy.Faults
		if !errors.As(err, &faults) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%.200q:\n%v\nwant %q", c.document, err, c.want)
			continue
		}
		refused(t, c.document[:min(len(c.document), 40)], err, pki.RulePolicyInvalid, "")
	}
}

func TestDocumentFaults(t *testing.T) {
	checkFaults(t, []faulty{
		{"", "the document is empty"},
		{"rules: [", "line 1: this is not YAML"},
		{"a: b\n\tc: d", "line 2: this is not YAML"},
		{"- a", "line 1: keys with values belong here"},
		{"rules: []", "line 1: rules: there is no rule"},
		{"rules:", "line 1: rules: there is no rule"},
		{"rules: {a: b}", "line 1: rules: a list belongs here"},
		{"rules: x\n---\nrules: y", "a second document starts here"},
		{"rles: []", `line 1: rles: there is no key "rles"; the nearest is rules`},
		{"rules: &a [*a]", "aliases and anchors are not allowed"},
		{"rules: [a]", "line 1: a rule: keys with values belong here"},
		{strings.Repeat("[", 17), "this is not YAML"},
		{"a: " + nested(16), "nested too deeply"},
		{"a: " + strings.Repeat("x", 1<<20), "write at most 1048576"},
		{"a: [" + strings.Repeat("1,", 1<<18), ""}, // either too many values or too long
		{"token: {a: b}", `there is no key "token"`},
	})
}

func TestRuleFaults(t *testing.T) {
	checkFaults(t, []faulty{
		{"rules: [{}]", "line 1: a rule: name: give every rule a name"},
		{"rules: [{name: a}]", "line 1: rule a: evidence: name the kind of evidence"},
		{one("evidence: []"), "line 2: rule a: evidence: name one kind"},
		{one("evidence: token"), "rule a: evidence: a list belongs here"},
		{one("evidence: [tokn]"), `evidence[0]: there is no kind of evidence "tokn"; the nearest is token`},
		{one("evidence: [tpm, tpm]"), "the kind tpm occurs twice"},
		{one("evidence: [tpm, x5c, jwt]"), "the list has 3 items: write at most 2"},
		{one("evidence: [token], whne: x"), `whne: there is no key "whne"; the nearest is when`},
		{one("evidence: [token], name: b"), "name: this key occurs twice"},
		{one("evidence: [token], ? [a] : b"), "a key must be a plain word"},
		{"rules: [{name: a b, evidence: [token]}]", `a rule: name: "a b" is not a name`},
		{one("evidence: [token], replace: true"), "the evidence itself says whether it replaces"},
		{one("evidence: [token], register: 1"), "register: true or false belongs here"},
		{
			one("evidence: [token], profile: x"),
			"profile: the key describes identities that the rule registers: add register: true",
		},
		{one("evidence: [token], labels: {a: b}"), "labels: the key describes identities"},
		{one("evidence: [token], lifetime: 12"), "lifetime: a duration with its unit"},
		{one("evidence: [token], keys: []"), "keys: name at least one type of key"},
		{one("evidence: [token], keys: [RSA]"), `keys[0]: "RSA" is not a kind of key`},
		{one("evidence: [token], hardware_key: x"), "hardware_key: true or false"},
		{
			one("evidence: [token], limits: {rate: 5}"),
			`limits.rate: "5" is not a rate: write a number and a duration, such as 100/1h`,
		},
		{one("evidence: [token], limits: {rate: 0/1h}"), "is not a rate"},
		{one("evidence: [token], limits: {rate: 1/1ms}"), "is not a rate"},
		{one("evidence: [token], limits: {total: 0}"), "limits.total: a whole number from 1"},
		{one("evidence: [token], limits: {total: 1}"), "limits.total: the key limits how many identities the rule registers"},
		{one("evidence: [token], limits: {totl: 1}"), `limits.totl: there is no key "totl"; the nearest is total`},
		{one("evidence: [token], identity: {a: b}"), "put a text that starts with { between quotes"},
		{one("evidence: [token], when: [a]"), "when: a text belongs here"},
		{one(`evidence: [token], when: ""`), "the text is empty"},
		{one(`evidence: [token], when: token.identity = "a"`), "when: write == to compare"},
		{one(`evidence: [token], when: 'token.identity="a"'`), "when: write == to compare"},
		{one("evidence: [token], when: "), "when: the key has no value"},
		{one("evidence: [token], register: ~"), "register: the key has no value"},
		{
			one("evidence: [token], register: true, kind: server"),
			`"server" is not a kind of identity: use device or workload`,
		},
	})
}

func TestRegistrationFaults(t *testing.T) {
	checkFaults(t, []faulty{
		{
			one("evidence: [token], register: true, profile: devise"),
			`line 2: rule a: profile: there is no profile "devise"`,
		},
		{
			one("evidence: [token], register: true, profile: workload"),
			"profile workload is not for identities of the kind device",
		},
		{
			one("evidence: [token], register: true, kind: workload, profile: device"),
			"profile device is not for identities of the kind workload",
		},
		{one("evidence: [token], register: true, lifetime: 31d"), "lifetime: profile device allows at most 30d"},
		{
			one("evidence: [token], register: true, keys: [RSA-2048]"),
			"keys: profile device does not allow RSA-2048: use",
		},
		{one(`evidence: [token], register: true, labels: {"": b}`), "not the name of a label"},
		{
			one(`evidence: [token], register: true, labels: {a: "{token.identty}"}`),
			`labels.a: there is no fact "token.identty"; the nearest is token.identity`,
		},
		{one(`evidence: [token], register: true, labels: {a: "{tpm.ek}"}`), `there is no fact "tpm.ek"`},
		{
			one(`evidence: [token], register: true, dns_names: ["A.example"]`),
			"dns_names: write DNS names in lower case",
		},
		{one(`evidence: [token], register: true, dns_names: ["a..example"]`), "a DNS label of the template is empty"},
		{one(`evidence: [token], register: true, dns_names: ["*.example"]`), "is not a host name"},
		{one(`evidence: [token], register: true, dns_names: ["10.0.0.1"]`), "as an IP address"},
		{
			one("evidence: [x5c], register: true, profile: operator, identity: device/1"),
			"profile operator is not for",
		},
	})
}

func TestIdentityFaults(t *testing.T) {
	checkFaults(t, []faulty{
		{one("evidence: [x5c]"), "rule a: identity: add the path of the identity, such as device/{x5c.serial}"},
		{
			one("evidence: [token], identity: device/1"),
			"identity: the evidence names the identity itself: remove the key",
		},
		{one("evidence: [x5c], identity: /device/1"), "without a slash at its start"},
		{one("evidence: [x5c], identity: spiffe://a/b"), "without the trust domain"},
		{one("evidence: [x5c], identity: device//b"), "a path segment of the template is empty"},
		{one("evidence: [x5c], identity: device/"), "a path segment of the template is empty"},
		{one("evidence: [x5c], identity: device/../a"), "identity: "},
		{one("evidence: [x5c], identity: device/a b"), "identity: "},
		{one("evidence: [x5c], identity: Brevet/a"), "paths under brevet/ are reserved"},
		{
			one(`evidence: [x5c], identity: "device/{x5c.source}"`),
			"two devices could get the same identity: add one of x5c.serial, x5c.certificate_serial",
		},
		{one(`evidence: [x5c], identity: "device/{x5c.not_after}/{x5c.serial}"`), "x5c.not_after is not a text"},
		{one(`evidence: [x5c], identity: "device/{x5c.source}{x5c.serial}"`), "a path segment has two values"},
		{one(`evidence: [x5c], identity: "device/{x5c.source}-{x5c.serial}"`), "a path segment has two values"},
		{one(`evidence: [x5c], identity: "device/{x5c.serial"`), "a placeholder is {fact}"},
		{one(`evidence: [x5c], identity: "device/x5c.serial}"`), "there is a } without a {"},
		{
			one(`evidence: [x5c], identity: "device/{lower(x5c.serial)}"`),
			`there is no function "lower"; use one of digest, extract, split`,
		},
		{
			one(`evidence: [x5c], identity: "device/{digest(x5c.serial, 3)}"`),
			"digest: a ) is missing, or there are too many arguments",
		},
		{
			one(`evidence: [x5c], identity: "device/{split(x5c.serial)}"`),
			`split: write split(fact, "separator", number)`,
		},
		{
			one(`evidence: [x5c], identity: "device/{split(x5c.serial, '-', 64)}"`),
			"the parts are numbered from 0 to 63",
		},
		{one(`evidence: [x5c], identity: "device/{split(x5c.serial, '', 1)}"`), "split: write split"},
		{
			one(`evidence: [x5c], identity: "device/{extract(x5c.serial, 'a')}"`),
			"the regular expression has 0 groups: write one",
		},
		{one(`evidence: [x5c], identity: "device/{extract(x5c.serial, '(a)(b)')}"`), "has 2 groups"},
		{
			one(`evidence: [x5c], identity: "device/{extract(x5c.serial, 'a)|(b')}"`),
			"this is not a regular expression",
		},
		{one(`evidence: [x5c], identity: "device/{extract(x5c.serial, '((a{99}){99})')}"`), "regular expression"},
		{one(`evidence: [jwt], identity: "a/{digest(jwt.uses)}/{jwt.subject}"`), "jwt.uses is not a text"},
	})
}

func TestConditionFaults(t *testing.T) {
	checkFaults(t, []faulty{
		{one("evidence: [token], when: tpm.certified"), `when: there is no fact "tpm.certified"`},
		{
			one("evidence: [token], when: token.identty == 'a'"),
			`there is no fact "token.identty"; the nearest is token.identity`,
		},
		{
			one("evidence: [token], when: token.identity.sartsWith('a')"),
			`there is no function or fact "sartsWith"; the nearest is startsWith`,
		},
		{one("evidence: [token], when: token.identity == 1"), "== does not work with the types (string, int)"},
		{one("evidence: [token], when: token.identity"), "a condition is true or false, and this is a string"},
		{one("evidence: [token], when: token.identity =="), "when: mismatched input"},
		{one("evidence: [token], when: token.identity == token"), `there is no function or fact "token"`},
		{one(`evidence: [token], when: "true"`), "true is constant: remove it"},
		{one(`evidence: [token], when: token.creator == ""`), "no fact is the empty text"},
		{one(`evidence: [token], when: 'token.creator in ["", "a"]'`), "no fact is the empty text"},
		{one(`evidence: [token], when: "token.identity.matches('a')"`), "matches would accept a longer value"},
		{one(`evidence: [token], when: "token.identity.matches('^a|b$')"`), "matches would accept a longer value"},
		{one(`evidence: [token], when: "token.identity.matches('(?m)^a$')"`), "matches would accept a longer value"},
		{
			one(`evidence: [token], when: "token.identity.matches('^($')"`),
			"matches: this is not a regular expression",
		},
		{one(`evidence: [token], when: "token.identity.matches('^(a{99}){99}$')"`), "regular expression"},
		{
			one(`evidence: [token], when: "token.identity.matches(token.creator)"`),
			"the pattern of matches must be a text between quotes",
		},
		{
			one(`evidence: [jwt], identity: a, when: "jwt.audience.exists(a, a == 'x')"`),
			`there is no function or fact "exists"`,
		},
		{one(`evidence: [jwt], identity: a, when: "jwt.audience.all(a, a == 'x')"`), `when: `},
		{one(`evidence: [jwt], identity: a, when: "has(jwt.subject)"`), `there is no function or fact "has"`},
		{one(`evidence: [jwt], identity: a, when: "jwt.subject in {'a': 1}"`), "when: "},
		{one(`evidence: [jwt], identity: a, when: "{'a': true}['a']"`), "when: "},
		{one(`evidence: [jwt], identity: a, when: "jwt.audience[0] == 'a'"`), "when: "},
		{
			one(`evidence: [jwt], identity: a, when: "jwt.subject + 'a' == 'ba'"`),
			"+ does not work with the types (string, string)",
		},
		{one(`evidence: [jwt], identity: a, when: "jwt.subject in ['a', 1]"`), "when: "},
		{one(`evidence: [jwt], identity: a, when: "dyn(jwt.subject) == 1"`), `there is no function or fact "dyn"`},
		{
			one(`evidence: [jwt], identity: a, when: "type(jwt.subject) == string"`),
			`there is no function or fact "type"`,
		},
		{
			one(`evidence: [jwt], identity: a, when: "jwt.expires_at.getHours('Europe/Berlin') > 3"`),
			`there is no function or fact "getHours"`,
		},
		{
			one(`evidence: [jwt], identity: a, when: "` + strings.Repeat("(", 70) + "jwt.uses > 1" + strings.Repeat(")",
				70) + `"`),
			"when: ",
		},
		{
			one(`evidence: [jwt], identity: a, when: "jwt.uses > 1` + strings.Repeat(" ", 4096) + `"`),
			"write at most 4096",
		},
		{
			one(`evidence: [jwt], identity: a, when: "` + strings.Repeat("jwt.subject.contains(jwt.issuer) && ",
				20) + `jwt.uses > 1"`),
			"the condition may cost",
		},
		{
			"rules:\n  - name: a\n    evidence: [token]\n    when: |\n      token.identity == 'a'\n      && token.creatr == 'b'\n",
			`line 6: rule a: when: there is no fact "token.creatr"`,
		},
	})
}

func nested(depth int) string { return strings.Repeat("[", depth) + strings.Repeat("]", depth) }

func TestAllFaultsAreReported(t *testing.T) {
	_, err := policy.Compile([]byte(`rules:
  - name: a
    evidence: [token]
    when: token.foo == "x"
    lifetme: 3h
  - name: b
    evidence: [x5c]
    identity: "{x5c.source}"
    limits: {rate: x}
  - name: a
    evidence: [token]
extra: 1
`), 1, environment(t))
	var faults policy.Faults
	if !errors.As(err, &faults) {
		t.Fatalf("%v, want faults", err)
	}
	var got []string
	for _, f := range faults {
		got = append(got, fmt.Sprintf("%d %s %s", f.Line, f.Rule, f.Key))
	}
	want := []string{"4 rule a when", "5 rule a lifetme", "8 rule b identity", "9 rule b limits.rate", "10 rule a name",
		"12  extra"}
	if !slices.Equal(got, want) {
		t.Errorf("the faults are %q, want %q\n%v", got, want, err)
	}
}

func TestUnreachableRules(t *testing.T) {
	const evidence = "evidence: [jwt], identity: 'a/{jwt.source}/{jwt.subject}'"
	for name, c := range map[string]struct{ first, second, want string }{
		"after a rule without a condition": {"", "when: jwt.uses > 1", "first"},
		"same condition":                   {"when: jwt.uses > 1", "when: jwt.uses > 1", "first"},
		"written differently":              {"when: jwt.uses>1", "when: (jwt.uses > 1)", "first"},
		"comparison turned around":         {`when: jwt.source == "a"`, `when: '"a" == jwt.source'`, "first"},
		"more conditions":                  {"when: jwt.uses > 1", `when: jwt.source == "a" && jwt.uses > 1`, "first"},
		"another order": {`when: jwt.uses > 1 && jwt.source == "a"`,
			`when: jwt.source == "a" && jwt.uses > 1`, "first"},
		"fewer conditions":  {`when: jwt.uses > 1 && jwt.source == "a"`, "when: jwt.uses > 1", ""},
		"or":                {`when: jwt.uses > 1 || jwt.source == "a"`, "when: jwt.uses > 1", ""},
		"another condition": {"when: jwt.uses > 1", "when: jwt.uses > 2", ""},
		"no condition":      {"when: jwt.uses > 1", "", ""},
		"other kinds":       {"", "evidence: [x5c], identity: a", ""},
		"both kinds":        {"", "evidence: [x5c, jwt], identity: a", ""},
		"same kinds in another order": {"evidence: [jwt, x5c], identity: a", "evidence: [x5c, jwt], identity: b",
			"first"},
	} {
		document := "rules:\n"
		for i, keys := range []string{c.first, c.second} {
			if !strings.Contains(keys, "evidence") {
				keys = strings.TrimSuffix(evidence+", "+keys, ", ")
			}
			document += fmt.Sprintf("  - {name: %s, %s}\n", []string{"first", "second"}[i], keys)
		}
		_, err := policy.Compile([]byte(document), 1, environment(t))
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(),
			"line 3: rule second: no request can reach this rule: rule first in line 2")) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestTotalCostIsBounded(t *testing.T) {
	var b strings.Builder
	b.WriteString("rules:\n")
	for i := range 2000 {
		fmt.Fprintf(&b, "  - {name: r%d, evidence: [jwt], identity: a, when: 'jwt.subject.matches(\"^%d%s$\")'}\n", i, i,
			strings.Repeat("[a-z]", 40))
	}
	_, err := policy.Compile([]byte(b.String()), 1, environment(t))
	if err == nil || !strings.Contains(err.Error(),
		"may cost more than 2000000 units together") || strings.Count(err.Error(), "together") != 1 {
		t.Errorf("2000 expensive conditions: %.300v, want one fault", err)
	}
}

// section is a Section that knows one key.
type section struct{}

func (section) Check(values *yaml.Node) error {
	var faults policy.Faults
	for i := 0; i+1 < len(values.Content); i += 2 {
		if key := values.Content[i]; key.Value != "roots" {
			faults = append(faults, policy.Fault{Line: key.Line, Key: key.Value, Problem: "unknown"})
		}
	}
	if len(faults) > 0 {
		return faults
	}
	if values.Kind != yaml.MappingNode {
		return errors.New("keys with values belong here")
	}
	return nil
}

func TestSections(t *testing.T) {
	e := environment(t)
	e.Kinds[1].Section = section{}
	const rules = "\nrules: [{name: a, evidence: [token]}]\n"
	if _, err := policy.Compile([]byte("x5c: {roots: [a]}"+rules), 1, e); err != nil {
		t.Fatal(err)
	}
	for text, want := range map[string]string{
		"x5c:\n  roots: [a]\n  rots: [b]": "line 3: x5c.rots: unknown", "x5c: [a]": "line 1: x5c: keys with values", "tpm: {}": `there is no key "tpm"`,
	} {
		if _, err := policy.Compile([]byte(text+rules), 1, e); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
}

// declaring is a section that declares a fact for each key, of type text.
type declaring struct{}

func (declaring) Check(*yaml.Node) error { return nil }

func (declaring) Declare(values *yaml.Node) (map[string]ra.FactType, []ra.UniqueFact) {
	facts := map[string]ra.FactType{}
	for i := 0; i < len(values.Content); i += 2 {
		facts[values.Content[i].Value] = ra.FactString
	}
	return facts, []ra.UniqueFact{{Name: values.Content[0].Value}}
}

func TestSectionsDeclareFacts(t *testing.T) {
	e := environment(t)
	e.Kinds[3].Section = declaring{}
	const rules = `
rules:
  - {name: a, evidence: [jwt], when: 'jwt.project.name.startsWith("fleet-")', identity: "ci/{jwt.project.id}"}
`
	p, err := policy.Compile([]byte(rules+"jwt: {jwt.project.id: x, jwt.project.name: y}"), 1, e)
	if err != nil {
		t.Fatal(err)
	}
	g, err := p.Grant(ra.Claims{claim(kindJWT, "jwt.project.id", "17", "jwt.project.name", "fleet-a")}, "", now)
	if err != nil || g.Identity.Path() != "ci/17" {
		t.Errorf("%v, %v, want ci/17", g.Identity, err)
	}
	results, err := p.Test([]byte(`cases: [{name: a, evidence: [jwt], facts: {jwt.project.id: "1", jwt.project.name: fleet-x}, expect: {rule: a}}]`))
	if err != nil || results[0].Problem != "" {
		t.Errorf("%+v, %v, want a passed case", results, err)
	}
	if _, err := policy.Compile([]byte("jwt: {x5c.a: x}"+rules), 1, e); err == nil || !strings.Contains(err.Error(),
		`line 1: jwt: evidence of the kind jwt cannot have the fact "x5c.a"`) {
		t.Errorf("a fact of another kind: %v", err)
	}
	if _, err := policy.Compile([]byte(rules), 1, e); err == nil || !strings.Contains(err.Error(),
		`there is no fact "jwt.project`) {
		t.Errorf("facts that are not declared: %v", err)
	}
}

func TestEnvironmentsThatContradictThemselves(t *testing.T) {
	for name, change := range map[string]func(*policy.Environment){
		"fact of another kind": func(e *policy.Environment) { e.Kinds[1].Facts["tpm.x"] = 1 },
		"unknown type":         func(e *policy.Environment) { e.Kinds[1].Facts["x5c.x"] = 9 },
		"unique fact":          func(e *policy.Environment) { e.Kinds[1].Unique = []ra.UniqueFact{{Name: "x5c.x"}} },
		"scope of unique fact": func(e *policy.Environment) { e.Kinds[2].Unique[0].Within = [][]string{{"tpm.x"}} },
		"two kinds":            func(e *policy.Environment) { e.Kinds[2].Evidence = kindX5C },
		"two names": func(e *policy.Environment) {
			e.Kinds = append(e.Kinds, policy.Kind{Evidence: 9,
				Name: "x5c"})
		},
	} {
		e := environment(t)
		change(&e)
		_, err := policy.Compile(policy.Default(), 1, e)
		if _, isRefusal := pki.AsRefusal(err); err == nil || isRefusal {
			t.Errorf("%s: %v, want an error that is no refusal", name, err)
		}
	}
}

func FuzzCompile(f *testing.F) {
	f.Add([]byte(fleet))
	f.Add(policy.Default())
	f.Add([]byte("profiles: {a: " + pump + "}\n" + string(policy.Default())))
	f.Add([]byte(one(`evidence: [x5c], identity: "device/{split(x5c.serial, '-', 3)}", when: x5c.source in ["a"]`)))
	e := environment(f)
	f.Fuzz(func(t *testing.T, document []byte) {
		p, err := policy.Compile(document, 1, e)
		var faults policy.Faults
		if err != nil && !errors.As(err, &faults) {
			t.Errorf("the error %v is not Faults", err)
		}
		if err == nil {
			p.Explain(nil, "")
		}
	})
}
