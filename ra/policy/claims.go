package policy

import (
	"go.yaml.in/yaml/v3"

	"github.com/brevet-pki/brevet/ra"
)

// ReadClaims decodes the claims of evidence from a YAML document. It has the keys evidence, facts, identity and
// hardware_key, as a case of a table has them. If the document has faults, the error is a [Faults].
func (p *Policy) ReadClaims(document []byte) (ra.Claims, error) {
	c := &compiler{env: Environment{TrustDomain: p.trustDomain, Kinds: p.kinds}, schemas: map[kindSet]*schema{}}
	var claims ra.Claims
	if root := c.root(document); root != nil {
		t := testCase{line: root.Line}
		c.keys(root, "", c.evidenceFields(&t))
		if t.kinds == nil {
			c.fault(root, "evidence", "the key is missing or not valid")
		}
		claims = c.claims(t)
	}
	if err := c.err(); err != nil {
		return nil, err
	}
	return claims, nil
}

// evidenceFields returns the keys of a case that describe its evidence.
func (c *compiler) evidenceFields(t *testCase) map[string]field {
	return map[string]field{
		"evidence":     func(key string, v *yaml.Node) { t.kinds = c.readEvidence(key, v) },
		"facts":        func(_ string, v *yaml.Node) { t.facts = v },
		"identity":     func(key string, v *yaml.Node) { t.identity = c.text(v, key) },
		"hardware_key": func(key string, v *yaml.Node) { t.hardware = c.truth(v, key) },
	}
}
