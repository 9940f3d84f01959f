package policy

import (
	"errors"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra"
)

// Limits of a rule.
const (
	maxNameBytes = 64
	maxLabels    = 64
	maxDNSNames  = 100
	maxTotal     = 1_000_000_000
)

// rule is a checked rule.
type rule struct {
	name     string
	line     int
	kinds    []pki.EvidenceKind // in the order of the document
	when     *condition         // nil if the rule has none
	identity *template          // nil if the evidence names the identity
	register *registration      // nil if the identity must exist
	replace  bool
	lifetime time.Duration
	keys     []pki.KeyType
	hardware bool
	limits   limits
	// profiles are those that ACME orders can choose, the default first. wildcards allows wildcard names in them.
	profiles  []string
	wildcards bool
}

// set returns the set of rules that are tried together with this one.
func (r *rule) set() kindSet {
	if s := newKindSet(r.kinds...); s != (kindSet{pki.EvidenceACME}) || r.identity != nil {
		return s
	}
	return namedOrders
}

// registration describes the identity that a rule registers.
type registration struct {
	kind     pki.Kind
	profile  string
	labels   map[string]*template
	dnsNames []*template
}

// rawRule is a rule as it is in the document. A node is nil if the rule does not have the key.
type rawRule struct {
	name     string
	kinds    []Kind
	nodes    map[string]*yaml.Node
	register bool
	kind     pki.Kind
	profile  string
	labels   map[string]*yaml.Node
	dnsNames []*yaml.Node
	replace  bool
	hardware bool
	lifetime time.Duration
	keys     []pki.KeyType
	limits   limits
	profiles []*yaml.Node
	wildcard bool
}

// onlyRegister are the keys that describe the identity that a rule registers.
var onlyRegister = []string{"kind", "profile", "labels", "dns_names"}

// readRule decodes a rule. It returns nil if the rule has no valid name or evidence.
func (c *compiler) readRule(n *yaml.Node) *rawRule {
	r := &rawRule{nodes: map[string]*yaml.Node{}, kind: pki.Device, labels: map[string]*yaml.Node{}}
	c.within = ruleName(n)
	defer func() { c.within = "" }()
	fields := map[string]field{
		"name":         func(key string, v *yaml.Node) { r.name = c.readName(key, v) },
		"evidence":     func(key string, v *yaml.Node) { r.kinds = c.readEvidence(key, v) },
		"when":         func(key string, v *yaml.Node) { c.text(v, key) },
		"identity":     func(key string, v *yaml.Node) { c.text(v, key) },
		"register":     func(key string, v *yaml.Node) { r.register = c.truth(v, key) },
		"replace":      func(key string, v *yaml.Node) { r.replace = c.truth(v, key) },
		"kind":         func(key string, v *yaml.Node) { r.kind = c.readKind(key, v) },
		"profile":      func(key string, v *yaml.Node) { r.profile = c.text(v, key) },
		"labels":       func(key string, v *yaml.Node) { c.readLabels(key, v, r.labels) },
		"dns_names":    func(key string, v *yaml.Node) { r.dnsNames = c.readTexts(key, v) },
		"lifetime":     func(key string, v *yaml.Node) { r.lifetime = c.duration(v, key) },
		"keys":         func(key string, v *yaml.Node) { r.keys = c.readKeys(key, v) },
		"hardware_key": func(key string, v *yaml.Node) { r.hardware = c.truth(v, key) },
		"limits":       func(key string, v *yaml.Node) { c.readLimits(key, v, &r.limits) },
		"profiles":     func(key string, v *yaml.Node) { r.profiles = c.readTexts(key, v) },
		"wildcards":    func(key string, v *yaml.Node) { r.wildcard = c.truth(v, key) },
	}
	for key, decode := range fields {
		fields[key] = func(at string, v *yaml.Node) {
			r.nodes[key] = v
			decode(at, v)
		}
	}
	c.keys(n, "", fields)
	if n.Kind != yaml.MappingNode {
		return nil
	}
	if r.nodes["name"] == nil {
		c.fault(n, "name", "give every rule a name: the log records it")
	}
	if r.nodes["evidence"] == nil {
		c.fault(n, "evidence", "name the kind of evidence, such as [token], or two kinds that are required together")
	}
	if r.name == "" || len(r.kinds) == 0 {
		return nil
	}
	return r
}

// ruleName returns what faults call a rule.
func ruleName(n *yaml.Node) string {
	for i := 0; n.Kind == yaml.MappingNode && i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == "name" && checkName(n.Content[i+1].Value) {
			return "rule " + n.Content[i+1].Value
		}
	}
	return "a rule"
}

