package policy_test

import (
	"fmt"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra"
	"github.com/brevet-pki/brevet/ra/policy"
)

const fleet = `
rules:
  - name: cameras
    evidence: [x5c]
    when: x5c.source == "acme" && x5c.serial.matches("^CAM-[0-9]+$")
    identity: device/cam/{x5c.serial}
    register: true
    replace: true
    profile: device
    labels: {line: "{x5c.source}", serial: "SN {split(x5c.serial, '-', 1)}", site: North & South}
    dns_names: ["cam-{digest(x5c.serial)}.fleet.example"]
    lifetime: 12h
    keys: [P-256, Ed25519]
    limits: {total: 100}
  - name: sealed
    evidence: [tpm, x5c]
    when: tpm.certified && x5c.source in ["acme"]
    identity: sealed/{digest(x5c.serial)}
    register: true
    kind: workload
    hardware_key: true
  - name: allow-listed
    evidence: [tpm]
    identity: gateway/{tpm.ek}
  - name: gateway
    evidence: [jwt]
    when: |
      jwt.issuer == "https://ci.example"
      && "brevet" in jwt.audience
    identity: ci/release
  - name: builds
    evidence: [jwt]
    when: jwt.source in ["ci", "nightly"] || jwt.uses > 3
    identity: "{jwt.source}/{extract(jwt.subject, 'repo:fleet/([a-z]+):ref:.*')}"
  - name: tokens
    evidence: [token]
  - name: known-device
    evidence: [token, tpm]
`

func TestGrant(t *testing.T) {
	p := compile(t, fleet)
	cam := claim(kindX5C, "x5c.source", "acme", "x5c.serial", "CAM-17")
	tpm := claim(kindTPM, "tpm.ek", "ab12", "tpm.certified", true)
	replacing := tokenFor(t, "device/3")
	replacing.Replace = true
	for name, c := range map[string]struct {
		claims ra.Claims
		want   ra.Grant
	}{
		"factory": {ra.Claims{cam}, ra.Grant{
			Rule: "cameras", Identity: identity(t,
				"device/cam/CAM-17"), Subject: cam.Subject, Replace: true, Lifetime: 12 * time.Hour,
			Keys: []pki.KeyType{pki.P256, pki.Ed25519}, Total: 100, Register: &ra.NewIdentity{
				Kind: pki.Device, Profile: "device", Labels: map[string]string{"line": "acme", "serial": "SN 17",
					"site": "North & South"},
				DNSNames: []string{"cam-02714941084f6563620119f55cf7da28.fleet.example"},
			},
		}},
		"two kinds, in another order": {ra.Claims{cam, tpm}, ra.Grant{
			Rule: "sealed", Identity: identity(t,
				"sealed/02714941084f6563620119f55cf7da28"), Subject: tpm.Subject, HardwareKey: true,
			Register: &ra.NewIdentity{Kind: pki.Workload, Profile: "workload"},
		}},
		"registered": {ra.Claims{tpm}, ra.Grant{Rule: "allow-listed", Identity: identity(t, "gateway/ab12"),
			Subject: tpm.Subject}},
		"list fact": {ra.Claims{claim(kindJWT, "jwt.issuer", "https://ci.example", "jwt.audience", []string{"a", "brevet"})},
			ra.Grant{
				Rule: "gateway", Identity: identity(t, "ci/release"),
			}},
		"extract": {ra.Claims{claim(kindJWT, "jwt.source", "ci", "jwt.subject", "repo:fleet/pump:ref:refs/heads/main")},
			ra.Grant{
				Rule: "builds", Identity: identity(t, "ci/pump"),
			}},
		"number": {ra.Claims{claim(kindJWT, "jwt.source", "ci", "jwt.uses", int64(4), "jwt.subject", "repo:fleet/a:ref:")},
			ra.Grant{Rule: "builds", Identity: identity(t, "ci/a")}},
		"token": {ra.Claims{tokenFor(t, "device/3")}, ra.Grant{Rule: "tokens", Identity: identity(t,
			"device/3")}},
		"token that replaces": {ra.Claims{replacing}, ra.Grant{Rule: "tokens", Identity: identity(t, "device/3"),
			Replace: true}},
		"token tied to device": {ra.Claims{tokenFor(t, "device/3"), tpm}, ra.Grant{Rule: "known-device",
			Identity: identity(t, "device/3"), Subject: tpm.Subject}},
	} {
		c.want.Revision = 7
		if c.want.Subject.IsZero() && c.claims[0].Kind == kindJWT {
			c.want.Subject = c.claims[0].Subject
		}
		got, err := p.Grant(c.claims, "", now)
		if diff := cmp.Diff(c.want, got, cmp.Comparer(func(a,
			b pki.SPIFFEID) bool {
			return a == b
		})); err != nil || diff != "" {
			t.Errorf("%s: %v, and the grant differs from the expected one:\n%s", name, err, diff)
		}
	}
}

