package policy_test

import (
	"reflect"
	"strings"
	"testing"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra"
	"github.com/brevet-pki/brevet/ra/policy"
)

// labeled is a policy with rules for clients of EST and for others.
const labeled = `
rules:
  - {name: cameras, evidence: [x5c-tls], when: x5c.source == "cameras", identity: "cam/{x5c.serial}", register: true, keys: [P-384, P-256]}
  - {name: pumps, evidence: [x5c-tls], identity: "pump/{x5c.source}/{x5c.serial}", keys: [RSA-3072, P-256]}
  - {name: tokens, evidence: [token]}
  - {name: both, evidence: [token, x5c-tls]}
  - {name: agents, evidence: [x5c], when: x5c.source == "cameras", identity: "cam/{x5c.serial}"}
est:
  labels:
    default: {}
    cameras: {rules: [cameras, tokens], chain: true, attributes: template, require_linking: true, accept_names: true}
    pumps: {rules: [pumps], attributes: oids}
`

func TestLabels(t *testing.T) {
	p := compile(t, labeled)
	want := map[string]ra.Label{
		"default": {Name: "default", Attributes: ra.NoAttributes, Key: pki.P256},
		"cameras": {Name: "cameras", Rules: []string{"cameras", "tokens"}, Chain: true, Attributes: ra.AttributesTemplate, Key: pki.P256,
			RequireLinking: true, AcceptNames: true},
		"pumps": {Name: "pumps", Rules: []string{"pumps"}, Attributes: ra.AttributeOIDs, Key: pki.P256},
	}
	if got := p.Labels(); !reflect.DeepEqual(got, want) {
		t.Errorf("the labels are %+v, want %+v", got, want)
	}
	camera := ra.Claims{claim(pki.EvidenceX5CTLS, "x5c.source", "cameras", "x5c.serial", "1")}
	for _, c := range []struct {
		label string
		rule  string // empty if no rule matches
	}{{"", "cameras"}, {"default", "cameras"}, {"cameras", "cameras"}, {"pumps", "pumps"}} {
		if g, err := p.Grant(camera, c.label, now); err != nil || g.Rule != c.rule {
			t.Errorf("label %q: rule %s, %v, want %s", c.label, g.Rule, err, c.rule)
		}
	}
	_, err := p.Grant(ra.Claims{tokenFor(t, "device/1")}, "pumps", now)
	refused(t, "a rule that the label does not select", err, pki.RulePolicy, "")
	_, err = p.Grant(camera, "valves", now)
	refused(t, "an unknown label", err, pki.RuleLabel, `"valves"`)
	trials := p.Explain(camera, "pumps")
	if trials[0].Outcome != policy.NotSelected || trials[1].Outcome != policy.Matched {
		t.Errorf("the trials are %v", trials)
	}
	if trials := p.Explain(camera, "valves"); trials[0].Outcome != policy.NotSelected || trials[1].Outcome != policy.NotSelected {
		t.Errorf("the trials of an unknown label are %v", trials)
	}
}

// Evidence of one kind is never taken for the other, although both have the same facts and subjects.
func TestKindsWithTheSameFacts(t *testing.T) {
	p := compile(t, labeled)
	for kind, rule := range map[pki.EvidenceKind]string{pki.EvidenceX5C: "agents", pki.EvidenceX5CTLS: "cameras"} {
		if g, err := p.Grant(ra.Claims{claim(kind, "x5c.source", "cameras", "x5c.serial", "1")}, "", now); err != nil || g.Rule != rule {
			t.Errorf("%s: rule %s, %v, want %s", kind, g.Rule, err, rule)
		}
	}
	checkFaults(t, []faulty{
		{one("evidence: [x5c, x5c-tls]"), "x5c and x5c-tls prove the same"},
		{one("evidence: [x5c-tls], identity: 'd/{x5c-tls.serial}'"), "x5c"},
	})
}

func TestLabelFaults(t *testing.T) {
	with := func(est string) string {
		return "rules:\n  - {name: tokens, evidence: [token]}\n  - {name: cameras, evidence: [x5c], identity: 'd/{x5c.source}/{x5c.serial}'}\nest: " + est + "\n"
	}
	checkFaults(t, []faulty{
		{with("x"), "est: keys with values belong here"},
		{with(""), "est: the key has no value"},
		{with("{}"), "est.labels: write at least one label"},
		{with("{lables: {}}"), `there is no key "lables"; the nearest is labels`},
		{with("{labels: [a]}"), "keys with values belong here"},
		{with("{labels: {a: x}}"), "est.labels.a: keys with values belong here"},
		{with("{labels: {a: {}, a: {}}}"), "this key occurs twice"},
		{with("{labels: {cacerts: {}}}"), "not the name of an operation"},
		{with("{labels: {..: {}}}"), "is not a label"},
		{with("{labels: {a/b: {}}}"), "is not a label"},
		{with("{labels: {" + strings.Repeat("a", 64) + ": {}}}"), "is not a label"},
		{with("{labels: {a: {rule: [tokens]}}}"), `est.labels.a.rule: there is no key "rule"; the nearest is rules`},
		{with("{labels: {a: {rules: [tokns]}}}"), `there is no rule "tokns"; the nearest is tokens`},
		{with("{labels: {a: {rules: [tokens, tokens]}}}"), "rule tokens occurs twice"},
		{with("{labels: {a: {rules: []}}}"), "name at least one rule"},
		{with("{labels: {a: {rules: [cameras]}}}"), "rule cameras is for evidence that clients of EST cannot send"},
		{with("{labels: {a: {chain: often}}}"), "true or false belongs here"},
		{with("{labels: {a: {attributes: oid}}}"), "the nearest is oids"},
	})
}

// A rule is reachable if it is for a label that does not select the rule before it.
func TestLabelsReachRules(t *testing.T) {
	const rules = "rules:\n  - {name: a, evidence: [token]}\n  - {name: b, evidence: [token]}\n"
	compile(t, rules+"est: {labels: {x: {rules: [b]}}}\n")
	checkFaults(t, []faulty{
		{rules + "est: {labels: {x: {rules: [a, b]}}}\n", "rule b: no request can reach this rule: rule a in line 2"},
		{rules + "est: {labels: {x: {}}}\n", "rule b: no request can reach this rule"},
	})
}

func TestTableWithLabels(t *testing.T) {
	p := compile(t, labeled)
	results, err := p.Test([]byte(`
cases:
  - {name: a camera, evidence: [x5c-tls], label: cameras, facts: {x5c.source: cameras, x5c.serial: "1"}, expect: {rule: cameras, identity: cam/1}}
  - {name: a pump, evidence: [x5c-tls], label: pumps, facts: {x5c.source: cameras, x5c.serial: "1"}, expect: {rule: pumps}}
  - {name: a token, evidence: [token], label: pumps, identity: device/1, expect: {refusal: policy.no_rule}}
`))
	if err != nil || len(results) != 3 {
		t.Fatalf("%d results, %v", len(results), err)
	}
	for _, r := range results {
		if r.Problem != "" {
			t.Errorf("%s: %s", r.Case, r.Problem)
		}
	}
	_, err = p.Test([]byte("cases: [{name: a, evidence: [token], label: pmps, identity: a, expect: {rule: tokens}}]"))
	refused(t, "an unknown label", err, pki.RulePolicyInvalid, `the nearest is pumps`)
}
