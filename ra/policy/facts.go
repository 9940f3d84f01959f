package policy

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/types"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra"
)

// facts are the facts of one request. They implement [cel.Activation]. The evidence may not have all declared facts. An
// empty text counts as a fact that it does not have.
type facts struct {
	*schema
	claims ra.Claims
	values []any    // by the position of the fact; absent if the evidence does not have it
	texts  []string // the values as texts; empty for absent facts, and for those that are neither texts nor numbers
	// others are these facts with the other items of the itemized fact, one item each. The condition of a rule must hold for
	// them, too.
	others []*facts
}

// errAbsent is the result of an expression that depends on a fact that the evidence does not have.
var errAbsent = errors.New("the evidence does not have the fact")

// absent is the value of such a fact in CEL. An expression that reads it has the same result, unless the value does not
// matter, as in a || b if b is true.
var absent = types.WrapErr(errAbsent)

// newFacts returns the facts of claims of the kinds in s. It refuses facts that are too long. It returns another error if
// a fact does not have the declared type.
func newFacts(s *schema, claims ra.Claims) (*facts, error) {
	f := &facts{schema: s, claims: claims, values: make([]any, len(s.names)), texts: make([]string, len(s.names))}
	for i, name := range s.names {
		d := s.facts[name]
		value, ok := claimOf(claims, d.kind).Facts[name]
		if !ok {
			f.values[i] = absent
			continue
		}
		text, size, fits := measure(value, d.is)
		if !fits {
			return nil, fmt.Errorf("evidence of the kind %s has the fact %s as %T", d.kind, name, value)
		}
		if size > maxFactBytes {
			return nil, pki.Refuse(pki.RulePolicy, fmt.Sprintf("use evidence whose values have at most %d bytes, and %d items",
				maxFactBytes, maxFactItems),
				"the value of %s in the evidence is too long", name)
		}
		f.values[i], f.texts[i] = value, text
		if value == "" {
			f.values[i] = absent
		}
	}
	f.itemize()
	return f, nil
}

// itemize reduces the itemized fact to its first item, and puts the other items into f.others.
func (f *facts) itemize() {
	d, exists := f.facts[f.itemized]
	if !exists {
		return
	}
	items, _ := f.values[d.position].([]string)
	for i := range items {
		one := f
		if i > 0 {
			one = &facts{schema: f.schema, claims: f.claims, values: slices.Clone(f.values), texts: f.texts}
			f.others = append(f.others, one)
		}
		one.values[d.position] = items[i : i+1 : i+1]
	}
}

// measure reports whether a value has a type. It returns the value as a text, and its size, which is over maxFactBytes if
// the value is too long.
func measure(value any, is ra.FactType) (text string, size int, fits bool) {
	switch v := value.(type) {
	case string:
		return v, len(v), is == ra.FactString
	case int64:
		return strconv.FormatInt(v, 10), 0, is == ra.FactInt
	case bool:
		return "", 0, is == ra.FactBool
	case time.Time:
		return "", 0, is == ra.FactTime
	case []string:
		for _, item := range v {
			size = max(size, len(item))
		}
		if len(v) > maxFactItems {
			size = maxFactBytes + 1
		}
		return "", size, is == ra.FactStrings
	default:
		return "", 0, false
	}
}

// claimOf returns the claim of a kind of evidence, which must be among the claims.
func claimOf(claims ra.Claims, kind pki.EvidenceKind) *ra.KindClaim {
	for i := range claims {
		if claims[i].Kind == kind {
			return &claims[i]
		}
	}
	return nil
}

// text returns the value of a declared fact that is a text or a number.
func (f *facts) text(name string) string { return f.texts[f.facts[name].position] }

// ResolveName implements cel.Activation.
func (f *facts) ResolveName(name string) (any, bool) {
	d, ok := f.facts[name]
	if !ok {
		return nil, false
	}
	return f.values[d.position], true
}

// Parent implements cel.Activation.
func (*facts) Parent() cel.Activation { return nil }
