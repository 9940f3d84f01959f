package policy

import (
	"slices"

	"go.yaml.in/yaml/v3"

	"github.com/brevet-pki/brevet/pki"
)

// defaultOrderProfile is the profile of certificates for ACME orders if the rule names none.
const defaultOrderProfile = "acme"

// orders checks the keys of a rule that only rules for ACME orders have. It reports whether the rule can be compiled
// further.
func (c *compiler) orders(n *yaml.Node, raw *rawRule, r *rule) bool {
	if !slices.ContainsFunc(raw.kinds, Kind.isOrder) {
		for _, key := range []string{"profiles", "wildcards"} {
			if node := raw.nodes[key]; node != nil {
				c.fault(node, key, "the key is for rules with evidence: [acme]: remove it")
			}
		}
		return true
	}
	if len(raw.kinds) > 1 {
		c.fault(raw.nodes["evidence"], "evidence", "an ACME order is the only evidence of a request: write [acme]")
		return false
	}
	for key, reason := range map[string]string{
		"replace": "an order adds a certificate, and replaces none", "hardware_key": "an ACME order proves no key in hardware",
		"profile": "profiles is the list of those that orders can choose",
	} {
		if node := raw.nodes[key]; node != nil {
			c.fault(node, key, "%s: remove the key", reason)
		}
	}
	raw.replace, raw.hardware = false, false // the faults have been recorded
	r.wildcards = raw.wildcard
	if node := raw.nodes["wildcards"]; node != nil && raw.nodes["identity"] != nil {
		c.fault(node, "wildcards", "a rule with identity is for orders of one name that is no wildcard: remove the key")
	}
	c.orderProfiles(n, raw, r)
	return true
}

// orderProfiles checks the profiles that orders can choose.
func (c *compiler) orderProfiles(n *yaml.Node, raw *rawRule, r *rule) {
	if node := raw.nodes["profiles"]; node != nil && len(raw.profiles) == 0 {
		c.fault(node, "profiles", "name at least one profile, or remove the key to allow the profile %s", defaultOrderProfile)
		return
	}
	names := []*yaml.Node{{Kind: yaml.ScalarNode, Value: defaultOrderProfile, Line: n.Line}}
	if raw.profiles != nil {
		names = raw.profiles
	}
	for _, node := range names {
		if slices.Contains(r.profiles, node.Value) {
			c.fault(node, "profiles", "the profile %.80q occurs twice: keep one", node.Value)
			continue
		}
		r.profiles = append(r.profiles, node.Value)
		if _, written := c.own.lines["profiles."+node.Value]; written && c.own.all[node.Value] == nil {
			continue // its own faults have been recorded
		}
		p, err := c.profiles.Profile(node.Value)
		if refusal, ok := pki.AsRefusal(err); ok {
			c.fault(node, "profiles", "%s: %s", refusal.Detail, refusal.Hint)
			continue
		}
		if i := slices.IndexFunc(pki.Doors(), p.RenewableAt); i >= 0 {
			c.fault(node, "profiles", "certificates of the profile %s can be renewed over %s, and then its names would not be validated again: "+
				"choose a profile with renewals: []", p.Name(), pki.Doors()[i])
		}
		if raw.register && !p.Permits(raw.kind) {
			c.fault(node, "profiles", "profile %s is not for identities of the kind %s: choose another profile, or another kind",
				p.Name(), raw.kind)
		}
		if !raw.register && r.lifetime > p.MaxLifetime() {
			c.fault(raw.nodes["lifetime"], "lifetime", "profile %s allows at most %s", p.Name(), pki.FormatDuration(p.MaxLifetime()))
		}
	}
	raw.profile = r.profiles[0] // of an identity that the rule registers
}
