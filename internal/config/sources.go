package config

import (
	"errors"
	"maps"
	"reflect"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Origin says where the value of a configuration key comes from.
type Origin string

// The origins. Each overrides those above it.
const (
	FromDefault     Origin = "default"
	FromFile        Origin = "file"
	FromEnvironment Origin = "environment"
	FromFlag        Origin = "flag"
)

// A Value is the value of one configuration key from the environment or a flag.
type Value struct {
	Key    string
	Text   string // for a list: its items, separated by commas
	Origin Origin // FromEnvironment or FromFlag
	Name   string // name of the variable as "$NAME", or of the flag as "--name"
}

// Environment describes the environment variables of a binary. With the prefix "BREVET_", the variable of the key
// "log.level" is "BREVET_LOG_LEVEL".
type Environment struct {
	Prefix  string
	Secrets map[string]string // variables that would contain a secret, without the prefix; where the secret belongs
	Others  []string          // variables with the prefix that set no key; "NAME*" matches all that begin with NAME
}

// Variables maps configuration keys to their environment variables. Only keys whose value is a scalar or a list of
// scalars have one.
func (e Environment) Variables(of any) map[string]string {
	variables := map[string]string{}
	for key := range scalars(typeOf(of), "") {
		variables[key] = e.variable(key)
	}
	return variables
}

func (e Environment) variable(key string) string {
	return e.Prefix + strings.ToUpper(strings.ReplaceAll(key, ".", "_"))
}

// Check returns an [*Error] if environ, in the form of [os.Environ], contains an unknown variable with the prefix, or
// one that would contain a secret. An empty variable counts as unset. The error never contains the variable's value.
func (e Environment) Check(of any, environ []string) error {
	variables := e.Variables(of)
	for _, entry := range slices.Sorted(slices.Values(environ)) {
		name, value, _ := strings.Cut(entry, "=")
		short, ours := strings.CutPrefix(name, e.Prefix)
		if !ours || value == "" || slices.ContainsFunc(e.Others, func(pattern string) bool { return matches(pattern, name) }) {
			continue
		}
		if where, secret := e.Secrets[short]; secret {
			return &Error{Source: "$" + name, Problem: "a secret must not be in the environment, where other processes may read it: " + where}
		}
		if known := slices.Sorted(maps.Values(variables)); !slices.Contains(known, name) {
			return &Error{Source: "$" + name, Problem: e.unknown(of, name, known)}
		}
	}
	return nil
}

func matches(pattern, name string) bool {
	prefix, any := strings.CutSuffix(pattern, "*")
	return pattern == name || any && strings.HasPrefix(name, prefix)
}

// unknown returns the error text for an unknown variable. A key whose value is a group, such as a list of HSMs, has no
// variable.
func (e Environment) unknown(of any, name string, known []string) string {
	for key := range fieldsOf(typeOf(of)) {
		inside := e.variable(key)
		if (name == inside || strings.HasPrefix(name, inside+"_")) && e.isCompound(of, key) {
			return "the environment cannot set " + key + ": write it into the configuration file"
		}
	}
	return unknown("variable", name, known)
}

// isCompound reports whether a top-level key is a map or a list of groups.
func (e Environment) isCompound(of any, key string) bool {
	for scalar := range scalars(typeOf(of), "") {
		if scalar == key || strings.HasPrefix(scalar, key+".") {
			return false
		}
	}
	return true
}

// Values returns the values of the variables that are set. An empty variable counts as unset.
func (e Environment) Values(of any, lookup func(string) string) []Value {
	var values []Value
	for key, name := range e.Variables(of) {
		if text := lookup(name); text != "" {
			values = append(values, Value{Key: key, Text: text, Origin: FromEnvironment, Name: "$" + name})
		}
	}
	slices.SortFunc(values, func(a, b Value) int { return strings.Compare(a.Key, b.Key) })
	return values
}

// Override decodes values into a pointer to a struct, in order. It applies the same rules as for the file.
func Override(into any, values []Value) error {
	keys := scalars(typeOf(into), "")
	for _, v := range values {
		of, ok := keys[v.Key]
		if !ok {
			return &Error{Source: v.Name, Key: v.Key, Problem: "this key is set by the configuration file alone"}
		}
		root := nodeOf(of, v.Text)
		for _, part := range slices.Backward(strings.Split(v.Key, ".")) {
			name := &yaml.Node{}
			name.SetString(part)
			root = &yaml.Node{Kind: yaml.MappingNode, Content: []*yaml.Node{name, root}}
		}
		err := decode(root, into)
		var e *Error
		if errors.As(err, &e) {
			e.Source, e.Line = v.Name, 0
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// nodeOf returns a YAML node with a text as value, for a field of type t.
func nodeOf(t reflect.Type, text string) *yaml.Node {
	if t.Kind() == reflect.Slice {
		list := &yaml.Node{Kind: yaml.SequenceNode}
		for item := range strings.SplitSeq(text, ",") {
			list.Content = append(list.Content, nodeOf(t.Elem(), strings.TrimSpace(item)))
		}
		return list
	}
	node := &yaml.Node{}
	node.SetString(text)
	if t.Kind() != reflect.String && !reflect.PointerTo(t).Implements(textType) {
		node.Tag, node.Style = "", 0 // like without quotes in a file: yaml then recognizes numbers and booleans
	}
	return node
}

// scalars returns the keys of a struct type whose values are scalars or lists of scalars, with their types.
func scalars(t reflect.Type, prefix string) map[string]reflect.Type {
	keys := map[string]reflect.Type{}
	for name, field := range fieldsOf(t) {
		isText := reflect.PointerTo(field).Implements(textType)
		switch {
		case field.Kind() == reflect.Struct && !isText:
			maps.Copy(keys, scalars(field, prefix+name+"."))
		case field.Kind() == reflect.Map:
		case field.Kind() == reflect.Slice && field.Elem().Kind() == reflect.Struct:
		default:
			keys[prefix+name] = field
		}
	}
	return keys
}

// typeOf returns the struct type of a configuration, which may be a pointer.
func typeOf(of any) reflect.Type {
	t := reflect.TypeOf(of)
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	return t
}

// Attribute sets the source of an [*Error] to the variable or flag that set the key, or else to the file. It returns
// other errors unchanged.
func Attribute(err error, file string, values []Value) error {
	var e *Error
	if !errors.As(err, &e) {
		return err
	}
	e.Source = file
	for _, v := range values {
		if v.Key == e.Key {
			e.Source = v.Name
		}
	}
	return err
}
