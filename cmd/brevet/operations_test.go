package main

import (
	"bytes"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"testing"
)

// operationsDoc is where the configuration is documented.
const operationsDoc = "../../docs/operations.md"

// keysOf lists the keys of a configuration type: nested ones after a dot, those of a map after a star.
func keysOf(of reflect.Type, prefix string) []string {
	var keys []string
	for i := range of.NumField() {
		field := of.Field(i)
		key := prefix + field.Tag.Get("yaml")
		switch field.Type.Kind() {
		case reflect.Struct:
			keys = append(keys, keysOf(field.Type, key+".")...)
		case reflect.Map:
			keys = append(append(keys, key), keysOf(field.Type.Elem(), key+".*.")...)
		default:
			keys = append(keys, key)
		}
	}
	return keys
}

func TestConfigurationIsDocumented(t *testing.T) {
	text, err := os.ReadFile(operationsDoc)
	if err != nil {
		t.Fatal(err)
	}
	_, section, _ := bytes.Cut(text, []byte("\n## Configure\n"))
	section, _, _ = bytes.Cut(section, []byte("\n## "))
	var documented []string
	for _, m := range regexp.MustCompile("(?m)^\\| `([a-z_.*]+)` \\| [^|]+ \\| [^|]+ \\|$").FindAllSubmatch(section, -1) {
		documented = append(documented, string(m[1]))
	}
	there := keysOf(reflect.TypeFor[Config](), "")
	for _, key := range there {
		if !slices.Contains(documented, key) {
			t.Errorf("%s: %s is not in the table of keys", operationsDoc, key)
		}
	}
	for _, key := range documented {
		if !slices.Contains(there, key) {
			t.Errorf("%s: there is no key %s", operationsDoc, key)
		}
	}
}

func TestDocumentedConfigurationLoads(t *testing.T) {
	text, err := os.ReadFile(operationsDoc)
	if err != nil {
		t.Fatal(err)
	}
	_, example, found := bytes.Cut(text, []byte("\n```yaml brevet.yaml\n"))
	example, _, ended := bytes.Cut(example, []byte("\n```\n"))
	if !found || !ended {
		t.Fatalf("%s has no example of a brevet.yaml", operationsDoc)
	}
	path := filepath.Join(t.TempDir(), "brevet.yaml")
	if err := os.WriteFile(path, example, 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := readConfig(path)
	if err != nil {
		t.Fatal(err)
	}
	if profiles, err := c.profiles(); err != nil || profiles["sensor"] == nil || profiles["device"] == nil {
		t.Errorf("the profiles are %v, %v", profiles, err)
	}
}
