package policy_test

import (
	"crypto/sha256"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra"
	"github.com/brevet-pki/brevet/ra/policy"
)

func TestOrderRuleFaults(t *testing.T) {
	checkFaults(t, []faulty{
		{one("evidence: [token], profiles: [acme]"), "profiles: the key is for rules with evidence: [acme]"},
		{one("evidence: [token], wildcards: true"), "wildcards: the key is for rules with evidence: [acme]"},
		{one("evidence: [acme, tpm]"), "evidence: an ACME order is the only evidence"},
		{one("evidence: [acme], replace: true"), "replace: an order adds a certificate"},
		{one("evidence: [acme], hardware_key: true"), "hardware_key: an ACME order proves no key in hardware"},
		{one("evidence: [acme], register: true, profile: acme"), "profile: profiles is the list"},
		{one("evidence: [acme], profiles: []"), "profiles: name at least one profile"},
		{one("evidence: [acme], profiles: [acme, acme]"), `profiles: the profile "acme" occurs twice`},
		{one("evidence: [acme], profiles: [server]"), "certificates of the profile server can be renewed over grpc"},
		{one("evidence: [acme], profiles: [acm]"), `profiles: there is no profile "acm"`},
		{one("evidence: [acme], lifetime: 31d"), "lifetime: profile acme allows at most 30d"},
		{one("evidence: [acme], wildcards: true, identity: 'web/{acme.name}'"), "wildcards: a rule with identity is for orders of one name"},
		{one("evidence: [acme], identity: 'web/{acme.account}'"), "identity: two devices could get the same identity: add one of acme.name"},
		{one("evidence: [acme], identity: 'web/{acme.name}', register: true, kind: workload, profiles: [client, device]"), "profile device is not for identities of the kind workload"},
	})
}

// orderOf returns the claims of an order with a name. named is the identity of the external key, and rule its rule.
func orderOf(name, named, rule string) ra.Claims {
	claim := ra.Claim{
		Facts: map[string]any{"acme.name": name, "acme.names": []string{name}, "acme.domain": name, "acme.wildcard": false},
		Order: &ra.Order{Rule: rule},
	}
	if named != "" {
		claim.Identity = path(named)
	} else {
		claim.Subject = pki.EvidenceSubject{Kind: pki.EvidenceACME, Hash: sha256.Sum256([]byte(name))}
	}
	return ra.Claims{{Kind: pki.EvidenceACME, Claim: claim}}
}

func path(p string) pki.SPIFFEID {
	id, err := pki.SPIFFEIDIn(trustDomain, p)
	if err != nil {
		panic(err)
	}
	return id
}

