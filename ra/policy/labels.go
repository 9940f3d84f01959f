package policy

import (
	"maps"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra"
)

// Limits of the section est.
const (
	maxESTLabels  = 64
	maxLabelBytes = 63
)

// selection is the set of rules that may decide. Nil is the set of all rules.
type selection map[*rule]bool

func (s selection) has(r *rule) bool { return s == nil || s[r] }

// label is a label of EST, and the rules that it selects.
type label struct {
	ra.Label
	selected selection
}

// selection returns the rules that may decide about claims: the one that the claims name, or those that a label selects. An
// empty name of a label selects all.
func (p *Policy) selection(claims ra.Claims, name string) (selection, error) {
	if named := claims.Rule(); named != "" {
		only := selection{}
		if i := slices.IndexFunc(p.rules, func(r *rule) bool { return r.name == named }); i >= 0 {
			only[p.rules[i]] = true
		}
		return only, nil
	}
	if name == "" {
		return nil, nil
	}
	l := p.labels[name]
	if l == nil {
		return nil, ra.RefuseLabel(name)
	}
	return l.selected, nil
}

// checkLabel records a fault for a case with a label that the policy does not have.
func (p *Policy) checkLabel(c *compiler, t testCase) {
	if t.label != "" && p.labels[t.label] == nil {
		c.faultAt(t.line, "label", "%s", Unknown("label", t.label, slices.Sorted(maps.Keys(p.labels))))
	}
}

// operations are the names of the operations of EST, which cannot be labels (RFC 7030 §3.2.2).
var operations = []string{"cacerts", "simpleenroll", "simplereenroll", "fullcmc", "serverkeygen", "csrattrs"}

// readEST checks the section est, and returns its labels. lines has the names of all rules, also of those with faults.
func (c *compiler) readEST(n *yaml.Node, rules []*rule, lines map[string]int) map[string]*label {
	all := map[string]*label{}
	found := false
	c.keys(n, "est", map[string]field{"labels": func(key string, v *yaml.Node) {
		found = true
		c.pairs(v, key, func(name, value *yaml.Node, at string) {
			switch {
			case len(all) == maxESTLabels:
				c.fault(name, key, "there are more than %d labels: remove some", maxESTLabels)
			case !isLabel(name.Value):
				c.fault(name, key, "%.80q is not a label: use 1 to %d letters, digits, dashes, dots and underscores, and not the name "+
					"of an operation of EST", name.Value, maxLabelBytes)
			default:
				all[name.Value] = c.readLabel(name.Value, value, at, rules, lines)
			}
		})
	}})
	if n.Kind == yaml.MappingNode && !found {
		c.fault(n, "est.labels", "write at least one label, such as default: {}")
	}
	return all
}

// isLabel reports whether a text can be a label, which is a segment of URLs.
func isLabel(name string) bool {
	return len(name) <= maxLabelBytes && checkName(name) && strings.Trim(name, ".") != "" && !slices.Contains(operations, name)
}

// readLabel checks a label.
func (c *compiler) readLabel(name string, n *yaml.Node, at string, rules []*rule, lines map[string]int) *label {
	l := &label{Label: ra.Label{Name: name, Attributes: ra.NoAttributes}}
	c.keys(n, at, map[string]field{
		"rules": func(key string, v *yaml.Node) {
			l.selected = selection{}
			c.list(v, key, maxRules, func(key string, item *yaml.Node) { c.selectRule(l, key, item, rules, lines) })
			if v.Kind == yaml.SequenceNode && len(v.Content) == 0 {
				c.fault(v, key, "name at least one rule, or remove the key to select all")
			}
		},
		"chain":           func(key string, v *yaml.Node) { l.Chain = c.truth(v, key) },
		"require_linking": func(key string, v *yaml.Node) { l.RequireLinking = c.truth(v, key) },
		"accept_names":    func(key string, v *yaml.Node) { l.AcceptNames = c.truth(v, key) },
		"attributes": func(key string, v *yaml.Node) {
			forms := []string{string(ra.NoAttributes), string(ra.AttributeOIDs), string(ra.AttributesTemplate)}
			if l.Attributes = ra.CSRAttributes(c.text(v, key)); v.Value != "" && !slices.Contains(forms, v.Value) {
				c.fault(v, key, "%s", Unknown("form of attributes", v.Value, forms))
			}
		},
	})
	l.Key = c.commonKey(rules, l.selected)
	return l
}

// selectRule adds a rule to those that a label selects.
func (c *compiler) selectRule(l *label, key string, item *yaml.Node, rules []*rule, lines map[string]int) {
	name := c.text(item, key)
	i := slices.IndexFunc(rules, func(r *rule) bool { return r.name == name })
	switch {
	case name == "":
	case slices.Contains(l.Rules, name):
		c.fault(item, key, "rule %s occurs twice: keep one", name)
	case i < 0:
		if _, written := lines[name]; !written { // otherwise its own faults have been recorded
			c.fault(item, key, "%s", Unknown("rule", name, slices.Sorted(maps.Keys(lines))))
		}
	case slices.ContainsFunc(rules[i].kinds, func(k pki.EvidenceKind) bool { return !slices.Contains(estKinds, k) }):
		c.fault(item, key, "rule %s is for evidence that clients of EST cannot send: select rules for token or x5c-tls, or both together", name)
	default:
		l.Rules, l.selected[rules[i]] = append(l.Rules, name), true
	}
}

// estKinds are the kinds of evidence that clients of EST can send.
var estKinds = []pki.EvidenceKind{pki.EvidenceToken, pki.EvidenceX5CTLS}

// commonKey returns the first type of key that all selected rules accept which clients of EST can match. It returns
// zero if there is none, and if they accept all types.
func (c *compiler) commonKey(rules []*rule, selected selection) pki.KeyType {
	common, restricted := pki.KeyTypes(), false
	for _, r := range rules {
		if !selected.has(r) || slices.ContainsFunc(r.kinds, func(k pki.EvidenceKind) bool { return !slices.Contains(estKinds, k) }) {
			continue
		}
		accepted := r.keys
		if len(accepted) == 0 && r.register != nil && c.profiles != nil {
			if p, err := c.profiles.Profile(r.register.profile); err == nil {
				accepted = p.Keys()
			}
		}
		if len(accepted) > 0 {
			restricted = true
			common = slices.DeleteFunc(common, func(k pki.KeyType) bool { return !slices.Contains(accepted, k) })
		}
	}
	if !restricted || len(common) == 0 {
		return ""
	}
	return common[0]
}
