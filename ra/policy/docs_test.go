package policy_test

import (
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/brevet-pki/brevet/ra/policy"
)

// TestExamplesInTheDocument checks the policies in docs/policy.md, and the table of cases after each of them.
func TestExamplesInTheDocument(t *testing.T) {
	text, err := os.ReadFile("../../docs/policy.md")
	if err != nil {
		t.Fatal(err)
	}
	var p *policy.Policy
	policies, cases := 0, 0
	for _, block := range regexp.MustCompile("(?ms)^```yaml\n(.*?\n)```$").FindAllStringSubmatch(string(text), -1) {
		if strings.HasPrefix(block[1], "# The default profiles.") {
			continue
		}
		if strings.HasPrefix(block[1], "rules:") || strings.HasPrefix(block[1], "profiles:") {
			p = compile(t, block[1])
			policies++
			continue
		}
		results, err := p.Test([]byte(block[1]))
		if err != nil {
			t.Errorf("%v in\n%s", err, block[1])
		}
		for _, r := range results {
			cases++
			if r.Problem != "" {
				t.Errorf("case %s: %s %v", r.Case, r.Problem, r.Trials)
			}
		}
	}
	if policies != 10 || cases != 29 {
		t.Errorf("the document has %d policies and %d cases, want 10 and 29", policies, cases)
	}
}

func TestFactsAreInTheDocument(t *testing.T) {
	text, err := os.ReadFile("../../docs/policy.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range kinds() {
		for name := range k.Facts {
			if name != "jwt.uses" && !strings.Contains(string(text), "\n| `"+name+"` |") { // a source may declare jwt.uses
				t.Errorf("docs/policy.md has no row for the fact %s", name)
			}
		}
		for _, u := range k.Unique {
			if !strings.Contains(string(text), "\n| `"+u.Name+"` | text, unique |") {
				t.Errorf("docs/policy.md does not say that the fact %s is unique", u.Name)
			}
		}
	}
}
