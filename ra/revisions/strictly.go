package revisions

import (
	"errors"
	"maps"
	"reflect"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/brevet-pki/brevet/ra/policy"
)

// strictly decodes a value. It refuses keys that the type does not have, and values that do not fit their keys. Then the
// error is a [policy.Faults].
func strictly(value *yaml.Node, into any) error {
	if value.Kind == yaml.ScalarNode && value.ShortTag() == "!!null" {
		return errors.New("the value is empty: write its keys with values")
	}
	if faults := faultsIn(value, reflect.TypeOf(into).Elem(), ""); len(faults) > 0 {
		return faults
	}
	err := value.Decode(into)
	var wrong *yaml.TypeError
	if errors.As(err, &wrong) {
		_, problem, _ := strings.Cut(wrong.Errors[0], ": ") // after the line
		return errors.New(problem)
	}
	return err
}

// faultsIn returns the faults in a value that is to be decoded into a type. at is the path of the value.
func faultsIn(value *yaml.Node, into reflect.Type, at string) policy.Faults {
	fault := func(problem string) policy.Faults {
		return policy.Faults{{Line: value.Line, Key: at, Problem: problem}}
	}
	isScalar := value.Kind == yaml.ScalarNode
	switch into.Kind() {
	case reflect.Pointer:
		return faultsIn(value, into.Elem(), at)
	case reflect.Struct:
		if value.Kind != yaml.MappingNode {
			return fault(`keys with values belong here, such as "key: value"`)
		}
		return faultsInKeys(value, into, at)
	case reflect.Slice:
		if value.Kind != yaml.SequenceNode {
			return fault("a list belongs here")
		}
		var all policy.Faults
		for _, item := range value.Content {
			all = append(all, faultsIn(item, into.Elem(), at)...)
		}
		return all
	case reflect.String:
		if !isScalar {
			return fault("a text belongs here: put it between quotes")
		}
	case reflect.Bool:
		if !isScalar || value.ShortTag() != "!!bool" {
			return fault("true or false belongs here")
		}
	case reflect.Int:
		if !isScalar || value.ShortTag() != "!!int" {
			return fault("a whole number belongs here")
		}
	}
	return nil
}

// faultsInKeys is faultsIn for keys with values, which are to be decoded into a struct.
func faultsInKeys(value *yaml.Node, into reflect.Type, at string) policy.Faults {
	fields := map[string]reflect.Type{}
	for i := range into.NumField() {
		f := into.Field(i)
		fields[f.Tag.Get("yaml")] = f.Type
	}
	var all policy.Faults
	for i := 0; i+1 < len(value.Content); i += 2 {
		key, v := value.Content[i], value.Content[i+1]
		path := strings.TrimPrefix(at+"."+key.Value, ".")
		t, ok := fields[key.Value]
		if !ok {
			all = append(all, policy.Fault{
				Line: key.Line, Key: path, Problem: policy.Unknown("key", key.Value, slices.Sorted(maps.Keys(fields))),
			})
			continue
		}
		all = append(all, faultsIn(v, t, path)...)
	}
	return all
}