// checkName reports whether a text can be the name of a rule. The log records the name, and responses contain it.
func checkName(name string) bool {
	return name != "" && len(name) <= maxNameBytes && !strings.ContainsFunc(name, func(c rune) bool {
		return (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '-' && c != '_' && c != '.'
	})
}

func (c *compiler) readName(key string, v *yaml.Node) string {
	name := c.text(v, key)
	if name != "" && !checkName(name) {
		c.fault(v, key, "%.80q is not a name: use at most %d letters, digits, dashes, dots and underscores", name,
			maxNameBytes)
		return ""
	}
	return name
}

func (c *compiler) readEvidence(key string, v *yaml.Node) []Kind {
	var kinds []Kind
	var names []string
	for _, k := range c.env.Kinds {
		names = append(names, k.Name)
	}
	slices.Sort(names)
	c.list(v, key, 2, func(key string, item *yaml.Node) {
		name := c.text(item, key)
		i := slices.IndexFunc(c.env.Kinds, func(k Kind) bool { return k.Name == name })
		switch {
		case name == "":
		case i < 0:
			c.fault(item, key, "%s", Unknown("kind of evidence", name, names))
		case slices.ContainsFunc(kinds, func(k Kind) bool { return k.Name == name }):
			c.fault(item, key, "the kind %s occurs twice: keep one", name)
		case slices.ContainsFunc(kinds, func(k Kind) bool { return k.prefix() == c.env.Kinds[i].prefix() }):
			c.fault(item, key, "%s and %s prove the same: keep one, or write a rule for each", kinds[0].Name, name)
		default:
			kinds = append(kinds, c.env.Kinds[i])
		}
	})
	if v.Kind == yaml.SequenceNode && len(v.Content) == 0 {
		c.fault(v, key, "name one kind of evidence, or two that are required together")
	}
	if len(kinds) != len(v.Content) {
		return nil // another fault has been recorded
	}
	return kinds
}

// readKind reads the kind of the identity that the rule registers.
func (c *compiler) readKind(key string, v *yaml.Node) pki.Kind {
	switch c.text(v, key) {
	case "device":
		return pki.Device
	case "workload":
		return pki.Workload
	default:
		c.fault(v, key, "%.40q is not a kind of identity: use device or workload", v.Value)
		return pki.Device
	}
}

func (c *compiler) readLabels(key string, v *yaml.Node, labels map[string]*yaml.Node) {
	if len(v.Content) > 2*maxLabels {
		c.fault(v, key, "there are %d labels: write at most %d", len(v.Content)/2, maxLabels)
		return
	}
	c.pairs(v, key, func(name, value *yaml.Node, at string) {
		if err := pki.CheckText("the name", name.Value); name.Value == "" || err != nil {
			c.fault(name, at, "this is not the name of a label: use letters, digits, punctuation and spaces")
			return
		}
		if c.text(value, at) != "" {
			labels[name.Value] = value
		}
	})
}

// readTexts returns the items of a list of texts.
func (c *compiler) readTexts(key string, v *yaml.Node) []*yaml.Node {
	var texts []*yaml.Node
	c.list(v, key, maxDNSNames, func(key string, item *yaml.Node) {
		if c.text(item, key) != "" {
			texts = append(texts, item)
		}
	})
	return texts
}

func (c *compiler) readKeys(key string, v *yaml.Node) []pki.KeyType {
	var keys []pki.KeyType
	c.list(v, key, len(pki.KeyTypes()), func(key string, item *yaml.Node) {
		t, err := pki.ParseKeyType(c.text(item, key))
		if err != nil {
			c.fault(item, key, "%s", err)
			return
		}
		keys = append(keys, t)
	})
	if v.Kind == yaml.SequenceNode && len(v.Content) == 0 {
		c.fault(v, key, "name at least one type of key, or remove the key to allow those of the profile")
	}
	return keys
}

func (c *compiler) readLimits(key string, v *yaml.Node, into *limits) {
	c.keys(v, key, map[string]field{
		"rate": func(key string, v *yaml.Node) {
			rate, err := parseRate(c.text(v, key))
			if err != nil {
				c.fault(v, key, "%s", err)
			}
			into.rate = rate
		},
		"total": func(key string, v *yaml.Node) { into.total = c.number(v, key, maxTotal) },
	})
}

// errMixed means that a rule's condition is true for a part of the itemized fact only. Another rule would decide the rest, and
// an item more could replace a strict rule by a later one.
var errMixed = errors.New("the condition is true for some ways of the proof only")

// matches reports whether the rule's condition is true, for each item of the itemized fact. It returns errMixed if it is true
// for some of them.
func (r *rule) matches(f *facts) (bool, error) {
	if r.when == nil {
		return true, nil
	}
	holds, err := r.when.holds(f)
	for i := 0; err == nil && i < len(f.others); i++ {
		var other bool
		if other, err = r.when.holds(f.others[i]); err == nil && other != holds {
			return false, errMixed
		}
	}
	return holds, err
}

// subject returns the subject of evidence that the identity is tied to: that of the first kind in the rule that has one.
// If the rule requires a key in hardware, it is that of the evidence that proves this, so that the device can prove it
// again when it renews.
func (r *rule) subject(claims ra.Claims) pki.EvidenceSubject {
	if r.hardware {
		for _, c := range claims {
			if c.HardwareKey && !c.Subject.IsZero() {
				return c.Subject
			}
		}
	}
	for _, kind := range r.kinds {
		if c := claimOf(claims, kind); !c.Subject.IsZero() {
			return c.Subject
		}
	}
	return pki.EvidenceSubject{}
}
