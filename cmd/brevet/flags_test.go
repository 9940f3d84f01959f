package main

import (
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// TestOneFlagOneValue walks through all commands: no flag cuts its value apart at commas.
func TestOneFlagOneValue(t *testing.T) {
	flags := 0
	var walk func(c *cobra.Command)
	walk = func(c *cobra.Command) {
		visit := func(f *pflag.Flag) {
			flags++
			if kind := f.Value.Type(); kind == "stringSlice" || strings.HasPrefix(kind, "stringTo") {
				t.Errorf("%s --%s is a %s, which takes a comma for the end of a value", c.CommandPath(), f.Name, kind)
			}
		}
		c.LocalFlags().VisitAll(visit)
		for _, sub := range c.Commands() {
			walk(sub)
		}
	}
	if walk(newRoot()); flags < 50 {
		t.Errorf("there are %d flags", flags)
	}
}
