package config

import (
	"errors"
	"maps"
	"reflect"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Origin says where the value of a key comes from.
type Origin string

// The origins, each of which overrides those before it.
const (
	FromDefault     Origin = "default"
	FromFile        Origin = "file"
	FromEnvironment Origin = "environment"
	FromFlag        Origin = "flag"
)

// A Value is the text of one key from outside the file.
type Value struct {
	Key    string
	Text   string // of a list: its items, separated by commas
	Origin Origin // FromEnvironment or FromFlag
	Name   string // the variable as "$NAME", or the flag as "--name"
}

// Environment describes the environment variables of a binary. The variable of the key "log.level" is "LOG_LEVEL" after
// the prefix.
type Environment struct {
	Prefix  string
	Secrets map[string]string // variables that would hold a secret, without the prefix, and where the secret belongs
	Others  []string          // variables with the prefix that are not for configuration keys; "NAME*" stands for all that begin with NAME
}

// Variables returns the variable of each key of a configuration that is a single value or a list of them.
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

// Check returns an [*Error] for a variable of the environment, in the form of [os.Environ], that has the prefix and is
// unknown, or that would hold a secret. An empty variable counts as not set. The error never contains the variable's
// value.
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

// unknown returns the problem of an unknown variable. A key that has several parts, such as a profile, has no variable.
func (e Environment) unknown(of any, name string, known []string) string {
	for key := range fieldsOf(typeOf(of)) {
		inside := e.variable(key)
		if (name == inside || strings.HasPrefix(name, inside+"_")) && e.isCompound(of, key) {
			return "the environment cannot set " + key + ": write it into the configuration file"
		}
	}
	return unknown("variable", name, known)
}

// isCompound reports whether a key of the first level is a map or a list of groups.
func (e Environment) isCompound(of any, key string) bool {
	for scalar := range scalars(typeOf(of), "") {
		if scalar == key || strings.HasPrefix(scalar, key+".") {
			return false
		}
	}
	return true
}

// Values returns the values that variables set. An empty variable counts as not set.
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

// Override decodes values into a pointer to a struct, one after the other, by the rules for the file.
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

// nodeOf returns the YAML node of a text, for a value of a type.
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
		node.Tag, node.Style = "", 0 // as in a file without quotes: yaml resolves numbers and booleans
	}
	return node
}

// scalars returns the keys of a struct type that hold one value or a list of values, with their types.
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

// typeOf returns the struct type of a configuration, or of a pointer to one.
func typeOf(of any) reflect.Type {
	t := reflect.TypeOf(of)
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	return t
}

// Attribute adds to an [*Error] about a key the source of the key's value: the variable or flag that set it, or else
// the file. It returns any other error as it is.
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
