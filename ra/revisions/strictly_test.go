package revisions_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/brevet-pki/brevet/ra/policy"
)

// TestKeysOfSections compiles documents with unknown keys, and with values that do not fit their keys.
func TestKeysOfSections(t *testing.T) {
	for section, problem := range map[string]string{
		"x5c:\n  acme:\n    rots: x":                             `line 6: x5c.acme.rots: there is no key "rots"; the nearest is roots`,
		"x5c: {acme: {roots: x, max_chain: long}}":               "line 4: x5c.acme.max_chain: a whole number belongs here",
		"x5c: {acme: {roots: x, require_crls: 1}}":               "x5c.acme.require_crls: true or false belongs here",
		"x5c: {acme: {roots: x, keys: P-256}}":                   "x5c.acme.keys: a list belongs here",
		"x5c: {acme: }":                                          "x5c.acme: the value is empty",
		"x5c: {acme: x}":                                         "keys with values belong here",
		"tpm: {chips: {root: x}}":                                `tpm.chips.root: there is no key "root"; the nearest is roots`,
		"jwt: {a: {isuer: x}}":                                   `jwt.a.isuer: there is no key "isuer"; the nearest is issuer`,
		"jwt: {a: {jwks: {keys: []}}}":                           "jwt.a.jwks: a text belongs here: put it between quotes",
		"jwt: {a: {kubernetes: {sever: x}}}":                     `jwt.a.kubernetes.sever: there is no key "sever"; the nearest is server`,
		"jwt: {a: {claims: [{fact: jwt.a, typ: string}]}}":       `jwt.a.claims.typ: there is no key "typ"; the nearest is type`,
		"jwt: {a: {issuer: x, max_lifetime: soon}}":              "jwt.a: cannot unmarshal",
		"recovery: {grace: 1h, times: 3, time: 4}":               `recovery.time: there is no key "time"; the nearest is times`,
		"x5c: {acme: {rots: x}, other: {roots: x, intermed: x}}": `x5c.other.intermed: there is no key "intermed"`,
	} {
		_, err := compiler(t).Compile([]byte("rules:\n- {name: tokens, evidence: [token]}\n\n"+section), 1)
		if faults := (policy.Faults)(nil); !errors.As(err, &faults) || !strings.Contains(err.Error(), problem) {
			t.Errorf("%q: %v, want a fault with %q", section, err, problem)
		}
	}
}
