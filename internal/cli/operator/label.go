package operator

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/brevet-pki/brevet/internal/cli/output"
)

// labels is a flag whose values are labels, each NAME=VALUE. It implements pflag.Value.
type labels map[string]string

// Set adds a label. A value may hold anything, commas and further equals signs included.
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

// Type is what the help says that a value is.
func (l *labels) Type() string { return "NAME=VALUE" }

// String lists the labels.
func (l *labels) String() string { return strings.Join(l.list(), ",") }

func (l *labels) list() []string {
	var all []string
	for _, name := range slices.Sorted(maps.Keys(*l)) {
		all = append(all, output.Pair(name, (*l)[name]))
	}
	return all
}

func parseLabel(text string) (name, value string, err error) {
	name, value, ok := strings.Cut(text, "=")
	if !ok || name == "" {
		return "", "", fmt.Errorf("%q: write it NAME=VALUE", text)
	}
	return name, value, nil
}
