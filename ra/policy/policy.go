package policy

import (
	"errors"
	"slices"
	"time"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra"
)

// Policy decides what verified evidence grants. It implements [ra.Policy]. It does not change, except that its grants
// count certificates for the rates of its rules, and it is safe for concurrent use.
type Policy struct {
	revision    uint64
	trustDomain string
	kinds       []Kind
	rules       []*rule
	profiles    *ca.Profiles
	labels      map[string]*label
	sets        map[kindSet]*ruleSet
}

// Revision returns the number of the document in the store.
func (p *Policy) Revision() uint64 { return p.revision }

// Rules returns the names of the rules, in the order of the document.
func (p *Policy) Rules() []string {
	names := make([]string, len(p.rules))
	for i, r := range p.rules {
		names[i] = r.name
	}
	return names
}

// OrderRules returns the names of the rules for ACME orders that form the identity from the name of an order.
func (p *Policy) OrderRules() []string {
	var names []string
	for _, r := range p.rules {
		if r.set() == (kindSet{pki.EvidenceACME}) {
			names = append(names, r.name)
		}
	}
	return names
}

// OrderProfiles returns the names of the profiles that ACME orders can choose, by whatever rule, in ascending order.
func (p *Policy) OrderProfiles() []string {
	var names []string
	for _, r := range p.rules {
		names = append(names, r.profiles...)
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// Profiles returns the default profiles and those of the document.
func (p *Policy) Profiles() *ca.Profiles { return p.profiles }

// Labels returns the labels of EST by their names.
func (p *Policy) Labels() map[string]ra.Label {
	all := make(map[string]ra.Label, len(p.labels))
	for name, l := range p.labels {
		all[name] = l.Label
	}
	return all
}

// Kinds returns the kinds of evidence that rules name.
func (p *Policy) Kinds() []pki.EvidenceKind {
	var kinds []pki.EvidenceKind
	for _, r := range p.rules {
		kinds = append(kinds, r.kinds...)
	}
	slices.Sort(kinds)
	return slices.Compact(kinds)
}

// Grant implements [ra.Policy]. If the rule has a rate, the grant counts the certificate when its Take is called.
func (p *Policy) Grant(claims ra.Claims, label string, at time.Time) (ra.Grant, error) {
	r, g, err := p.decide(claims, label)
	if err != nil {
		return ra.Grant{}, err
	}
	if r.limits.rate != nil {
		g.Take = func() (func(), error) { return r.limits.take(r.name, at) }
	}
	return g, nil
}

// decide returns the first rule that the claims match, of those that the label selects, and what it grants.
func (p *Policy) decide(claims ra.Claims, label string) (*rule, ra.Grant, error) {
	selected, err := p.selection(claims, label)
	if err != nil {
		return nil, ra.Grant{}, err
	}
	set := p.sets[kindsOf(claims)]
	if set == nil {
		return nil, ra.Grant{}, noRule()
	}
	f, err := newFacts(set.schema, claims)
	if err != nil {
		return nil, ra.Grant{}, err
	}
	r, err := set.find(f, selected)
	switch {
	case r == nil:
		return nil, ra.Grant{}, noRule()
	case errors.Is(err, errMixed):
		return r, ra.Grant{}, pki.Refuse(pki.RulePolicy, "prove all of it in the same way, such as all names by the same type of challenge, or request them one by one",
			"different rules of the policy decide parts of the evidence")
	case err != nil:
		return r, ra.Grant{}, pki.Refuse(pki.RulePolicy, "ask the operator to correct the rule (brevet policy explain)",
			"the condition of rule %s cannot be evaluated for this evidence", r.name)
	}
	g, err := p.grant(r, f)
	return r, g, err
}

// kindsOf returns the kinds of evidence that the claims are from. It returns zero for an impossible number of claims.
func kindsOf(claims ra.Claims) kindSet {
	switch len(claims) {
	case 1:
		if claims[0].Kind == pki.EvidenceACME && !claims[0].Identity.IsZero() {
			return namedOrders
		}
		return kindSet{claims[0].Kind}
	case 2:
		return newKindSet(claims[0].Kind, claims[1].Kind)
	default:
		return kindSet{}
	}
}

// noRule returns the refusal of claims that no rule matches. It does not say which rules there are.
func noRule() error {
	return pki.Refuse(pki.RulePolicy, "ask the operator for a rule for this evidence (brevet policy explain)",
		"no rule of the policy matches the evidence")
}

// grant returns what a rule grants for facts that it matches.
func (p *Policy) grant(r *rule, f *facts) (ra.Grant, error) {
	g := ra.Grant{
		Rule: r.name, Revision: p.revision, Subject: r.subject(f.claims), Replace: r.replace,
		Lifetime: r.lifetime, Keys: r.keys, HardwareKey: r.hardware, Total: r.limits.total,
		Profiles: r.profiles, Wildcards: r.wildcards,
	}
	for _, c := range f.claims {
		g.Replace = g.Replace || c.Replace
		if g.Identity.IsZero() {
			g.Identity = c.Identity
		}
	}
	if r.identity != nil {
		path, err := r.identity.expand(r.name, f)
		if err != nil {
			return ra.Grant{}, err
		}
		if g.Identity, err = pki.SPIFFEIDIn(p.trustDomain, path); err != nil {
			return ra.Grant{}, pki.Refuse(pki.RulePolicy, "ask the operator to change the template",
				"rule %s matches, but its template forms no valid path", r.name)
		}
	}
	switch {
	case g.Identity.IsZero():
		return ra.Grant{}, pki.Refuse(pki.RulePolicy, "send evidence that names an identity, such as a token",
			"rule %s needs evidence that names the identity", r.name)
	case g.Identity.Reserved():
		return ra.Grant{}, pki.Refuse(pki.RuleReserved, "ask the operator to change the template",
			"rule %s forms a path under brevet/", r.name)
	}
	if r.register != nil {
		var err error
		if g.Register, err = r.register.expand(r.name, f); err != nil {
			return ra.Grant{}, err
		}
	}
	return g, nil
}

// expand returns the description of the identity to register.
func (n *registration) expand(rule string, f *facts) (*ra.NewIdentity, error) {
	id := &ra.NewIdentity{Kind: n.kind, Profile: n.profile}
	for name, t := range n.labels {
		text, err := t.expand(rule, f)
		if err != nil {
			return nil, err
		}
		if id.Labels == nil {
			id.Labels = map[string]string{}
		}
		id.Labels[name] = text
	}
	for _, t := range n.dnsNames {
		text, err := t.expand(rule, f)
		if err != nil {
			return nil, err
		}
		id.DNSNames = append(id.DNSNames, text)
	}
	return id, nil
}
