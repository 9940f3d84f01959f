package config_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/brevet-pki/brevet/internal/config"
)

type level int

func (l *level) UnmarshalText(text []byte) error {
	if string(text) != "high" {
		return fmt.Errorf("%q is not a level: use high", text)
	}
	*l = 7
	return nil
}

type shared struct {
	Name string `yaml:"name"`
}

type listener struct {
	Address string        `yaml:"address"`
	Idle    time.Duration `yaml:"idle"`
}

type sample struct {
	Shared    shared              `yaml:",inline"`
	Directory string              `yaml:"directory"`
	Lifetime  time.Duration       `yaml:"lifetime"`
	Waits     []time.Duration     `yaml:"waits"`
	Count     uint16              `yaml:"count"`
	Strict    bool                `yaml:"strict"`
	Level     level               `yaml:"level"`
	Reload    []string            `yaml:"reload"`
	GRPC      *listener           `yaml:"grpc"`
	Profiles  map[string]listener `yaml:"profiles"`
	Free      any                 `yaml:"free"`
	Hidden    string              `yaml:"-"`
}

const good = `# a comment
name: x
directory: /var/lib/a
lifetime: 7d12h
waits: [1s, 2d]
count: 9
strict: true
level: high
reload:
  - nginx
  - -s
grpc: {address: "127.0.0.1:1", idle: 1m30s}
profiles:
  device: {idle: 1h}
free: {any: [thing]}
`

func want() sample {
	const day = 24 * time.Hour
	return sample{
		Shared: shared{"x"}, Directory: "/var/lib/a", Lifetime: 7*day + 12*time.Hour, Waits: []time.Duration{time.Second, 2 * day},
		Count: 9, Strict: true, Level: 7, Reload: []string{"nginx", "-s"}, GRPC: &listener{"127.0.0.1:1", 90 * time.Second},
		Profiles: map[string]listener{"device": {Idle: time.Hour}}, Free: map[string]any{"any": []any{"thing"}},
	}
}

func TestDecode(t *testing.T) {
	var got sample
	if err := config.DecodeYAML([]byte(good), &got); err != nil || !reflect.DeepEqual(got, want()) {
		t.Fatalf("%+v, %v", got, err)
	}
	kept := sample{Directory: "default", Count: 3}
	for _, empty := range []string{"", "\n", "# nothing\n", "---\n", "directory:\n"} {
		if err := config.DecodeYAML([]byte(empty), &kept); err != nil || kept.Directory != "default" || kept.Count != 3 {
			t.Errorf("%q: %+v, %v", empty, kept, err)
		}
	}
}

func TestReplacedKeysNameTheNewKey(t *testing.T) {
	for text, want := range map[string]config.Error{
		"dir: x":                  {Line: 1, Key: "dir", Problem: "this key was replaced: write directory", Instead: "directory"},
		"count: 1\ngrpc: {at: x}": {Line: 2, Key: "grpc.at", Problem: "this key was replaced: write grpc.address", Instead: "grpc.address"},
	} {
		var got sample
		var typed *config.Error
		if err := config.DecodeYAML([]byte(text), &got); !errors.As(err, &typed) || *typed != want {
			t.Errorf("%q: %v, want %v", text, err, &want)
		}
	}
}

func (*sample) ReplacedKeys() map[string]string {
	return map[string]string{"dir": "directory", "grpc.at": "grpc.address"}
}

func TestInvalidFilesAreRefused(t *testing.T) {
	for text, message := range map[string]string{
		"directry: x":                       "line 1: directry: there is no such key; the nearest is directory",
		"grpc_port: 1":                      "line 1: grpc_port: there is no such key; the nearest is grpc",
		"a: 1":                              "line 1: a: there is no such key; the nearest is ",
		"Directory: x":                      "line 1: Directory: there is no such key; the nearest is directory",
		"hidden: x":                         "line 1: hidden: there is no such key",
		"shared: x":                         "line 1: shared: there is no such key",
		"name: x\n\ngrpc:\n  idel: 1s":      "line 4: grpc.idel: there is no such key; the nearest is idle",
		"profiles: {a: {x: 1}}":             "line 1: profiles.a.x: there is no such key; the nearest is ",
		"count: many":                       `line 1: count: a uint16 belongs here, not "many"`,
		"count: 70000":                      `line 1: count: a uint16 belongs here, not "70000"`,
		"strict: 3":                         `line 1: strict: true or false belongs here, not "3"`,
		"directory: [a]":                    "line 1: directory: a text belongs here, not a list",
		"directory: {a: b}":                 "line 1: directory: a text belongs here, not keys with values",
		"reload: nginx":                     "line 1: reload: a list belongs here",
		"reload: [a, [b]]":                  "line 1: reload[1]: a text belongs here, not a list",
		"grpc: x":                           "line 1: grpc: keys with values belong here",
		"lifetime: 10":                      "line 1: lifetime: a duration with its unit belongs here",
		"lifetime: {a: b}":                  "line 1: lifetime: a duration with its unit belongs here",
		"lifetime: 1h2d":                    "line 1: lifetime: a duration",
		"waits: [1s, x]":                    "line 1: waits[1]: a duration",
		"level: low":                        `line 1: level: "low" is not a level: use high`,
		"name: a\nname: b":                  "line 2: name: this key occurs twice",
		"grpc: &a {idle: 1s}":               "line 1: grpc: aliases and anchors are not allowed",
		"grpc: {<<: {idle: 1s}}":            "line 1: grpc: a key must be a plain word",
		"? [a]\n: b":                        "line 1: a key must be a plain word",
		"- a":                               "line 1: keys with values belong here",
		"name: a\n---\nname: b":             "a second document starts here",
		"name: [":                           "this is not YAML",
		"name: a\n\tb: c":                   "line 2: this is not YAML",
		"name: " + strings.Repeat("x", 2e6): "at most",
	} {
		var got sample
		err := config.DecodeYAML([]byte(text), &got)
		var typed *config.Error
		if !errors.As(err, &typed) || !strings.Contains(err.Error(), message) {
			t.Errorf("%.40q: %v, want %q", text, err, message)
		}
	}
	var got sample
	for _, into := range []any{nil, got, new(int)} {
		if err := config.DecodeYAML([]byte("name: x"), into); err == nil {
			t.Errorf("decoding into %T succeeded", into)
		}
	}
}

func TestLoad(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.yaml")
	var got sample
	if err := config.Load(path, &got); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("loading a missing file: %v, want ErrNotExist", err)
	}
	if err := os.WriteFile(path, []byte("name: x\nnme: y\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := config.Load(path, &got); err == nil || err.Error() != path+":2: nme: there is no such key; the nearest is name" {
		t.Errorf("loading a file with an unknown key: %v, want the path and line", err)
	}
}

func FuzzDecodeYAML(f *testing.F) {
	f.Add([]byte(good))
	f.Add([]byte("a: &a [*a]"))
	f.Fuzz(func(t *testing.T, data []byte) {
		var got sample
		var typed *config.Error
		if err := config.DecodeYAML(data, &got); err != nil && !errors.As(err, &typed) {
			t.Errorf("the error %v is not a *config.Error", err)
		}
	})
}