func TestGrantRefuses(t *testing.T) {
	p := compile(t, fleet)
	cam := func(serial string) ra.Claims {
		return ra.Claims{claim(kindX5C, "x5c.source", "acme", "x5c.serial", serial)}
	}
	subject := func(s string) ra.Claims { return ra.Claims{claim(kindJWT, "jwt.source", "ci", "jwt.subject", s)} }
	const none = "no rule of the policy matches the evidence"
	for name, c := range map[string]struct {
		claims ra.Claims
		words  string
	}{
		"no claims":       {nil, none},
		"three claims":    {ra.Claims{claim(kindX5C), claim(kindTPM), claim(kindJWT)}, none},
		"other source":    {ra.Claims{claim(kindX5C, "x5c.source", "other", "x5c.serial", "CAM-17")}, none},
		"other serial":    {cam("CAM-17x"), none},
		"line break":      {cam("CAM-17\n"), none},
		"no facts":        {ra.Claims{claim(kindX5C)}, none},
		"additional kind": {ra.Claims{claim(kindJWT, "jwt.source", "ci"), claim(kindX5C)}, none},
		"long fact":       {cam(strings.Repeat("x", 1025)), "the value of x5c.serial in the evidence is too long"},
		"long list":       {ra.Claims{claim(kindJWT, "jwt.audience", make([]string, 257))}, "too long"},
		"long item":       {ra.Claims{claim(kindJWT, "jwt.audience", []string{strings.Repeat("x", 1025)})}, "too long"},
		"value with a slash": {ra.Claims{claim(kindTPM, "tpm.ek", "a/b")},
			"rule allow-listed matches, but its template does not accept the value of tpm.ek, which has a slash"},
		"empty value":      {ra.Claims{claim(kindTPM)}, "which is empty"},
		"no match":         {subject("repo:other/pump:ref:x"), "which does not match the pattern of extract"},
		"unanchored":       {subject("xrepo:fleet/pump:ref:x"), "does not match the pattern"},
		"token for nobody": {ra.Claims{{Kind: pki.EvidenceToken}}, "rule tokens needs evidence that names the identity"},
	} {
		g, err := p.Grant(c.claims, "", now)
		refused(t, name, err, pki.RulePolicy, c.words)
		if !cmp.Equal(g, ra.Grant{}, cmp.Comparer(func(a, b pki.SPIFFEID) bool { return a == b })) {
			t.Errorf("%s: the grant is %+v, want none", name, g)
		}
	}
	_, err := p.Grant(ra.Claims{claim(kindX5C, "x5c.serial", 7)}, "", now)
	if _, ok := pki.AsRefusal(err); ok || err == nil {
		t.Errorf("a fact of another type than declared: %v, want an error that is no refusal", err)
	}
}

var _ ra.Policy = (*policy.Policy)(nil)

func TestConcurrentGrants(t *testing.T) {
	p := compile(t, fleet)
	claims := ra.Claims{claim(kindJWT, "jwt.source", "ci", "jwt.uses", int64(4), "jwt.subject", "repo:fleet/pump:ref:x")}
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for range 50 {
				if g, err := p.Grant(claims, "", now); err != nil || g.Rule != "builds" {
					t.Errorf("%v, %v, want rule builds", g.Rule, err)
				}
				p.Explain(claims, "")
			}
		})
	}
	all.Wait()
}

