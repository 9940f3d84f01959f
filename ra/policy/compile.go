package policy

import (
	_ "embed"
	"errors"
	"maps"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra"
)

// maxRules is the maximum number of rules in a document.
const maxRules = 5000

//go:embed policy.yaml
var defaultDocument []byte

// Default returns the document of a new installation. Its only rule grants the identities that tokens name.
func Default() []byte { return slices.Clone(defaultDocument) }

// compiler checks a document.
type compiler struct {
	decoder
	env        Environment
	schemas    map[kindSet]*schema
	conditions map[kindSet]*conditions
	own        ownProfiles
	profiles   *ca.Profiles
	failed     error // an error in the program, and not in the document
}

// Compile checks a document, and returns its policy. revision is the number of the document in the store. If the
// document has faults, the error is a [Faults].
func Compile(document []byte, revision uint64, e Environment) (*Policy, error) {
	if err := e.check(); err != nil {
		return nil, err
	}
	e.Kinds = slices.Clone(e.Kinds)
	c := &compiler{env: e, schemas: map[kindSet]*schema{}, conditions: map[kindSet]*conditions{}}
	p := &Policy{revision: revision, trustDomain: e.TrustDomain, sets: map[kindSet]*ruleSet{}}
	if root := c.root(document); root != nil {
		c.document(root, p)
	}
	if c.failed == nil && len(c.faults) == 0 && e.Prepare != nil {
		var err error
		if p.profiles, err = e.Prepare(p.profiles); err != nil {
			c.profileFault(err)
		}
	}
	if c.failed != nil {
		return nil, c.failed
	}
	if err := c.err(); err != nil {
		return nil, err
	}
	p.kinds = c.env.Kinds
	for _, r := range p.rules {
		key := r.set()
		if p.sets[key] == nil {
			p.sets[key] = &ruleSet{schema: c.schemas[newKindSet(r.kinds...)]}
		}
		p.sets[key].rules = append(p.sets[key].rules, r)
	}
	for _, set := range p.sets {
		set.index()
	}
	return p, nil
}

// document checks the top-level keys, and adds the rules and profiles to p.
func (c *compiler) document(root *yaml.Node, p *Policy) {
	var rules, profiles, est *yaml.Node
	fields := map[string]field{
		"rules":    func(_ string, v *yaml.Node) { rules = v },
		"profiles": func(_ string, v *yaml.Node) { profiles = v },
		"est":      func(_ string, v *yaml.Node) { est = v },
	}
	for i, k := range c.env.Kinds {
		if k.Section == nil {
			continue
		}
		fields[k.Name] = func(key string, v *yaml.Node) { c.section(key, v, &c.env.Kinds[i]) }
	}
	c.keys(root, "", fields)
	if root.Kind != yaml.MappingNode {
		return
	}
	if c.profiles = c.readProfiles(profiles); c.failed != nil {
		return
	}
	p.profiles = c.profiles
	if rules == nil || rules.Kind == yaml.SequenceNode && len(rules.Content) == 0 {
		c.fault(root, "rules", "there is no rule, so that nothing could enroll: write at least one")
		return
	}
	names := map[string]int{}
	costs := map[kindSet]uint64{}
	c.list(rules, "rules", maxRules, func(_ string, item *yaml.Node) {
		raw := c.readRule(item)
		if raw == nil {
			return
		}
		c.within = "rule " + raw.name
		defer func() { c.within = "" }()
		if line, exists := names[raw.name]; exists {
			c.fault(item, "name", "the rule in line %d has the same name: choose another", line)
		} else {
			names[raw.name] = item.Line
		}
		r := c.rule(item, raw)
		if r == nil {
			return
		}
		key := r.set()
		if r.when != nil && costs[key] <= maxConditionsCost {
			if costs[key] += r.when.cost; costs[key] > maxConditionsCost {
				c.fault(item, "when",
					"this condition and those before it may cost more than %d units together: compare a fact with == in more of them",
					maxConditionsCost)
			}
		}
		p.rules = append(p.rules, r)
	})
	if est != nil {
		p.labels = c.readEST(est, p.rules, names)
	}
	c.reachable(p.rules, p.labels)
}

