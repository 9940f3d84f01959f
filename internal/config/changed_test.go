package config

import (
	"slices"
	"testing"
	"time"
)

func TestChanged(t *testing.T) {
	t.Parallel()
	type inner struct {
		Level LogLevel `yaml:"level"`
		Names []string `yaml:"names"`
	}
	type outer struct {
		Age   time.Duration    `yaml:"age"`
		Log   inner            `yaml:"log"`
		Kinds map[string]inner `yaml:"kinds"`
	}
	before := outer{Age: 1, Log: inner{Names: []string{"a"}}, Kinds: map[string]inner{"same": {}, "other": {}, "gone": {}}}
	after := outer{Age: 2, Log: inner{Level: 4, Names: []string{"a", "b"}}, Kinds: map[string]inner{"same": {}, "other": {Level: 4}, "new": {}}}
	want := []string{"age", "log.level", "log.names", "kinds.gone", "kinds.new", "kinds.other"}
	if got := Changed(before, after); !slices.Equal(got, want) {
		t.Errorf("changed keys are %q, want %q", got, want)
	}
	if got := Changed(before, before); got != nil {
		t.Errorf("changed keys of equal configurations are %q, want none", got)
	}
}
