package policy

import (
	"go.yaml.in/yaml/v3"

	"github.com/brevet-pki/brevet/ra"
)

// ReadClaims decodes the claims of evidence, and the label of their request, from a YAML document. It has the keys
// evidence, facts, identity, hardware_key and label, as a case of a table has them. If the document has faults, the error
// is a [Faults].
func (p *Policy) ReadClaims(document []byte) (claims ra.Claims, label string, err error) {
	c := &compiler{env: Environment{TrustDomain: p.trustDomain, Kinds: p.kinds}, schemas: map[kindSet]*schema{}}
	if root := c.root(document); root != nil {
		t := testCase{line: root.Line}
		c.keys(root, "", c.evidenceFields(&t))
		if t.kinds == nil {
			c.fault(root, "evidence", "the key is missing or not valid")
		}
		p.checkLabel(c, t)
		claims, label = c.claims(t), t.label
	}
	if err := c.err(); err != nil {
		return nil, "", err
	}
	return claims, label, nil
}

// evidenceFields returns the keys of a case that describe its evidence.
func (c *compiler) evidenceFields(t *testCase) map[string]field {
	return map[string]field{
		"evidence":     func(key string, v *yaml.Node) { t.kinds = c.readEvidence(key, v) },
		"facts":        func(_ string, v *yaml.Node) { t.facts = v },
		"identity":     func(key string, v *yaml.Node) { t.identity = c.text(v, key) },
		"label":        func(key string, v *yaml.Node) { t.label = c.text(v, key) },
		"hardware_key": func(key string, v *yaml.Node) { t.hardware = c.truth(v, key) },
	}
}
