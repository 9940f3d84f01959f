package cli

import (
	"os"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// Variables lists the environment variables of brevet's commands that do not set a configuration key. brevet serve
// refuses other unknown variables that begin with BREVET_.
var Variables = []string{"BREVET_CONTEXT", "BREVET_DIRECTORY", "BREVET_OUTPUT", "BREVET_SERVER"}

// Source is where the value of a flag comes from. A higher value takes precedence.
type Source int

// The sources of a flag's value.
const (
	FromDefault Source = iota
	FromVariable
	FromFlag
)

// variableAnnotation marks a flag that an environment variable can set. fromVariable marks a flag that a variable has
// set.
const (
	variableAnnotation = "variable"
	fromVariable       = "from-variable"
)

// Variable returns the environment variable of a flag, such as BREVET_SERVER for --server, or "" if it has none.
func Variable(f *pflag.Flag) string {
	if names := f.Annotations[variableAnnotation]; len(names) == 1 {
		return names[0]
	}
	return ""
}

// TakeVariables lets environment variables set flags that the command line does not set, and adds the variable's name
// to each flag's help.
func TakeVariables(flags *pflag.FlagSet, names ...string) {
	for _, name := range names {
		f := flags.Lookup(name)
		variable := "BREVET_" + strings.ToUpper(strings.ReplaceAll(name, "-", "_"))
		f.Annotations = map[string][]string{variableAnnotation: {variable}}
		f.Usage += " [$" + variable + "]"
	}
}

// readVariables sets each flag of a command that the command line does not set from its environment variable. An empty
// variable counts as unset.
func readVariables(cmd *cobra.Command) (err error) {
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		value := os.Getenv(Variable(f))
		if value == "" || f.Changed || err != nil {
			return
		}
		if wrong := cmd.Flags().Set(f.Name, value); wrong != nil {
			err = WrongFlag("$"+Variable(f), wrong)
		}
		f.Annotations[fromVariable] = nil
	})
	return err
}

// SourceOf returns where the value of a flag comes from.
func SourceOf(cmd *cobra.Command, name string) Source {
	f := cmd.Flags().Lookup(name)
	if f == nil || !f.Changed {
		return FromDefault
	}
	if _, is := f.Annotations[fromVariable]; is {
		return FromVariable
	}
	return FromFlag
}
