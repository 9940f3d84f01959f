package policy

import "slices"

// precedence finds rules that no request can reach, because an earlier rule matches whatever they match.
type precedence struct{ sets map[kindSet]*preceding }

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
