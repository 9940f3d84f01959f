package policy

import (
	"fmt"
	"strings"

	"github.com/brevet-pki/brevet/pki"
)

// maxFaults is the maximum number of faults that Compile reports.
const maxFaults = 100

// Fault is one fault in a document.
type Fault struct {
	Line    int    // line in the document, starting with 1; 0 if unknown
	Rule    string // name of the rule or test case; empty if the fault is outside of them
	Key     string // key of the rule, such as "when"; empty if the fault is about the whole rule
	Problem string // what was found, and what would pass
}

// String returns "line 3: rule cameras: when: problem". It omits unknown parts.
func (f Fault) String() string {
	if f.Line == 0 {
		return f.Text()
	}
	return fmt.Sprintf("line %d: %s", f.Line, f.Text())
}

// Text returns the fault without its line.
func (f Fault) Text() string {
	var b strings.Builder
	if f.Rule != "" {
		b.WriteString(f.Rule + ": ")
	}
	if f.Key != "" {
		b.WriteString(f.Key + ": ")
	}
	return b.String() + f.Problem
}

// Faults are the faults in a document, in the order of their lines. As an error, it wraps a refusal with the rule
// policy.invalid.
type Faults []Fault

// Error returns all faults, separated by semicolons.
func (f Faults) Error() string {
	texts := make([]string, len(f))
	for i, fault := range f {
		texts[i] = fault.String()
	}
	return strings.Join(texts, "; ")
}

// Unwrap returns the refusal of the document.
func (f Faults) Unwrap() error {
	count := "1 fault"
	if len(f) != 1 {
		count = fmt.Sprintf("%d faults", len(f))
	}
	return pki.Refuse(pki.RulePolicyInvalid, "correct the document (brevet policy check)", "the policy has %s: %s", count, f.Error())
}