// TestOrdersAreGranted checks that rules with and without the key identity are for different orders, and that an external
// key can name the only rule.
func TestOrdersAreGranted(t *testing.T) {
	p := compile(t, `
rules:
- {name: first, evidence: [acme], identity: "first/{acme.name}", register: true, when: acme.name.endsWith(".first.example")}
- {name: named, evidence: [acme], wildcards: true, profiles: [web, acme]}
- {name: web, evidence: [acme], identity: "web/{acme.name}", register: true, kind: workload}
- {name: tokens, evidence: [token]}
profiles:
  web: {kinds: [device, workload], lifetime: 24h, max_lifetime: 24h, keys: [P-256], key_usage: [digitalSignature],
    extended_key_usage: [serverAuth], dns_names: allowed, renewals: []}
`)
	for _, c := range []struct {
		claims           ra.Claims
		rule, path       string
		profiles         []string
		registersProfile string
	}{
		{orderOf("a.first.example", "", ""), "first", "first/a.first.example", []string{"acme"}, "acme"},
		{orderOf("a.example", "", ""), "web", "web/a.example", []string{"acme"}, "acme"},
		{orderOf("a.first.example", "", "web"), "web", "web/a.first.example", []string{"acme"}, "acme"},
		{orderOf("a.example", "device/1", ""), "named", "device/1", []string{"web", "acme"}, ""},
	} {
		g, err := p.Grant(c.claims, "", time.Now())
		if err != nil {
			t.Errorf("%s: %v", c.path, err)
			continue
		}
		profile := ""
		if g.Register != nil {
			profile = g.Register.Profile
		}
		if g.Rule != c.rule || g.Identity.Path() != c.path || !slices.Equal(g.Profiles, c.profiles) || profile != c.registersProfile ||
			g.Wildcards != (c.rule == "named") || g.Subject != c.claims[0].Subject {
			t.Errorf("%s: the grant is %+v", c.path, g)
		}
	}
	for name, claims := range map[string]ra.Claims{
		"another rule":   orderOf("a.example", "", "first"),
		"no such rule":   orderOf("a.example", "", "gone"),
		"the named rule": orderOf("a.example", "", "named"),
	} {
		if g, err := p.Grant(claims, "", time.Now()); err == nil {
			t.Errorf("%s: the grant is %+v", name, g)
		}
	}
	if rules := p.OrderRules(); !slices.Equal(rules, []string{"first", "web"}) {
		t.Errorf("the rules for orders are %q", rules)
	}
	if profiles := p.OrderProfiles(); !slices.Equal(profiles, []string{"acme", "web"}) {
		t.Errorf("the profiles of orders are %q", profiles)
	}
	var tried []string
	for _, trial := range p.Explain(orderOf("a.example", "", "web"), "") {
		tried = append(tried, trial.String())
	}
	if text := strings.Join(tried, "; "); text != "rule first was not tried, because the label of the request, or the external key of its account, selects others; "+
		"rule named was not tried, because the label of the request, or the external key of its account, selects others; rule web matches; "+
		"rule tokens was not tried, because an earlier rule decided" {
		t.Errorf("explained as: %s", text)
	}
}

// TestChallengesAreDecidedOneByOne checks that a rule matches an order only if its condition holds for each type of challenge
// with which a name was validated, and that no name more lets an order pass a rule that would decide the others.
func TestChallengesAreDecidedOneByOne(t *testing.T) {
	p := compile(t, `
rules:
- {name: in, evidence: [acme], when: 'acme.domain == "in.example" && "dns-01" in acme.challenges'}
- {name: only, evidence: [acme], when: 'acme.domain == "only.example" && acme.challenges == ["dns-01"]'}
- {name: without, evidence: [acme], when: 'acme.domain == "without.example" && !("http-01" in acme.challenges)'}
- {name: either, evidence: [acme], when: 'acme.domain == "either.example" && ("dns-01" in acme.challenges || "http-01" in acme.challenges)'}
- {name: dns, evidence: [acme], when: 'acme.domain == "two.example" && "dns-01" in acme.challenges'}
- {name: any, evidence: [acme], when: 'acme.domain == "two.example"'}
`)
	both, dns := []string{"dns-01", "http-01"}, []string{"dns-01"}
	for _, c := range []struct {
		domain     string
		challenges []string
		rule       string // empty for a refusal
	}{
		{"in.example", dns, "in"},
		{"in.example", both, ""},
		{"in.example", []string{"http-01", "dns-01"}, ""},
		{"only.example", dns, "only"},
		{"only.example", both, ""},
		{"without.example", dns, "without"},
		{"without.example", both, ""},
		{"either.example", both, "either"},
		{"either.example", []string{"dns-01", "http-01", "tls-alpn-01"}, ""},
		{"two.example", dns, "dns"},
		{"two.example", []string{"http-01"}, "any"},
		{"two.example", []string{"tls-alpn-01", "http-01"}, "any"},
		{"two.example", both, ""},
		{"two.example", []string{"http-01", "dns-01"}, ""},
	} {
		claims := orderOf(c.domain, "device/1", "")
		claims[0].Facts["acme.challenges"] = c.challenges
		g, err := p.Grant(claims, "", time.Now())
		if g.Rule != c.rule || (err == nil) != (c.rule != "") {
			t.Errorf("%s with %v: rule %q, error %v; want rule %q", c.domain, c.challenges, g.Rule, err, c.rule)
		}
		decided := ""
		for _, trial := range p.Explain(claims, "") {
			if trial.Outcome == policy.Matched {
				decided = trial.Rule
			}
		}
		if decided != c.rule {
			t.Errorf("%s with %v: the explanation is rule %q, want %q", c.domain, c.challenges, decided, c.rule)
		}
	}
}
