package policy

import (
	"slices"
	"strings"

	"github.com/brevet-pki/brevet/ra"
)

// uniqueFacts returns the facts that distinguish two subjects of some kinds of evidence.
func uniqueFacts(kinds []Kind) []ra.UniqueFact {
	var all []ra.UniqueFact
	for _, k := range kinds {
		all = append(all, k.Unique...)
	}
	return all
}

// ambiguous returns what to add to a template so that it forms different texts for different subjects. It returns "" if
// the template does so already, and otherwise a phrase that ends with "to".
//
// The template must contain a unique fact. The rule must fix the scope of this fact: its condition compares the scope with
// one value, or the template contains the scope. With whole, functions that keep only a part of the unique fact do not
// count.
func (r *rule) ambiguous(t *template, unique []ra.UniqueFact, whole bool) string {
	var names []string
	problem := ""
	for _, u := range unique {
		names = append(names, u.Name)
		if !slices.Contains(t.facts(), u.Name) || whole && !t.has(u.Name) {
			continue
		}
		missing := slices.IndexFunc(u.Within, func(equivalent []string) bool {
			return !slices.ContainsFunc(equivalent, func(name string) bool { return r.when.fixes(name) || t.has(name) })
		})
		if missing < 0 {
			return ""
		}
		scope := u.Within[missing][0]
		problem = u.Name + " is unique only within " + scope + ": compare " + scope + " with == in the condition, or add {" +
			scope + "} to"
	}
	if problem == "" {
		problem = "add one of " + strings.Join(names, ", ") + " to"
	}
	return problem
}

// ambiguousName returns what to add to the template of a DNS name, as ambiguous does. Other than an identity, a DNS name is
// tied to no subject. A name without placeholders is the choice of the operator, and so is every name of one fixed
// identity.
func (r *rule) ambiguousName(t *template, unique []ra.UniqueFact) string {
	switch {
	case t.fixed() || r.identity != nil && (r.identity.fixed() || t.contains(r.identity)):
		return ""
	case len(unique) == 0:
		return "the evidence has no unique fact: remove the placeholders from"
	default:
		return r.ambiguous(t, unique, true)
	}
}

// has reports whether the whole value of a fact, or its digest, is in the template.
func (t *template) has(fact string) bool {
	return slices.ContainsFunc(t.units, func(u unit) bool {
		return u.value != nil && u.value.fact == fact && (u.value.function == "" || u.value.function == digestFunction)
	})
}

// contains reports whether all placeholders of another template are in this one. Then two equal texts of this template
// mean two equal texts of the other.
func (t *template) contains(other *template) bool {
	return !slices.ContainsFunc(other.units, func(u unit) bool {
		return u.value != nil && !slices.ContainsFunc(t.units, func(own unit) bool { return u.value.equal(own.value) })
	})
}

// equal reports whether two placeholders always have the same value.
func (p *placeholder) equal(other *placeholder) bool {
	if other == nil || p.fact != other.fact || p.function != other.function || p.separator != other.separator ||
		p.part != other.part || (p.pattern == nil) != (other.pattern == nil) {
		return false
	}
	return p.pattern == nil || p.pattern.String() == other.pattern.String()
}

// fixes reports whether the condition compares a fact with one constant text.
func (c *condition) fixes(fact string) bool {
	return c != nil && slices.ContainsFunc(c.conjuncts, func(part conjunct) bool {
		return part.test != nil && part.test.fact == fact && len(part.test.values) == 1
	})
}

// needs reports whether a part of the condition is false if the evidence does not have the fact.
func (c *condition) needs(fact string) bool {
	return c != nil && slices.ContainsFunc(c.conjuncts, func(part conjunct) bool {
		if part.test != nil {
			return part.test.fact == fact
		}
		return part.text == fact || part.text == fact+" == true" || part.text == fact+` != ""`
	})
}

// lists reports whether the condition compares a fact with constant texts.
func (c *condition) lists(fact string) bool {
	return c != nil && slices.ContainsFunc(c.conjuncts, func(part conjunct) bool {
		return part.test != nil && part.test.fact == fact && part.test.values != nil
	})
}

// hardware checks a rule with hardware_key. Software can simulate hardware, so the rule must name it: by the certificate of
// its manufacturer, by a fact that is unique everywhere, or by an identity that an operator has registered for this fact.
func (c *compiler) hardware(raw *rawRule, r *rule) {
	node := raw.nodes["hardware_key"]
	var hint []string
	for _, k := range raw.kinds {
		if len(k.Certified) == 0 {
			continue
		}
		if slices.ContainsFunc(k.Certified, r.when.needs) {
			return
		}
		hint = append(hint, "require "+k.Certified[0]+" in the condition")
		for _, u := range k.Unique {
			if len(u.Within) > 0 {
				continue
			}
			if r.when.lists(u.Name) || !raw.register && r.identity != nil && r.identity.has(u.Name) {
				return
			}
			hint = append(hint, "compare "+u.Name, "put {"+u.Name+"} into the path of identities that operators register")
		}
	}
	if len(hint) == 0 {
		c.fault(node, "hardware_key", "no evidence of this rule proves that a key is in hardware: add tpm to evidence, or "+
			"remove the key")
		return
	}
	c.fault(node, "hardware_key", "a program that simulates the hardware could match this rule: %s",
		strings.Join(hint, ", or "))
}
