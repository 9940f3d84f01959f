package config_test

import (
	"errors"
	"maps"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/brevet-pki/brevet/internal/config"
)

// settable has a field of every kind.
type settable struct {
	Name    string            `yaml:"name"`
	Count   int               `yaml:"count"`
	Ratio   float64           `yaml:"ratio"`
	Strict  bool              `yaml:"strict"`
	Age     time.Duration     `yaml:"age"`
	Names   []string          `yaml:"names"`
	Log     logging           `yaml:"log"`
	Groups  []shared          `yaml:"groups"`
	Members map[string]shared `yaml:"members"`
	Kinds   map[string]shared `yaml:"kinds"`
	Levels  []config.LogLevel `yaml:"levels"`
}

type logging struct {
	Format config.LogFormat `yaml:"format"`
	Level  config.LogLevel  `yaml:"level"`
}

var sampleEnvironment = config.Environment{
	Prefix:  "TOOL_",
	Secrets: map[string]string{"PIN": "write the PIN to a file"},
	Others:  []string{"TOOL_SERVER", "TOOL_AGENT_*"},
}

func TestVariablesAreThoseOfScalarsAndLists(t *testing.T) {
	want := map[string]string{
		"name": "TOOL_NAME", "count": "TOOL_COUNT", "ratio": "TOOL_RATIO", "strict": "TOOL_STRICT", "age": "TOOL_AGE", "names": "TOOL_NAMES",
		"log.format": "TOOL_LOG_FORMAT", "log.level": "TOOL_LOG_LEVEL", "levels": "TOOL_LEVELS",
	}
	if diff := cmp.Diff(want, sampleEnvironment.Variables(settable{})); diff != "" {
		t.Error(diff)
	}
}

func TestUnknownAndSecretVariablesAreRefused(t *testing.T) {
	for entry, problem := range map[string]string{
		"TOOL_NAME=x": "", "TOOL_SERVER=x": "", "TOOL_AGENT_X=x": "", "OTHER=x": "", "TOOL_NAEM=": "", "TOOLS=x": "",
		"TOOL_NAEM=x":           "$TOOL_NAEM: there is no such variable; the nearest is TOOL_NAME",
		"TOOL_LOG=x":            "$TOOL_LOG: there is no such variable; the nearest is TOOL_LOG_FORMAT",
		"TOOL_PIN=hush":         "$TOOL_PIN: a secret must not be in the environment, where other processes may read it: write the PIN to a file",
		"TOOL_GROUPS=x":         "$TOOL_GROUPS: the environment cannot set groups: write it into the configuration file",
		"TOOL_MEMBERS_A_NAME=x": "$TOOL_MEMBERS_A_NAME: the environment cannot set members: write it into the configuration file",
	} {
		err := sampleEnvironment.Check(settable{}, []string{"HOME=/", entry, "TERM="})
		var typed *config.Error
		switch {
		case problem == "" && err == nil:
		case !errors.As(err, &typed) || err.Error() != problem:
			t.Errorf("%s: %v, want %q", entry, err, problem)
		}
	}
}

func TestValuesOverrideByTheRulesOfTheFile(t *testing.T) {
	c := settable{Name: "file", Count: 1, Log: logging{Format: config.LogJSON}}
	values := map[string]string{
		"TOOL_NAME": "0x10", "TOOL_COUNT": "7", "TOOL_RATIO": "0.5", "TOOL_STRICT": "true", "TOOL_AGE": "2d", "TOOL_NAMES": "a, b:1,::1",
		"TOOL_LOG_LEVEL": "warn", "TOOL_LEVELS": "info,error",
	}
	set := sampleEnvironment.Values(c, func(name string) string { return values[name] })
	if err := config.Override(&c, set); err != nil {
		t.Fatal(err)
	}
	want := settable{
		Name: "0x10", Count: 7, Ratio: 0.5, Strict: true, Age: 48 * time.Hour, Names: []string{"a", "b:1", "::1"},
		Log: logging{config.LogJSON, config.LogLevel(4)}, Levels: []config.LogLevel{0, 8},
	}
	if !reflect.DeepEqual(c, want) {
		t.Errorf("%+v, want %+v", c, want)
	}
	for name, text := range map[string]string{
		"TOOL_COUNT": `$TOOL_COUNT: count: a whole number belongs here, not "x"`, "TOOL_STRICT": `$TOOL_STRICT: strict: true or false belongs here, not "x"`,
		"TOOL_AGE": "$TOOL_AGE: age: a duration with its unit belongs here, such as 30s, 12h or 7d", "TOOL_LOG_LEVEL": `$TOOL_LOG_LEVEL: log.level: "x" is not a level: use debug, info, warn or error`,
	} {
		set := sampleEnvironment.Values(c, func(n string) string { return map[string]string{name: "x"}[n] })
		if err := config.Override(&c, set); err == nil || err.Error() != text {
			t.Errorf("%s: %v, want %s", name, err, text)
		}
	}
	flag := config.Value{Key: "groups", Text: "x", Origin: config.FromFlag, Name: "--groups"}
	if err := config.Override(&c, []config.Value{flag}); err == nil || err.Error() != "--groups: groups: this key is set by the configuration file alone" {
		t.Errorf("setting a list of groups by a flag: %v", err)
	}
}

func TestErrorsNameTheSourceOfTheValue(t *testing.T) {
	values := []config.Value{{Key: "name", Origin: config.FromEnvironment, Name: "$TOOL_NAME"}}
	for key, want := range map[string]string{"name": "$TOOL_NAME: name: x", "count": "a.yaml: count: x"} {
		if err := config.Attribute(&config.Error{Key: key, Problem: "x"}, "a.yaml", values); err.Error() != want {
			t.Errorf("%v, want %s", err, want)
		}
	}
	if err := config.Attribute(nil, "a.yaml", values); err != nil {
		t.Error(err)
	}
}

func TestSettingsListEveryKey(t *testing.T) {
	c := settable{
		Name: "x", Age: 36 * time.Hour, Names: []string{"a", "b"}, Log: logging{Format: config.LogText}, Groups: []shared{{"one"}, {"two"}},
		Members: map[string]shared{"b": {"second"}, "a": {"first"}},
	}
	want := map[string]string{
		"name": "x", "count": "0", "ratio": "0", "strict": "false", "age": "36h", "names": "[a, b]", "log.format": "text", "log.level": "info",
		"groups[0].name": "one", "groups[1].name": "two", "members.a.name": "first", "members.b.name": "second", "levels": "[]",
	}
	got := map[string]string{}
	for _, s := range config.Settings(c) {
		got[s.Key] = s.Value
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff, slices.Sorted(maps.Keys(got)))
	}
}
