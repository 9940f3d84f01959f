package policy

import (
	"maps"
	"slices"
)

// precedence finds rules that no request can reach, because an earlier rule matches whatever they match.
type precedence struct{ sets map[kindSet]*preceding }

// reachable records a fault for each rule that no request can reach: neither requests without a label, nor those with
// one that selects the rule.
func (c *compiler) reachable(rules []*rule, labels map[string]*label) {
	first := unreachable(rules, nil)
	for _, name := range slices.Sorted(maps.Keys(labels)) {
		if len(first) == 0 {
			return
		}
		selected := labels[name].selected
		hidden := unreachable(rules, selected)
		maps.DeleteFunc(first, func(r, _ *rule) bool { return selected.has(r) && hidden[r] == nil })
	}
	for r, other := range first {
		c.within = "rule " + r.name
		c.faultAt(r.line, "", "no request can reach this rule: rule %s in line %d comes first, and matches the same evidence",
			other.name, other.line)
		c.within = ""
	}
}

// unreachable returns the rules that no request can reach if only the selected rules may decide, each with the earlier
// rule that matches whatever it matches.
func unreachable(rules []*rule, selected selection) map[*rule]*rule {
	p, all := &precedence{sets: map[kindSet]*preceding{}}, map[*rule]*rule{}
	for _, r := range rules {
		if !selected.has(r) {
			continue
		}
		if other := p.add(r); other != nil {
			all[r] = other
		}
	}
	return all
}

// preceding are the rules for one set of kinds so far.
type preceding struct {
	always *rule             // the first rule without a condition, or nil
	byText map[string][]seen // rules by one of their conjuncts
}

// seen is a rule with the texts of its conjuncts, without repetitions.
type seen struct {
	rule  *rule
	texts []string // sorted
}

// add adds the next rule. If a rule before it matches all requests that it matches, add returns the earlier rule.
func (p *precedence) add(r *rule) *rule {
	key := r.set()
	if p.sets[key] == nil {
		p.sets[key] = &preceding{byText: map[string][]seen{}}
	}
	set := p.sets[key]
	if set.always != nil {
		return set.always
	}
	if r.when == nil {
		set.always = r
		return nil
	}
	var texts []string
	for _, c := range r.when.conjuncts {
		texts = append(texts, c.text)
	}
	slices.Sort(texts)
	texts = slices.Compact(texts)
	for _, text := range texts {
		for _, other := range set.byText[text] {
			if other.covers(texts) {
				return other.rule
			}
		}
	}
	// The rule is filed under the conjunct with the fewest rules, so that few rules are compared with the next ones.
	least := texts[0]
	for _, text := range texts {
		if len(set.byText[text]) < len(set.byText[least]) {
			least = text
		}
	}
	set.byText[least] = append(set.byText[least], seen{r, texts})
	return nil
}

// covers reports whether all conjuncts of s are among the given texts, so that s matches whenever they are true.
func (s seen) covers(texts []string) bool {
	if len(s.texts) > len(texts) {
		return false
	}
	for _, text := range s.texts {
		if _, found := slices.BinarySearch(texts, text); !found {
			return false
		}
	}
	return true
}