// A request whose first matching rule cannot be evaluated must not get the grant of a later rule.
func TestFailingConditionRefuses(t *testing.T) {
	p := compile(t, `
rules:
  - {name: old, evidence: [x5c], when: int(x5c.serial) < 1000, identity: "old/{x5c.source}/{x5c.serial}"}
  - {name: new, evidence: [x5c], identity: "new/{x5c.source}/{x5c.serial}"}
`)
	for serial, want := range map[string]string{"17": "old/acme/17", "2000": "new/acme/2000"} {
		if g, err := p.Grant(ra.Claims{claim(kindX5C, "x5c.source", "acme", "x5c.serial", serial)}, "", now); err != nil || g.Identity.Path() != want {
			t.Errorf("serial %s: %v, %v, want %s", serial, g.Identity, err, want)
		}
	}
	_, err := p.Grant(ra.Claims{claim(kindX5C, "x5c.serial", "A17")}, "", now)
	refused(t, "a serial that is no number", err, pki.RulePolicy, "the condition of rule old cannot be evaluated")

	guarded := compile(t, `
rules:
  - name: old
    evidence: [x5c]
    when: int(x5c.serial) < 1000 && x5c.serial.matches("^[0-9]+$")
    identity: "old/{x5c.source}/{x5c.serial}"
  - {name: new, evidence: [x5c], identity: "new/{x5c.source}/{x5c.serial}"}
`)
	if g, err := guarded.Grant(ra.Claims{claim(kindX5C, "x5c.source", "acme", "x5c.serial", "A17")}, "", now); err != nil || g.Rule != "new" {
		t.Errorf("a guarded condition: %v, %v, want rule new", g.Rule, err)
	}
}

// A rule must not match evidence because the evidence says nothing. A part of a condition that depends on a fact that the
// evidence does not have is false, also if it is negated.
func TestAbsentFactsMatchNothing(t *testing.T) {
	full := claim(kindJWT, "jwt.source", "ci", "jwt.subject", "a", "jwt.uses", int64(1), "jwt.issued_at", now,
		"jwt.audience", []string{}, "jwt.kubernetes.pod", "web-0")
	empty := claim(kindJWT, "jwt.source", "ci", "jwt.subject", "a", "jwt.kubernetes.pod", "")
	for _, when := range []string{
		"jwt.uses < 5", "jwt.uses == 1", "!(jwt.uses > 5)", "jwt.kubernetes.pod != 'x'", "!(jwt.kubernetes.pod == 'x')",
		"jwt.kubernetes.pod < 'x'", "jwt.kubernetes.pod != ''", "size(jwt.kubernetes.pod) < 9", "jwt.kubernetes.pod.startsWith('')",
		"jwt.issued_at < timestamp('2030-01-31T12:00:00Z')", "!('x' in jwt.audience)", "size(jwt.audience) == 0",
		"(jwt.uses > 5 ? false : true)", "jwt.uses > 5 || jwt.kubernetes.pod != 'x'", "jwt.kubernetes.pod.matches('^.*$')",
	} {
		p := compile(t, fmt.Sprintf("rules: [{name: a, evidence: [jwt], identity: a, when: %q}]", when))
		if _, err := p.Grant(ra.Claims{full}, "", now); err != nil {
			t.Errorf("%s: evidence with all facts: %v", when, err)
		}
		_, err := p.Grant(ra.Claims{empty}, "", now)
		refused(t, when+" without the fact", err, pki.RulePolicy, "no rule of the policy matches")
	}
	p := compile(t, `rules: [{name: a, evidence: [jwt], identity: a, when: jwt.uses > 5 || jwt.source == "ci"}]`)
	if _, err := p.Grant(ra.Claims{empty}, "", now); err != nil {
		t.Errorf("a condition that is true without the fact: %v", err)
	}
	p = compile(t, `rules: [{name: a, evidence: [jwt], identity: "a/{jwt.source}/{jwt.subject}/{jwt.uses}"}]`)
	_, err := p.Grant(ra.Claims{empty}, "", now)
	refused(t, "a number in a template", err, pki.RulePolicy, "does not accept the value of jwt.uses, which is empty")
}

func TestReservedPathsAreRefused(t *testing.T) {
	p := compile(t, "rules: [{name: a, evidence: [jwt], identity: '{jwt.subject}/{jwt.source}'}]")
	for _, subject := range []string{"brevet", "Brevet"} {
		_, err := p.Grant(ra.Claims{claim(kindJWT, "jwt.source", "ci", "jwt.subject", subject)}, "", now)
		refused(t, subject, err, pki.RuleReserved, "under brevet/")
	}
}

