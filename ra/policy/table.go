package policy

import (
	"crypto/sha256"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra"
)

// maxCases is the maximum number of cases in a table.
const maxCases = 10_000

// Result is the result of a case in a table.
type Result struct {
	Case string
	Line int // line in the table
	// Problem says what the policy decided instead of the expected decision. It is empty if the case passed.
	Problem string
	// Trials explain the decision of a case that did not pass.
	Trials []Trial
}

// testCase is a case in a table: evidence, and what the policy should decide.
type testCase struct {
	name     string
	line     int
	kinds    []Kind
	facts    *yaml.Node
	identity string // that the evidence names itself; empty for none
	hardware bool
	label    string // of EST; empty for none
	expect   decision
}

// decision is an expected decision. It compares only the fields that are not empty.
type decision struct{ rule, identity, profile, refusal string }

// Test decides about each case of a table, a YAML document with facts and expected decisions. It counts no requests for
// the rates of rules. If the table has faults, the error is a [Faults].
func (p *Policy) Test(table []byte) ([]Result, error) {
	c := &compiler{env: Environment{TrustDomain: p.trustDomain, Kinds: p.kinds}, schemas: map[kindSet]*schema{}}
	var results []Result
	cases := 0
	if root := c.root(table); root != nil {
		c.keys(root, "", map[string]field{"cases": func(key string, v *yaml.Node) {
			c.list(v, key, maxCases, func(_ string, item *yaml.Node) {
				cases++
				t := c.readCase(item)
				c.within = "case " + t.name
				p.checkLabel(c, t)
				claims := c.claims(t)
				c.within = ""
				if len(c.faults) == 0 {
					results = append(results, p.run(t, claims))
				}
			})
		}})
		if root.Kind == yaml.MappingNode && cases == 0 && len(c.faults) == 0 {
			c.fault(root, "cases", "there is no case: write at least one")
		}
	}
	if err := c.err(); err != nil {
		return nil, err
	}
	return results, nil
}

// run decides about one case.
func (p *Policy) run(t testCase, claims ra.Claims) Result {
	result := Result{Case: t.name, Line: t.line}
	_, g, err := p.decide(claims, t.label)
	if err == nil && g.HardwareKey && !t.hardware { // the registrar checks this
		err = pki.Refuse(pki.RuleHardwareKey, "set hardware_key: true in the case", "rule %s requires a key in hardware",
			g.Rule)
	}
	if result.Problem = t.expect.compare(g, err); result.Problem != "" {
		result.Trials = p.Explain(claims, t.label)
	}
	return result
}

// compare returns how a decision differs from the expected one, or "".
func (d decision) compare(g ra.Grant, err error) string {
	if err != nil {
		refusal, ok := pki.AsRefusal(err)
		switch {
		case ok && string(refusal.Rule) == d.refusal:
			return ""
		case d.refusal != "":
			return fmt.Sprintf("the refusal should be %s, and is: %s", d.refusal, err)
		default:
			return fmt.Sprintf("rule %s should match, and the request is refused: %s", d.rule, err)
		}
	}
	if d.refusal != "" {
		return fmt.Sprintf("the refusal should be %s, and rule %s grants %s", d.refusal, g.Rule, g.Identity.Path())
	}
	profile := ""
	if g.Register != nil {
		profile = g.Register.Profile
	}
	var problems []string
	for _, field := range []struct{ what, want, got string }{
		{"rule", d.rule, g.Rule}, {"identity", d.identity, g.Identity.Path()}, {"profile", d.profile, profile},
	} {
		if field.want != "" && field.want != field.got {
			problems = append(problems, fmt.Sprintf("the %s should be %s, and is %s", field.what, field.want, orNone(field.got)))
		}
	}
	return strings.Join(problems, "; ")
}

func orNone(text string) string {
	if text == "" {
		return "that of the registered identity"
	}
	return text
}

