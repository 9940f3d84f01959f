// Package configtest helps tests to compare docs/configuration.md, the profiles in docs/policy.md and the example files
// with the configuration types. The comments of the types' fields are the text of these pages.
package configtest

import (
	"encoding"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/brevet-pki/brevet/internal/config"
)

const module = "github.com/brevet-pki/brevet/"

// moduleRoot returns the directory of go.mod, which is the working directory or above it.
func moduleRoot(t *testing.T) string {
	t.Helper()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir
		}
		if dir == filepath.Dir(dir) {
			t.Fatal("no go.mod here or above: run the test in the source tree")
		}
		dir = filepath.Dir(dir)
	}
}

// AnyName is the element of a [Key]'s path that stands for a name that the operator chooses.
const AnyName = "NAME"

// A Key is one configuration key, or a group of keys.
type Key struct {
	Path     string // such as "hsm.sessions"
	Type     string // description of the type; empty for a group
	Default  string // empty if the key has none
	Required bool
	Doc      string
}

// Keys returns the keys of a configuration with their defaults, in the order of the fields. Every field must have a
// comment. If the comment begins with "Required.", a configuration file must contain the key.
func Keys(t *testing.T, defaults any) []Key {
	t.Helper()
	return keysOf(t, reflect.ValueOf(defaults), "")
}

func keysOf(t *testing.T, of reflect.Value, prefix string) []Key {
	t.Helper()
	comments := commentsOf(t, of.Type())
	var keys []Key
	for field, value := range of.Fields() {
		name, _, _ := strings.Cut(field.Tag.Get("yaml"), ",")
		k := Key{Path: prefix + name}
		k.Doc, k.Required = strings.CutPrefix(comments[field.Name], "Required. ")
		if k.Doc == "" {
			t.Errorf("%s.%s has no comment that documents %s", of.Type(), field.Name, k.Path)
		}
		switch field.Type.Kind() {
		case reflect.Struct:
			keys = append(append(keys, k), keysOf(t, value, k.Path+".")...)
		case reflect.Map:
			keys = append(append(keys, k), keysOf(t, reflect.Zero(field.Type.Elem()), k.Path+"."+AnyName+".")...)
		default:
			k.Type, k.Default = inWords(field.Type), written(value)
			keys = append(keys, k)
		}
	}
	return keys
}

// commentsOf returns the comments of a struct's fields, by the names of the fields. It reads them from the source.
func commentsOf(t *testing.T, of reflect.Type) map[string]string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(moduleRoot(t), strings.TrimPrefix(of.PkgPath(), module), "*.go"))
	if err != nil {
		t.Fatal(err)
	}
	comments := make(map[string]string)
	for _, name := range files {
		file, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(file, func(n ast.Node) bool {
			spec, ok := n.(*ast.TypeSpec)
			if !ok || spec.Name.Name != of.Name() {
				return true
			}
			for _, field := range spec.Type.(*ast.StructType).Fields.List {
				if len(field.Names) == 1 {
					comments[field.Names[0].Name] = strings.TrimSpace(field.Doc.Text())
				}
			}
			return false
		})
	}
	if len(comments) == 0 {
		t.Fatalf("there is no source of %s in %s", of, files)
	}
	return comments
}

func inWords(of reflect.Type) string {
	switch {
	case of == reflect.TypeFor[time.Duration](), of.Name() == "Duration":
		return "duration"
	case reflect.PointerTo(of).Implements(reflect.TypeFor[encoding.TextUnmarshaler]()):
		return "text"
	case of.Kind() == reflect.Pointer:
		return inWords(of.Elem())
	case of.Kind() == reflect.Slice:
		return "list of " + inWords(of.Elem()) + "s"
	}
	words := map[reflect.Kind]string{
		reflect.String: "text", reflect.Bool: "true or false", reflect.Int: "whole number", reflect.Float64: "number",
		reflect.Struct: "group",
	}
	if w, ok := words[of.Kind()]; ok {
		return w
	}
	return of.String()
}

// written returns a default as it is written in a configuration file, or "" if the key has no default.
func written(v reflect.Value) string {
	_, duration := v.Interface().(time.Duration)
	_, named := v.Interface().(fmt.Stringer)
	switch {
	case v.Kind() == reflect.Bool, !v.IsZero(), named && !duration:
	default:
		return ""
	}
	return config.Text(v)
}

// Reference checks the section of a page in docs/ below a heading of the second level. The section must consist of the
// keys, followed by the text after. If update is true, Reference writes the section instead.
func Reference(t *testing.T, page, heading string, keys []Key, after string, update bool) {
	t.Helper()
	path := filepath.Join(moduleRoot(t), "docs", page)
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, found := strings.Cut(string(text), "\n## "+heading+"\n")
	if !found {
		t.Fatalf("%s has no heading %q", path, heading)
	}
	_, next, more := strings.Cut(rest, "\n## ")
	want := before + "\n## " + heading + "\n" + section(keys) + after
	if more {
		want += "\n## " + next
	}
	switch {
	case want == string(text):
	case !update:
		t.Errorf("%s differs from the comments of the configuration's types: run make generate", path)
	default:
		if err := os.WriteFile(path, []byte(want), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func section(keys []Key) string {
	var b strings.Builder
	for _, k := range keys {
		level := "###"
		if strings.Contains(k.Path, ".") {
			level = "####"
		}
		fmt.Fprintf(&b, "\n%s `%s`\n\n", level, k.Path)
		if k.Type != "" {
			fmt.Fprintf(&b, "*%s*\n\n", k.summary())
		}
		b.WriteString(k.Doc + "\n")
	}
	return b.String()
}

func (k Key) summary() string {
	switch {
	case k.Required:
		return "Type: " + k.Type + ". Required."
	case k.Default != "":
		return "Type: " + k.Type + ". Default: `" + k.Default + "`."
	default:
		return "Type: " + k.Type + ". Optional."
	}
}