func TestRate(t *testing.T) {
	p := compile(t, `
rules:
  - {name: slow, evidence: [tpm], when: tpm.certified, identity: "a/{tpm.ek}", limits: {rate: 2/1h}}
  - {name: free, evidence: [tpm], identity: "b/{tpm.ek}"}
`)
	slow := ra.Claims{claim(kindTPM, "tpm.ek", "1", "tpm.certified", true)}
	take := func(at time.Time) (func(), error) {
		g, err := p.Grant(slow, "", at)
		if err != nil {
			t.Fatalf("a request that is not counted: %v", err)
		}
		return g.Take()
	}
	for i := range 4 { // two of them are taken back
		undo, err := take(now)
		if err != nil {
			t.Fatalf("certificate %d of 4: %v", i+1, err)
		}
		if i%2 == 0 {
			undo()
		}
	}
	p.Explain(slow, "")
	_, err := take(now)
	refused(t, "the third certificate", err, pki.RulePolicyLimit, "rule slow has reached its rate")
	if after := pki.RetryAfter(err); !pki.IsTemporary(err) || after != 30*time.Minute {
		t.Errorf("temporary is %t and the delay %s, want true and 30m", pki.IsTemporary(err), after)
	}
	if g, err := p.Grant(ra.Claims{claim(kindTPM, "tpm.ek", "1")}, "", now); err != nil || g.Take != nil {
		t.Errorf("a request for another rule: %v", err)
	}
	if _, err := take(now.Add(30 * time.Minute)); err != nil {
		t.Errorf("after the delay, and a refusal that does not count: %v", err)
	}
}

func TestDefaultGrantsTokens(t *testing.T) {
	p, err := policy.Compile(policy.Default(), 1, environment(t))
	if err != nil {
		t.Fatal(err)
	}
	replacing := tokenFor(t, "device/3")
	replacing.Replace = true
	for _, token := range []ra.KindClaim{tokenFor(t, "device/3"), replacing} {
		want := ra.Grant{Rule: "tokens", Revision: 1, Identity: token.Identity, Replace: token.Replace}
		if got, err := p.Grant(ra.Claims{token}, "", now); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("a token is granted %+v, %v, want %+v", got, err, want)
		}
	}
	_, err = p.Grant(ra.Claims{claim(kindX5C)}, "", now)
	if refusal, ok := pki.AsRefusal(err); !ok || refusal.Rule != pki.RulePolicy {
		t.Errorf("a factory certificate: %v, want %s", err, pki.RulePolicy)
	}
}

func TestExplain(t *testing.T) {
	p := compile(t, `
rules:
  - {name: tokens, evidence: [token]}
  - name: cameras
    evidence: [x5c]
    when: x5c.source == "acme" && x5c.serial.startsWith("CAM-") && size(x5c.serial) > 4
    identity: device/{x5c.serial}
  - {name: numbers, evidence: [x5c], when: int(x5c.serial) > 7, identity: "device/{x5c.source}/{x5c.serial}"}
  - {name: others, evidence: [x5c], identity: "other/{x5c.source}/{x5c.serial}"}
`)
	for name, c := range map[string]struct {
		claims ra.Claims
		want   []string
	}{
		"a part is false": {ra.Claims{claim(kindX5C, "x5c.source", "acme", "x5c.serial", "9")}, []string{
			"rule tokens is for other evidence",
			`rule cameras does not match: false is x5c.serial.startsWith("CAM-"), and size(x5c.serial) > 4`,
			"rule numbers matches", "rule others was not tried, because an earlier rule decided",
		}},
		"fails": {ra.Claims{claim(kindX5C, "x5c.source", "x", "x5c.serial", "CAM-1")}, []string{
			"rule tokens is for other evidence", `rule cameras does not match: false is x5c.source == "acme"`,
			"rule numbers cannot be evaluated: int(x5c.serial) > 7", "rule others was not tried",
		}},
		"other evidence": {ra.Claims{tokenFor(t, "device/1")}, []string{
			"rule tokens matches", "rule cameras was not tried", "rule numbers was not tried", "rule others was not tried",
		}},
	} {
		trials := p.Explain(c.claims, "")
		if len(trials) != len(c.want) {
			t.Fatalf("%s: %d trials, want %d", name, len(trials), len(c.want))
		}
		for i, trial := range trials {
			if !strings.HasPrefix(trial.String(), c.want[i]) {
				t.Errorf("%s: %q, want %q", name, trial, c.want[i])
			}
		}
	}
	if line := p.Explain(nil, "")[1].Line; line != 4 {
		t.Errorf("the rule cameras is in line %d, want 4", line)
	}
}
