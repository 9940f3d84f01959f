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
	// byFact has the rules that compare a fact with texts. Each rule is in the index of one fact, or in rest.
	byFact []factIndex
	rest   []int // positions of rules without such a comparison
}

// factIndex has the positions of rules by the text with which they compare a fact.
type factIndex struct {
	position int // of the fact
	rules    map[string][]int
}

// index creates the index. It files each rule under its comparison that the fewest rules have.
func (s *ruleSet) index() {
	type comparison struct{ fact, value string }
	count := map[comparison]int{}
	for _, r := range s.rules {
		for _, t := range r.comparisons() {
			for _, value := range t.values {
				count[comparison{t.fact, value}]++
			}
		}
	}
	indexes := map[string]map[string][]int{}
	for i, r := range s.rules {
		var best *textTest
		least := 0
		for _, t := range r.comparisons() {
			most := 0
			for _, value := range t.values {
				most = max(most, count[comparison{t.fact, value}])
			}
			if best == nil || most < least {
				best, least = t, most
			}
		}
		if best == nil {
			s.rest = append(s.rest, i)
			continue
		}
		if indexes[best.fact] == nil {
			indexes[best.fact] = map[string][]int{}
		}
		for _, value := range best.values {
			indexes[best.fact][value] = append(indexes[best.fact][value], i)
		}
	}
	for _, fact := range slices.Sorted(maps.Keys(indexes)) {
		s.byFact = append(s.byFact, factIndex{s.schema.facts[fact].position, indexes[fact]})
	}
}

// comparisons returns the tests of a rule that compare a fact with texts.
func (r *rule) comparisons() []*textTest {
	var all []*textTest
	if r.when != nil {
		for _, c := range r.when.conjuncts {
			if c.test != nil && c.test.values != nil {
				all = append(all, c.test)
			}
		}
	}
	return all
}

// find returns the first selected rule that matches, or nil if none does. If it finds a rule whose condition cannot be
// evaluated
// before that, it returns this rule and the error.
func (s *ruleSet) find(f *facts, selected selection) (*rule, error) {
	var space [8][]int
	lists := append(space[:0], s.rest)
	for _, index := range s.byFact {
		if list := index.rules[f.texts[index.position]]; len(list) > 0 {
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
			return nil, nil
		}
		r := s.rules[lists[next][0]]
		lists[next] = lists[next][1:]
		if !selected.has(r) {
			continue
		}
		matches, err := r.matches(f)
		if err != nil || matches {
			return r, err
		}
	}
}
