package operator

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/brevet-pki/brevet/internal/cli"
	"github.com/brevet-pki/brevet/internal/cli/output"
	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
)

// labels is the value of a flag that takes labels, each NAME=VALUE. It implements pflag.Value.
type labels map[string]string

// Set adds a label. The label's value may contain any character, also commas and equals signs.
func (l *labels) Set(text string) error {
	name, value, err := parseLabel(text)
	if err != nil {
		return err
	}
	if _, twice := (*l)[name]; twice {
		return fmt.Errorf("%q is there twice", name)
	}
	if *l == nil {
		*l = labels{}
	}
	(*l)[name] = value
	return nil
}

// Type returns the name of the flag's value in the help.
func (l *labels) Type() string { return "NAME=VALUE" }

// String returns the labels, separated by commas.
func (l *labels) String() string { return strings.Join(l.list(), ",") }

func (l *labels) list() []string {
	var all []string
	for _, name := range slices.Sorted(maps.Keys(*l)) {
		all = append(all, output.Pair(name, (*l)[name]))
	}
	return all
}

// one returns the label to select by, or nil if the flag is not set.
func (l *labels) one() (*brevetv1.Label, error) {
	if len(*l) > 1 {
		return nil, cli.WrongUse("--label: select by one label, not by several")
	}
	for name, value := range *l {
		return &brevetv1.Label{Name: name, Value: value}, nil
	}
	return nil, nil //nolint:nilnil // an optional field that is not set
}

func parseLabel(text string) (name, value string, err error) {
	name, value, ok := strings.Cut(text, "=")
	if !ok || name == "" {
		return "", "", fmt.Errorf("%q: write it NAME=VALUE", text)
	}
	return name, value, nil
}
