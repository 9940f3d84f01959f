package clitest

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/brevet-pki/brevet/internal/cli"
)

// A documented flag is a row of the table in docs/commands.md.
type documentedFlag struct {
	kind, meaning, variable string
	used                    bool
}

var flagRow = regexp.MustCompile("(?m)^\\| `(?:-(\\w), )?--([a-z-]+)` \\| ([^|]*) \\| ([^|]*) \\| ([^|]*) \\|$")

// Flags compares every flag of every command below root with the table in a document. All flags with one name must have
// one type, one meaning and one environment variable, unless the table has a row of another type for the name. Their help may differ only in the default, which is in
// parentheses. No flag may split its value at commas.
func Flags(t *testing.T, root *cobra.Command, document string) {
	t.Helper()
	text, err := os.ReadFile(document)
	if err != nil {
		t.Fatal(err)
	}
	table := map[string][]*documentedFlag{}
	for _, m := range flagRow.FindAllStringSubmatch(string(text), -1) {
		d := &documentedFlag{kind: m[3], meaning: m[4], variable: strings.Trim(m[5], "`")}
		if slices.ContainsFunc(table[m[2]], func(other *documentedFlag) bool { return other.kind == d.kind }) {
			t.Errorf("%s has two rows for --%s of the type %s", document, m[2], d.kind)
		}
		table[m[2]] = append(table[m[2]], d)
	}
	if len(table) < 30 {
		t.Fatalf("%s documents %d flags", document, len(table))
	}
	everyCommand(root, func(c *cobra.Command) {
		c.LocalFlags().VisitAll(func(f *pflag.Flag) {
			if f.Name == "help" || f.Name == "version" {
				return
			}
			d, ok := table[f.Name]
			if !ok {
				t.Errorf("%s --%s is not in the table of %s: | `--%s` | %s | %s | %s |", c.CommandPath(), f.Name, document, f.Name, f.Value.Type(), meaning(f), cli.Variable(f))
				return
			}
			i := max(0, slices.IndexFunc(d, func(row *documentedFlag) bool { return row.kind == f.Value.Type() }))
			d[i].used = true
			d[i].check(t, c, f)
		})
	})
	for name, rows := range table {
		for _, d := range rows {
			if !d.used {
				t.Errorf("%s documents --%s, which no command takes", document, name)
			}
		}
	}
}

func (d *documentedFlag) check(t *testing.T, c *cobra.Command, f *pflag.Flag) {
	t.Helper()
	what := fmt.Sprintf("%s --%s", c.CommandPath(), f.Name)
	if kind := f.Value.Type(); kind != d.kind {
		t.Errorf("%s is a %s, and documented as a %s", what, kind, d.kind)
	} else if splits(kind) {
		t.Errorf("%s is a %s, which splits its value at commas", what, kind)
	}
	if got := meaning(f); got != d.meaning {
		t.Errorf("%s means %q, and is documented as %q", what, got, d.meaning)
	}
	if v := cli.Variable(f); v != "" && v != d.variable {
		t.Errorf("%s is set by $%s, and documented as set by %q", what, v, d.variable)
	}
}

var (
	defaults  = regexp.MustCompile(` \(default[^)]*\)`)
	variables = regexp.MustCompile(` \[\$[A-Z_]+\]`)
)

// meaning returns the help of a flag without its default and its environment variable.
func meaning(f *pflag.Flag) string {
	return variables.ReplaceAllString(defaults.ReplaceAllString(f.Usage, ""), "")
}

// everyCommand visits a command and all commands below it.
func everyCommand(c *cobra.Command, visit func(*cobra.Command)) {
	visit(c)
	for _, sub := range c.Commands() {
		everyCommand(sub, visit)
	}
}

// OneFlagOneValue checks that no flag of any command under a root splits its value at commas. It returns how many flags
// there are.
func OneFlagOneValue(t *testing.T, root *cobra.Command) (flags int) {
	t.Helper()
	everyCommand(root, func(c *cobra.Command) {
		c.LocalFlags().VisitAll(func(f *pflag.Flag) {
			flags++
			if kind := f.Value.Type(); splits(kind) {
				t.Errorf("%s --%s is a %s, which splits its value at commas", c.CommandPath(), f.Name, kind)
			}
		})
	})
	return flags
}

// splits reports whether a type of flag splits its value at commas.
func splits(kind string) bool { return kind == "stringSlice" || strings.HasPrefix(kind, "stringTo") }

// EveryCommandHasAScript checks that the scripts in testdata run every command below root that has no subcommands.
func EveryCommandHasAScript(t *testing.T, root *cobra.Command) {
	t.Helper()
	paths, err := filepath.Glob("testdata/*")
	if err != nil {
		t.Fatal(err)
	}
	var scripts strings.Builder
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		scripts.Write(text)
	}
	everyCommand(root, func(c *cobra.Command) {
		if c.HasSubCommands() || c.Hidden {
			return
		}
		if !regexp.MustCompile(`\b` + c.CommandPath() + `\b`).MatchString(scripts.String()) {
			t.Errorf("no script in testdata runs %s", c.CommandPath())
		}
	})
}