// section checks the part of the document that belongs to a kind of evidence, and adds the facts that it declares.
func (c *compiler) section(key string, v *yaml.Node, k *Kind) {
	err := k.Section.Check(v)
	if d, ok := k.Section.(Declarer); err == nil && ok {
		var extended Kind
		if extended, err = k.with(d.Declare(v)); err == nil {
			*k = extended
		}
	}
	var faults Faults
	switch {
	case err == nil:
	case errors.As(err, &faults):
		for _, f := range faults {
			c.faultAt(f.Line, strings.TrimSuffix(key+"."+f.Key, "."), "%s", f.Problem)
		}
	default:
		c.fault(v, key, "%s", err)
	}
}

// schema returns the facts of kinds.
func (c *compiler) schema(kinds []Kind) *schema {
	key := keyOf(kinds)
	if c.schemas[key] == nil {
		c.schemas[key] = newSchema(kinds)
	}
	return c.schemas[key]
}

func keyOf(kinds []Kind) kindSet {
	var all []pki.EvidenceKind
	for _, k := range kinds {
		all = append(all, k.Evidence)
	}
	return newKindSet(all...)
}

// rule checks a rule. If its condition or templates have faults, it returns nil or an incomplete rule.
func (c *compiler) rule(n *yaml.Node, raw *rawRule) *rule {
	s := c.schema(raw.kinds)
	r := &rule{
		name: raw.name, line: n.Line, replace: raw.replace, lifetime: raw.lifetime, keys: raw.keys,
		hardware: raw.hardware, limits: raw.limits,
	}
	for _, k := range raw.kinds {
		r.kinds = append(r.kinds, k.Evidence)
	}
	if node := raw.nodes["when"]; node != nil {
		if r.when = c.condition(node, keyOf(raw.kinds), s); r.when == nil {
			return nil
		}
	}
	if !c.orders(n, raw, r) {
		return nil
	}
	c.identity(n, raw, r, s)
	if raw.hardware && (r.identity != nil || raw.nodes["identity"] == nil) {
		c.hardware(raw, r)
	}
	if raw.replace && !slices.ContainsFunc(raw.kinds, func(k Kind) bool { return !k.namesIdentity() }) {
		c.fault(raw.nodes["replace"], "replace",
			"the evidence itself says whether it replaces certificates (brevet token create --replace): remove the key")
	}
	if raw.register {
		c.registration(n, raw, r, s)
		return r
	}
	for _, key := range onlyRegister {
		if node := raw.nodes[key]; node != nil {
			c.fault(node, key, "the key describes identities that the rule registers: add register: true, or remove the key")
		}
	}
	if raw.limits.total > 0 {
		c.fault(raw.nodes["limits"], "limits.total",
			"the key limits how many identities the rule registers: add register: true, or remove the key")
	}
	return r
}

func (c *compiler) condition(n *yaml.Node, key kindSet, s *schema) *condition {
	if c.conditions[key] == nil {
		compiled, err := newConditions(s)
		if err != nil {
			c.failed = err
			return nil
		}
		c.conditions[key] = compiled
	}
	compiled, problems := c.conditions[key].compile(n.Value)
	for _, p := range problems {
		line := n.Line
		if n.Style&(yaml.LiteralStyle|yaml.FoldedStyle) != 0 {
			line++ // the text begins after the line with | or >
		}
		if n.Style&yaml.LiteralStyle != 0 {
			line += p.line
		}
		c.faultAt(line, "when", "%s", p.text)
	}
	return compiled
}

// identity checks the template of the identity.
func (c *compiler) identity(n *yaml.Node, raw *rawRule, r *rule, s *schema) {
	named := slices.ContainsFunc(raw.kinds, Kind.namesIdentity)
	node := raw.nodes["identity"]
	if node == nil {
		if !named {
			c.fault(n, "identity", "add the path of the identity, such as device/{%s}: the evidence does not name one",
				raw.kinds[0].Unique[0].Name)
		}
		return
	}
	unique := uniqueFacts(raw.kinds)
	if len(unique) == 0 {
		c.fault(node, "identity", "the evidence names the identity itself: remove the key")
		return
	}
	if strings.HasPrefix(node.Value, "/") || strings.Contains(node.Value, "://") {
		c.fault(node, "identity",
			"write the path without the trust domain and without a slash at its start, such as device/{%s}", unique[0].Name)
		return
	}
	t := c.template(node, "identity", usePath, s)
	if t == nil {
		return
	}
	if problem := r.ambiguous(t, unique, false); problem != "" && !t.fixed() {
		c.fault(node, "identity", "two devices could get the same identity: %s the path", problem)
	}
	r.identity = t
}

