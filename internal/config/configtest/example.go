package configtest

import (
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/brevet-pki/brevet/internal/config"
)

// An Example is a configuration file in deploy/. A comment in it begins with "# "; a "#" before a key, at the beginning
// of the line, turns a setting off.
type Example struct {
	path string
	all  map[string]any // with every setting on
}

// ReadExample reads an example. With every setting on, it has to be a file that decodes into a configuration with the
// given defaults, name every key, and give those with a default that very one.
func ReadExample[T any](t *testing.T, name string, defaults T, keys []Key) Example {
	t.Helper()
	e := Example{path: filepath.Join(moduleRoot(t), "deploy", name)}
	text, err := os.ReadFile(e.path)
	if err != nil {
		t.Fatal(err)
	}
	on := regexp.MustCompile(`(?m)^#( *[a-z_]+:)`).ReplaceAll(text, []byte("$1"))
	var c T
	if err := config.DecodeYAML(on, &c); err != nil {
		t.Fatalf("%s, every setting on: %v", e.path, err)
	}
	if err := yaml.Unmarshal(on, &e.all); err != nil {
		t.Fatal(err)
	}
	values := make(map[string]string)
	for _, k := range keysOf(t, reflect.ValueOf(c), "") {
		values[k.Path] = k.Default
	}
	for _, k := range keys {
		if _, _, there := find(e.all, k.Path); !there {
			t.Errorf("%s does not name %s", e.path, k.Path)
		}
		if k.Default != "" && values[k.Path] != k.Default {
			t.Errorf("%s: %s is %s, and its default is %s", e.path, k.Path, values[k.Path], k.Default)
		}
	}
	return e
}

// Path is where the example is.
func (e Example) Path() string { return e.path }

// Without writes the example with every setting on but those that are named, and returns where.
func (e Example) Without(t *testing.T, paths ...string) string {
	t.Helper()
	all := clone(e.all)
	for _, path := range paths {
		in, key, there := find(all, path)
		if !there {
			t.Fatalf("%s does not name %s", e.path, path)
		}
		delete(in, key)
	}
	text, err := yaml.Marshal(all)
	if err != nil {
		t.Fatal(err)
	}
	to := filepath.Join(t.TempDir(), filepath.Base(e.path))
	if err := os.WriteFile(to, text, 0o600); err != nil {
		t.Fatal(err)
	}
	return to
}

func clone(m map[string]any) map[string]any {
	out := maps.Clone(m)
	for key, value := range out {
		if inner, ok := value.(map[string]any); ok {
			out[key] = clone(inner)
		}
	}
	return out
}

// find returns the innermost mapping of a path, and the key in it. Where the path has AnyName, it takes the first name.
func find(in map[string]any, path string) (map[string]any, string, bool) {
	first, rest, nested := strings.Cut(path, ".")
	if first == AnyName {
		names := slices.Sorted(maps.Keys(in))
		if len(names) == 0 {
			return nil, "", false
		}
		first = names[0]
	}
	value, there := in[first]
	if !nested || !there {
		return in, first, there
	}
	inner, ok := value.(map[string]any)
	if !ok {
		return nil, "", false
	}
	return find(inner, rest)
}
