package policy_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/brevet-pki/brevet/ra/policy"
)

func TestTable(t *testing.T) {
	p := compile(t, fleet)
	results, err := p.Test([]byte(`
cases:
  - name: "1"
    evidence: [x5c]
    facts: {x5c.source: acme, x5c.serial: CAM-17}
    expect: {rule: cameras, identity: device/cam/CAM-17, profile: device}
  - name: "2"
    evidence: [x5c, tpm]
    facts: {tpm.certified: true, x5c.source: acme, x5c.serial: "1"}
    hardware_key: true
    expect: {rule: sealed, profile: workload}
  - name: "3"
    evidence: [jwt]
    facts: {jwt.source: ci, jwt.uses: 4, jwt.audience: [a], jwt.expires_at: 2030-01-31T12:00:00Z, jwt.subject: "repo:fleet/pump:ref:x"}
    expect: {rule: builds, identity: ci/pump}
  - {name: "4", evidence: [x5c], facts: {x5c.source: other}, expect: {refusal: policy.no_rule}}
  - {name: "5", evidence: [token], identity: device/3, expect: {rule: tokens, identity: device/3}}

  - {name: wrong rule, evidence: [token], identity: device/3, expect: {rule: others, identity: device/4}}
  - {name: wrong profile, evidence: [token], identity: device/3, expect: {rule: tokens, profile: device}}
  - {name: not refused, evidence: [token], identity: device/3, expect: {refusal: policy.no_rule}}
  - {name: other refusal, evidence: [x5c], expect: {refusal: policy.limit}}
  - {name: refused, evidence: [x5c], expect: {rule: cameras}}
  - {name: software, evidence: [x5c, tpm], facts: {tpm.certified: true, x5c.source: acme, x5c.serial: "1"}, expect: {rule: sealed}}
`))
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"", "", "", "", "",
		"the rule should be others, and is tokens; the identity should be device/4, and is device/3",
		"the profile should be device, and is that of the registered identity",
		"the refusal should be policy.no_rule, and rule tokens grants device/3",
		"the refusal should be policy.limit, and is: no rule of the policy matches",
		"rule cameras should match, and the request is refused: no rule",
		"rule sealed should match, and the request is refused: rule sealed requires a key in hardware",
	}
	if len(results) != len(want) {
		t.Fatalf("%d results, want %d", len(results), len(want))
	}
	for i, r := range results {
		if (want[i] == "") != (r.Problem == "") || !strings.HasPrefix(r.Problem, want[i]) {
			t.Errorf("case %s: %q, want %q", r.Case, r.Problem, want[i])
		}
		if (r.Problem == "") != (len(r.Trials) == 0) {
			t.Errorf("case %s has %d trials", r.Case, len(r.Trials))
		}
	}
	if results[5].Line != 19 || results[5].Case != "wrong rule" {
		t.Errorf("the case %q is in line %d, want 19", results[5].Case, results[5].Line)
	}
}

func TestTableFaults(t *testing.T) {
	p := compile(t, fleet)
	item := func(keys string) string { return "cases:\n  - {name: a, " + keys + "}\n" }
	for table, want := range map[string]string{
		"":                        "the document is empty",
		"cases: []":               "line 1: cases: there is no case",
		"cass: []":                `there is no key "cass"; the nearest is cases`,
		item("expect: {rule: a}"): "line 2: case a: evidence: the key is missing",
		item("evidence: [x5c]"):   "line 2: case a: expect: the key is missing",
		"cases: [{evidence: [x5c], expect: {rule: a}}]":                              "a case: name: the key is missing",
		item("evidence: [x5], expect: {rule: a}"):                                    "the nearest is x5c",
		item("evidence: [x5c], expect: {}"):                                          "name the rule that should match",
		item("evidence: [x5c], expect: {rule: a, refusal: b}"):                       "name the rule that should match",
		item("evidence: [x5c], expect: {profile: b, refusal: b}"):                    "a refusal grants nothing",
		item("evidence: [x5c], expect: {role: b}"):                                   `expect.role: there is no key "role"; the nearest is rule`,
		item("evidence: [x5c], expect: {rule: a}, facts: {x5c.serial: 17}"):          "facts.x5c.serial: the fact is a text: write it between quotes",
		item("evidence: [x5c], expect: {rule: a}, facts: {tpm.ek: a}"):               `facts.tpm.ek: there is no fact "tpm.ek"`,
		item("evidence: [x5c], expect: {rule: a}, facts: {x5c.not_after: tomorrow}"): "the fact is a time",
		item("evidence: [jwt], expect: {rule: a}, facts: {jwt.uses: 1.5}"):           "the fact is a whole number",
		item("evidence: [jwt], expect: {rule: a}, facts: {jwt.audience: a}"):         "a list belongs here",
		item("evidence: [tpm], expect: {rule: a}, facts: {tpm.certified: 1}"):        "true or false",
		item("evidence: [tpm], expect: {rule: a}, identity: device/1"):               "does not name an identity",
		item("evidence: [token], expect: {rule: a}, identity: a b"):                  "case a: identity: ",
		item("evidence: [token], expect: {rule: a}, hardware_key: x"):                "true or false",
	} {
		_, err := p.Test([]byte(table))
		var faults policy.Faults
		if !errors.As(err, &faults) || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", table, err, want)
		}
	}
}
