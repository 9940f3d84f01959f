package policy

import (
	"errors"
	"strings"

	"github.com/brevet-pki/brevet/ra"
)

// Outcome is what became of a rule.
type Outcome uint8

// The outcomes.
const (
	Matched       Outcome = iota + 1 // the rule matches, and decides
	Unmatched                        // a part of its condition is false
	Failed                           // its condition cannot be evaluated, so that the request is refused
	OtherEvidence                    // the rule is for other kinds of evidence
	NotTried                         // an earlier rule decided
	Mixed                            // its condition is true for a part of the evidence, so that the request is refused
	NotSelected                      // the label of the request, or the external key of its account, selects other rules
)

// Trial says what became of a rule for some claims.
type Trial struct {
	Rule    string
	Line    int // line of the rule in the document
	Outcome Outcome
	// Parts are the parts of the condition, connected by &&, that are false or cannot be evaluated.
	Parts []string
}

// String returns the trial as a sentence.
func (t Trial) String() string {
	text := "rule " + t.Rule
	switch t.Outcome {
	case Matched:
		text += " matches"
	case Unmatched:
		text += " does not match: false is " + strings.Join(t.Parts, ", and ")
	case Failed:
		text += " cannot be evaluated: " + strings.Join(t.Parts, ", and ")
	case Mixed:
		text += " matches some ways of the proof only, such as one of two types of challenges"
	case OtherEvidence:
		text += " is for other evidence"
	case NotSelected:
		text += " was not tried, because the label of the request, or the external key of its account, selects others"
	case NotTried:
		text += " was not tried, because an earlier rule decided"
	}
	return text
}

// EvidenceOf returns the names of the kinds of evidence that claims are from.
func EvidenceOf(claims ra.Claims) []string {
	names := make([]string, len(claims))
	for i, c := range claims {
		names[i] = c.Kind.String()
	}
	return names
}

// Explain returns what became of each rule, in the order of the document. The label is that of the request, and empty for
// requests without one. If the policy does not have the label, it selects no rule. Explain is for operators: it reveals the rules. It
// does not count a request for the rates of rules.
func (p *Policy) Explain(claims ra.Claims, label string) []Trial {
	key, decided := kindsOf(claims), false
	selected, err := p.selection(claims, label)
	trials := make([]Trial, 0, len(p.rules))
	for _, r := range p.rules {
		t := Trial{Rule: r.name, Line: r.line}
		switch {
		case decided:
			t.Outcome = NotTried
		case err != nil || !selected.has(r):
			t.Outcome = NotSelected
		case r.set() != key:
			t.Outcome = OtherEvidence
		default:
			if f, err := newFacts(p.sets[key].schema, claims); err != nil {
				t.Outcome, t.Parts = Failed, []string{err.Error()}
			} else {
				t.Outcome, t.Parts = r.try(f)
			}
			decided = t.Outcome != Unmatched
		}
		trials = append(trials, t)
	}
	return trials
}

// try returns what becomes of a rule, and the parts of its condition that are the reason.
func (r *rule) try(f *facts) (Outcome, []string) {
	if r.when == nil {
		return Matched, nil
	}
	if _, err := r.matches(f); errors.Is(err, errMixed) {
		return Mixed, nil
	}
	var untrue, failed []string
	for _, c := range r.when.conjuncts {
		holds, err := c.holds(f)
		for i := 0; holds && err == nil && i < len(f.others); i++ {
			holds, err = c.holds(f.others[i])
		}
		switch {
		case err != nil:
			failed = append(failed, c.text) // the error may contain a value, which may be personal
		case !holds:
			untrue = append(untrue, c.text)
		}
	}
	switch {
	case len(untrue) > 0:
		return Unmatched, untrue
	case len(failed) > 0:
		return Failed, failed
	default:
		return Matched, nil
	}
}