// readCase decodes a case.
func (c *compiler) readCase(n *yaml.Node) testCase {
	t := testCase{line: n.Line}
	c.within = "a case"
	for i := 0; n.Kind == yaml.MappingNode && i+1 < len(n.Content); i += 2 {
		if v := n.Content[i+1]; n.Content[i].Value == "name" && v.Value != "" && pki.CheckText("the name", v.Value) == nil {
			t.name = v.Value
			c.within = "case " + t.name
		}
	}
	fields := c.evidenceFields(&t)
	fields["name"] = func(key string, v *yaml.Node) {
		if c.text(v, key) != "" && t.name == "" {
			c.fault(v, key, "use letters, digits, punctuation and spaces, %d bytes at most", pki.MaxText)
		}
	}
	fields["expect"] = func(key string, v *yaml.Node) { t.expect = c.readDecision(key, v) }
	c.keys(n, "", fields)
	for key, missing := range map[string]bool{"name": t.name == "", "evidence": t.kinds == nil,
		"expect": t.expect == decision{}} {
		if missing && n.Kind == yaml.MappingNode {
			c.fault(n, key, "the key is missing or not valid")
		}
	}
	return t
}

func (c *compiler) readDecision(key string, v *yaml.Node) decision {
	var d decision
	read := func(into *string) field {
		return func(key string, v *yaml.Node) { *into = c.text(v, key) }
	}
	c.keys(v, key, map[string]field{
		"rule": read(&d.rule), "identity": read(&d.identity), "profile": read(&d.profile), "refusal": read(&d.refusal),
	})
	switch {
	case (d.rule == "") == (d.refusal == ""):
		c.fault(v, key, "name the rule that should match, or the refusal, such as {refusal: policy.no_rule}")
	case d.refusal != "" && d != decision{refusal: d.refusal}:
		c.fault(v, key, "a refusal grants nothing: remove the other keys")
	}
	return d
}

// claims returns the claims of a case.
func (c *compiler) claims(t testCase) ra.Claims {
	s := c.schema(t.kinds)
	values := map[string]any{}
	if t.facts != nil {
		c.pairs(t.facts, "facts", func(key, value *yaml.Node, at string) {
			d, ok := s.facts[key.Value]
			if !ok {
				c.fault(key, at, "%s", Unknown("fact", key.Value, s.names))
				return
			}
			values[key.Value] = c.factValue(value, at, d.is)
		})
	}
	var named pki.SPIFFEID
	if t.identity != "" {
		var err error
		if named, err = pki.SPIFFEIDIn(c.env.TrustDomain, t.identity); err != nil {
			c.faultAt(t.line, "identity", "%s", err)
		}
		if !slices.ContainsFunc(t.kinds, Kind.namesIdentity) {
			c.faultAt(t.line, "identity", "evidence of this kind does not name an identity: write it below expect")
		}
	}
	var claims ra.Claims
	for _, k := range t.kinds {
		claim := ra.Claim{Facts: map[string]any{}, HardwareKey: t.hardware}
		for name := range k.Facts {
			if v, ok := values[name]; ok {
				claim.Facts[name] = v
			}
		}
		if k.namesIdentity() && (!k.isOrder() || !named.IsZero()) {
			claim.Identity = named
		} else {
			claim.Subject = pki.EvidenceSubject{Kind: k.Evidence, Hash: sha256.Sum256(fmt.Append(nil, sortedFacts(claim.Facts)))}
		}
		claims = append(claims, ra.KindClaim{Kind: k.Evidence, Claim: claim})
	}
	return claims
}

// sortedFacts returns the names and values of facts, as a sample of what a subject consists of.
func sortedFacts(values map[string]any) []any {
	var all []any
	for _, name := range slices.Sorted(maps.Keys(values)) {
		all = append(all, name, values[name])
	}
	return all
}

// factValue decodes the value of a fact.
func (c *compiler) factValue(v *yaml.Node, key string, t ra.FactType) any {
	switch t {
	case ra.FactInt:
		n, err := strconv.ParseInt(v.Value, 10, 64)
		if err != nil {
			c.fault(v, key, "the fact is a whole number")
		}
		return n
	case ra.FactBool:
		return c.truth(v, key)
	case ra.FactTime:
		at, err := time.Parse(time.RFC3339, v.Value)
		if err != nil {
			c.fault(v, key, "the fact is a time, such as 2030-01-31T12:00:00Z")
		}
		return at
	case ra.FactStrings:
		var texts []string
		c.list(v, key, maxFactItems, func(_ string, item *yaml.Node) { texts = append(texts, item.Value) })
		return texts
	default:
		if v.Kind != yaml.ScalarNode || v.ShortTag() != "!!str" {
			c.fault(v, key, "the fact is a text: write it between quotes")
		}
		return v.Value
	}
}
