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

// An Example is a configuration file in deploy/. A line that starts with "# " is a comment. A line that starts with "#"
// directly before a key is a disabled setting.
type Example struct {
	path string
	all  map[string]any // content of the file with all settings enabled
}

// ReadExample reads an example, and enables all of its settings. The result must decode, contain every key, and set
// each key that has a default to that default.
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
		t.Fatalf("%s with every setting enabled: %v", e.path, err)
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
			t.Errorf("%s does not contain %s", e.path, k.Path)
		}
		if k.Default != "" && values[k.Path] != k.Default {
			t.Errorf("%s: %s is %s, want its default %s", e.path, k.Path, values[k.Path], k.Default)
		}
	}
	return e
}

// Path returns the path of the example.
func (e Example) Path() string { return e.path }

// Without writes a copy of the example with all settings enabled, except those with the given paths. It returns the
// copy's path.
func (e Example) Without(t *testing.T, paths ...string) string {
	t.Helper()
	all := clone(e.all)
	for _, path := range paths {
		in, key, there := find(all, path)
		if !there {
			t.Fatalf("%s does not contain %s", e.path, path)
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

// find returns the innermost mapping of a path, and the last key of the path. For AnyName in the path it takes the
// first name.
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
