package policy

import (
	"fmt"
	"strconv"
	"time"

	"cel.dev/cel-go/cel"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra"
)

// facts are the facts of one request. They implement [cel.Activation]. If the evidence does not have a declared fact, the
// fact has the zero value of its type.
type facts struct {
	*schema
	claims ra.Claims
}

// claimOf returns the claim of a kind of evidence, or nil.
func claimOf(claims ra.Claims, kind pki.EvidenceKind) *ra.KindClaim {
	for i := range claims {
		if claims[i].Kind == kind {
			return &claims[i]
		}
	}
	return nil
}

// check refuses facts that are too long. It returns another error if a fact does not have the declared type.
func (f *facts) check() error {
	for _, name := range f.names {
		d := f.facts[name]
		value, ok := claimOf(f.claims, d.kind).Facts[name]
		if !ok {
			continue
		}
		fits, size := false, 0
		switch v := value.(type) {
		case string:
			fits, size = d.is == ra.FactString, len(v)
		case []string:
			fits = d.is == ra.FactStrings
			for _, item := range v {
				size = max(size, len(item))
			}
			if len(v) > maxFactItems {
				size = maxFactBytes + 1
			}
		case int64:
			fits = d.is == ra.FactInt
		case bool:
			fits = d.is == ra.FactBool
		case time.Time:
			fits = d.is == ra.FactTime
		}
		if !fits {
			return fmt.Errorf("evidence of the kind %s has the fact %s as %T", d.kind, name, value)
		}
		if size > maxFactBytes {
			return pki.Refuse(pki.RulePolicy, fmt.Sprintf("use evidence whose values have at most %d bytes, and %d items", maxFactBytes, maxFactItems),
				"the value of %s in the evidence is too long", name)
		}
	}
	return nil
}

// value returns the value of a declared fact.
func (f *facts) value(name string) any {
	d := f.facts[name]
	if value, ok := claimOf(f.claims, d.kind).Facts[name]; ok {
		return value
	}
	switch d.is {
	case ra.FactInt:
		return int64(0)
	case ra.FactBool:
		return false
	case ra.FactTime:
		return time.Time{}
	case ra.FactStrings:
		return []string(nil)
	default:
		return ""
	}
}

// text returns the value of a fact that is a text or a number.
func (f *facts) text(name string) string {
	switch v := f.value(name).(type) {
	case string:
		return v
	case int64:
		return strconv.FormatInt(v, 10)
	default:
		return ""
	}
}

// ResolveName implements cel.Activation.
func (f *facts) ResolveName(name string) (any, bool) {
	if _, ok := f.facts[name]; !ok {
		return nil, false
	}
	return f.value(name), true
}

// Parent implements cel.Activation.
func (*facts) Parent() cel.Activation { return nil }
