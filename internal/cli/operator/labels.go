package operator

import (
	"maps"
	"slices"
	"strings"

	"github.com/brevet-pki/brevet/ra"
)

// labelRecord is a label of EST as brevet policy check prints it.
type labelRecord struct {
	Name           string   `json:"name"`
	Rules          []string `json:"rules,omitempty"` // all if it is empty
	Chain          bool     `json:"chain"`
	Attributes     string   `json:"attributes"`
	RequireLinking bool     `json:"require_linking"`
	AcceptNames    bool     `json:"accept_names"`
}

// labelRecords returns the records of labels, sorted by name.
func labelRecords(labels map[string]ra.Label) []labelRecord {
	var all []labelRecord
	for _, name := range slices.Sorted(maps.Keys(labels)) {
		l := labels[name]
		all = append(all, labelRecord{l.Name, l.Rules, l.Chain, string(l.Attributes), l.RequireLinking, l.AcceptNames})
	}
	return all
}

// text returns the record as one line.
func (r labelRecord) text() string {
	rules := "all rules"
	if len(r.Rules) > 0 {
		rules = "the rules " + strings.Join(r.Rules, ", ")
	}
	parts := []string{"EST label " + r.Name + " selects " + rules, "attributes " + r.Attributes}
	for _, part := range []struct {
		set  bool
		text string
	}{{r.Chain, "responses with the chain"}, {r.RequireLinking, "linking required"}, {r.AcceptNames, "names of CSRs ignored"}} {
		if part.set {
			parts = append(parts, part.text)
		}
	}
	return strings.Join(parts, "; ")
}
