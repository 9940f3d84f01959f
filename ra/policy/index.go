package policy

import (
	"maps"
	"slices"
)

// ruleSet contains the rules for one set of kinds of evidence, in the order of the document. Its index finds the few
// rules whose comparisons fit a request, without evaluating the others.
type ruleSet struct {
	schema *schema
	rules  []*rule
	// byFact has the rules that compare a fact with a text. Each rule is in one index, or in rest.
	byFact []factIndex
	rest   []int // positions of rules without such a comparison
}

// factIndex has the positions of rules by the text with which they compare a fact.
type factIndex struct {
	fact  string
	rules map[string][]int
}

// index creates the index. It files each rule under its comparison that the fewest rules have.
func (s *ruleSet) index() {
	type comparison struct{ fact, literal string }
	count := map[comparison]int{}
	each := func(r *rule, visit func(comparison)) {
		if r.when == nil {
			return
		}
		for _, c := range r.when.conjuncts {
			if c.fact != "" {
				visit(comparison{c.fact, c.literal})
			}
		}
	}
	for _, r := range s.rules {
		each(r, func(c comparison) { count[c]++ })
	}
	indexes := map[string]map[string][]int{}
	for i, r := range s.rules {
		var best comparison
		each(r, func(c comparison) {
			if best.fact == "" || count[c] < count[best] {
				best = c
			}
		})
		if best.fact == "" {
			s.rest = append(s.rest, i)
			continue
		}
		if indexes[best.fact] == nil {
			indexes[best.fact] = map[string][]int{}
		}
		indexes[best.fact][best.literal] = append(indexes[best.fact][best.literal], i)
	}
	for _, fact := range slices.Sorted(maps.Keys(indexes)) {
		s.byFact = append(s.byFact, factIndex{fact, indexes[fact]})
	}
}

// find returns the first rule that matches, or nil if none does. If it finds a rule whose condition cannot be evaluated
// before that, it returns this rule and the error.
func (s *ruleSet) find(f *facts) (*rule, error) {
	var space [8][]int
	lists := append(space[:0], s.rest)
	for _, index := range s.byFact {
		if list := index.rules[f.text(index.fact)]; len(list) > 0 {
			lists = append(lists, list)
		}
	}
	for {
		next := -1
		for i, list := range lists {
			if len(list) > 0 && (next < 0 || list[0] < lists[next][0]) {
				next = i
			}
		}
		if next < 0 {
			return nil, nil //nolint:nilnil // no rule matches
		}
		r := s.rules[lists[next][0]]
		lists[next] = lists[next][1:]
		matches, err := r.matches(f)
		if err != nil || matches {
			return r, err
		}
	}
}
