package agentcli

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestComplete(t *testing.T) {
	for line, want := range map[string]string{
		"":                      "run enroll status doctor evidence version help :4",
		"st":                    "status :4",
		"renew":                 ":4",
		"run ":                  "--config --directory --token-file :4",
		"run --":                "--config --directory --token-file :4",
		"run --config f --d":    "--directory :4",
		"run --config f --c":    ":4",
		"run -config f --c":     ":4",
		"run --config=f --":     "--directory --token-file :4",
		"run --config ":         ":0",
		"run -config /etc/br":   ":0",
		"run --config=/etc/br":  ":0",
		"run --directory ":      ":16",
		"run --output ":         ":4",
		"status --output ":      "text json :4",
		"status --output=j":     "json :4",
		"status --output json ": "--config --directory :4",
		"version --":            ":4",
		"renew --":              ":4",
	} {
		var b strings.Builder
		Complete(&b, strings.Split(line, " "))
		var got []string
		for l := range strings.Lines(b.String()) {
			word, _, _ := strings.Cut(strings.TrimSpace(l), "\t")
			got = append(got, word)
		}
		if diff := cmp.Diff(want, strings.Join(got, " ")); diff != "" {
			t.Errorf("%q: %s", line, diff)
		}
	}
	var b strings.Builder
	if Complete(&b, nil); b.String() != ":4\n" {
		t.Errorf("of no words: %q", b.String())
	}
}

func TestHelpShowsEverything(t *testing.T) {
	var b strings.Builder
	Help(&b)
	for _, c := range Commands() {
		if !strings.Contains(b.String(), "\n  "+c.Name+" ") || !strings.Contains(b.String(), c.Short) {
			t.Errorf("the help does not show %s", c.Name)
		}
		for _, f := range c.Flags {
			if strings.Count(b.String(), "\n  --"+f.Name+" "+f.Value+" ") != 1 {
				t.Errorf("the help does not show --%s once", f.Name)
			}
		}
	}
}
