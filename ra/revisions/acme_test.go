package revisions_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra/acme"
)

// TestACMESection checks the section of the policy about ACME.
func TestACMESection(t *testing.T) {
	const rules = "\nrules: [{name: tokens, evidence: [token]}, {name: web, evidence: [acme]}]\n"
	for section, want := range map[string]acme.Settings{
		"acme: {}":                  {Challenges: acme.ChallengeTypes()},
		"acme: {binding: required}": {Challenges: acme.ChallengeTypes()},
		"acme: {binding: optional, challenges: [dns-01]}": {OptionalBinding: true, Challenges: []acme.ChallengeType{acme.DNS01}},
	} {
		compiled, err := compiler(t).Compile([]byte(section+rules), 1)
		if err != nil {
			t.Errorf("%s: %v", section, err)
			continue
		}
		a, ok := compiled.Authenticators[pki.EvidenceACME].(*acme.Authenticator)
		if !ok || a.Settings().OptionalBinding != want.OptionalBinding || !slices.Equal(a.Settings().Challenges, want.Challenges) {
			t.Errorf("%s: the authenticator is %+v", section, a)
		}
	}
	for section, want := range map[string]string{
		"":                                     "a rule is for evidence of the kind acme: add `acme: {binding: required}`",
		"acme: required":                       "write keys with values",
		"acme: []":                             "write keys with values",
		"acme:":                                "the key has no value",
		"acme: {binding: always}":              `binding: "always" is not one of required, optional`,
		"acme: {bindings: required}":           `there is no key "bindings"; the nearest is binding`,
		"acme: {challenges: []}":               "challenges: name at least one type",
		"acme: {challenges: [http-02]}":        `challenges: "http-02" is not one of`,
		"acme: {challenges: [dns-01, dns-01]}": `challenges: "dns-01" is not one of http-01, dns-01, tls-alpn-01, or occurs twice`,
	} {
		_, err := compiler(t).Compile([]byte(section+rules), 1)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", section, err, want)
		}
	}
	compiled, err := compiler(t).Compile([]byte("rules: [{name: tokens, evidence: [token]}]"), 1)
	if err != nil || compiled.Authenticators[pki.EvidenceACME] != nil {
		t.Errorf("without a section, orders are accepted: %v", err)
	}
}