// template parses a template, and checks it with sample values.
func (c *compiler) template(n *yaml.Node, key string, u use, s *schema) *template {
	t, err := parseTemplate(n.Value, u, s)
	if err == nil {
		err = t.checkSample(c.env.TrustDomain)
	}
	if err != nil {
		c.fault(n, key, "%s", err)
		return nil
	}
	return t
}

// registration checks the attributes of the identities that the rule registers.
func (c *compiler) registration(n *yaml.Node, raw *rawRule, r *rule, s *schema) {
	r.register = &registration{kind: raw.kind, profile: raw.profile, labels: map[string]*template{}}
	if r.register.profile == "" {
		r.register.profile = raw.kind.String()
	}
	for _, name := range slices.Sorted(maps.Keys(raw.labels)) {
		if t := c.template(raw.labels[name], "labels."+name, useLabel, s); t != nil {
			r.register.labels[name] = t
		}
	}
	for _, node := range raw.dnsNames {
		if t := c.template(node, "dns_names", useDNS, s); t != nil {
			r.register.dnsNames = append(r.register.dnsNames, t)
			if problem := r.ambiguousName(t, uniqueFacts(raw.kinds)); problem != "" {
				c.fault(node, "dns_names", "two devices could get the same DNS name: %s the name", problem)
			}
		}
	}
	at := n
	if raw.nodes["profile"] != nil {
		at = raw.nodes["profile"]
	}
	if p := c.profileOf(r, at); p != nil {
		c.fitsProfile(at, raw, r, p)
	}
}

// fitsProfile checks that a profile allows what a rule grants.
func (c *compiler) fitsProfile(at *yaml.Node, raw *rawRule, r *rule, p *ca.Profile) {
	if !p.Permits(raw.kind) {
		c.fault(at, "profile", "profile %s is not for identities of the kind %s: choose another profile, or another kind",
			p.Name(), raw.kind)
	}
	if r.lifetime > p.MaxLifetime() {
		c.fault(raw.nodes["lifetime"], "lifetime", "profile %s allows at most %s", p.Name(), pki.FormatDuration(p.MaxLifetime()))
	}
	for _, t := range r.keys {
		if !slices.Contains(p.Keys(), t) {
			c.fault(raw.nodes["keys"], "keys", "profile %s does not allow %s: use %s", p.Name(), t, pki.JoinKeyTypes(p.Keys()))
		}
	}
	if r.identity == nil || len(r.register.dnsNames) != len(raw.dnsNames) {
		return // the identity is not known, or another fault has been recorded
	}
	id, err := pki.SPIFFEIDIn(c.env.TrustDomain, r.identity.sample())
	if err != nil {
		return
	}
	var names ca.Names
	for _, t := range r.register.dnsNames {
		names.DNS = append(names.DNS, t.sample())
	}
	if len(r.profiles) > 0 { // the certificates contain the names of the orders
		names.DNS = append(names.DNS, "x.example")
	}
	if err := p.CheckNames(id, names); err != nil {
		c.fault(at, "dns_names", "%s", err)
	}
}

// sample returns the text of a template with the value "x" for every placeholder.
func (t *template) sample() string {
	var texts []string
	for _, u := range t.units {
		text := u.before
		if u.value != nil {
			text += "x" + u.after
		}
		texts = append(texts, text)
	}
	return strings.Join(texts, t.use.separator())
}

// checkSample returns an error if no value could make the text of the template valid.
func (t *template) checkSample(trustDomain string) error {
	sample := t.sample()
	switch t.use {
	case usePath:
		id, err := pki.SPIFFEIDIn(trustDomain, sample)
		if err != nil {
			return err
		}
		if id.Reserved() {
			return errors.New("paths under brevet/ are reserved: choose another")
		}
	case useDNS:
		if sample != strings.ToLower(sample) {
			return errors.New("write DNS names in lower case")
		}
		if _, _, err := ra.CheckNames([]string{sample}, nil); err != nil {
			return err
		}
	case useLabel:
		return pki.CheckText("the label", sample)
	}
	return nil
}
