package config

import (
	"encoding"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/brevet-pki/brevet/pki"
)

var (
	durationType    = reflect.TypeFor[time.Duration]()
	textType        = reflect.TypeFor[encoding.TextUnmarshaler]()
	unmarshalerType = reflect.TypeFor[yaml.Unmarshaler]()
)

// decode checks a YAML tree against the type of into, and then decodes the tree with package yaml. The check rewrites
// durations in a format that package yaml parses.
func decode(root *yaml.Node, into any) error {
	target := reflect.TypeOf(into)
	if target == nil || target.Kind() != reflect.Pointer || target.Elem().Kind() != reflect.Struct {
		return fmt.Errorf("decode into a pointer to a struct, not %T", into)
	}
	if err := check(root, target.Elem(), ""); err != nil {
		return nameReplaced(err, into)
	}
	if err := root.Decode(into); err != nil {
		return syntaxError(err)
	}
	return nil
}

// nameReplaced returns err. If err is about a replaced key, it adds the new key to the error.
func nameReplaced(err error, into any) error {
	var e *Error
	c, ok := into.(Replacer)
	if !ok || !errors.As(err, &e) {
		return err
	}
	if e.Instead = c.ReplacedKeys()[e.Key]; e.Instead != "" {
		e.Problem = "this key was replaced: write " + e.Instead
	}
	return err
}

// check returns an error if a node does not match the type t. path is the key of the node.
func check(n *yaml.Node, t reflect.Type, path string) error {
	if n.Kind == yaml.AliasNode || n.Anchor != "" {
		return fault(n, path, "aliases and anchors are not allowed: write the value out")
	}
	if n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null" {
		return nil // a key without a value does not change the field
	}
	switch {
	case t == durationType:
		return checkDuration(n, path)
	case t.Implements(unmarshalerType), reflect.PointerTo(t).Implements(unmarshalerType),
		t.Implements(textType), reflect.PointerTo(t).Implements(textType):
		return checkScalar(n, t, path)
	}
	switch t.Kind() {
	case reflect.Pointer:
		return check(n, t.Elem(), path)
	case reflect.Struct:
		return checkStruct(n, t, path)
	case reflect.Map:
		return checkPairs(n, path, func(_, value *yaml.Node, path string) error { return check(value, t.Elem(), path) })
	case reflect.Slice, reflect.Array:
		if n.Kind != yaml.SequenceNode {
			return fault(n, path, "a list belongs here, such as [a, b]")
		}
		for i, item := range n.Content {
			if err := check(item, t.Elem(), path+"["+strconv.Itoa(i)+"]"); err != nil {
				return err
			}
		}
		return nil
	default:
		return checkScalar(n, t, path)
	}
}

func checkStruct(n *yaml.Node, t reflect.Type, path string) error {
	fields := fieldsOf(t)
	return checkPairs(n, path, func(key, value *yaml.Node, path string) error {
		field, ok := fields[key.Value]
		if !ok {
			return fault(key, path, unknown("key", key.Value, slices.Sorted(maps.Keys(fields))))
		}
		return check(value, field, path)
	})
}

// checkPairs calls each for every pair of a mapping, with the path of the pair's key. It refuses repeated keys.
func checkPairs(n *yaml.Node, path string, each func(key, value *yaml.Node, path string) error) error {
	if n.Kind != yaml.MappingNode {
		return fault(n, path, "keys with values belong here, such as \"key: value\"")
	}
	seen := make(map[string]bool)
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		at := strings.TrimPrefix(path+"."+key.Value, ".")
		switch {
		case key.Kind != yaml.ScalarNode || key.ShortTag() == "!!merge":
			return fault(key, path, "a key must be a plain word")
		case seen[key.Value]:
			return fault(key, at, "this key occurs twice: keep one")
		}
		seen[key.Value] = true
		if err := each(key, value, at); err != nil {
			return err
		}
	}
	return nil
}

// checkDuration parses a duration such as 90s, 1h30m or 7d, and rewrites the node to a text that time.ParseDuration
// parses.
func checkDuration(n *yaml.Node, path string) error {
	d, err := pki.ParseDuration(n.Value)
	if n.Kind != yaml.ScalarNode || err != nil {
		return fault(n, path, "a duration with its unit belongs here, such as 30s, 12h or 7d")
	}
	n.SetString(d.String())
	return nil
}

// checkScalar decodes a single value with yaml, so that the error can name its key.
func checkScalar(n *yaml.Node, t reflect.Type, path string) error {
	wants := map[reflect.Kind]string{reflect.Bool: "true or false", reflect.String: "a text", reflect.Int: "a whole number", reflect.Float64: "a number"}[t.Kind()]
	if wants == "" {
		wants = "a " + t.Kind().String()
	}
	err := n.Decode(reflect.New(t).Interface())
	if err == nil {
		return nil
	}
	if reflect.PointerTo(t).Implements(textType) && n.Kind == yaml.ScalarNode {
		return fault(n, path, strings.TrimPrefix(err.Error(), "yaml: "))
	}
	return fault(n, path, fmt.Sprintf("%s belongs here, not %s", wants, describe(n)))
}

func describe(n *yaml.Node) string {
	switch n.Kind {
	case yaml.SequenceNode:
		return "a list"
	case yaml.MappingNode:
		return "keys with values"
	default:
		return strconv.Quote(n.Value)
	}
}

// fieldsOf returns the keys of a struct with the types of their values. It includes the keys of structs that are marked
// inline.
func fieldsOf(t reflect.Type) map[string]reflect.Type {
	fields := make(map[string]reflect.Type)
	for f := range t.Fields() {
		name, options, _ := strings.Cut(f.Tag.Get("yaml"), ",")
		switch {
		case !f.IsExported() || name == "-":
		case slices.Contains(strings.Split(options, ","), "inline"):
			for key, field := range fieldsOf(f.Type) {
				fields[key] = field
			}
		case name == "":
			fields[strings.ToLower(f.Name)] = f.Type
		default:
			fields[name] = f.Type
		}
	}
	return fields
}

// fault returns an [*Error] at the line of a node.
func fault(n *yaml.Node, path, problem string) error {
	return &Error{Line: n.Line, Key: path, Problem: problem}
}
