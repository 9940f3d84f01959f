package config

import (
	"encoding"
	"maps"
	"reflect"
	"slices"
	"strings"
)

// Changed returns the keys whose values differ between two configurations of the same type, such as "log.level" and
// "profiles.device". It compares a list, and each value of a map, as one value.
func Changed(before, after any) []string {
	return changed("", reflect.ValueOf(before), reflect.ValueOf(after))
}

func changed(path string, a, b reflect.Value) []string {
	if reflect.DeepEqual(a.Interface(), b.Interface()) {
		return nil
	}
	_, isText := reflect.New(a.Type()).Interface().(encoding.TextUnmarshaler)
	var keys []string
	switch {
	case a.Kind() == reflect.Struct && !isText:
		for f := range a.Type().Fields() {
			name, _, _ := strings.Cut(f.Tag.Get("yaml"), ",")
			keys = append(keys, changed(join(path, name), a.FieldByIndex(f.Index), b.FieldByIndex(f.Index))...)
		}
	case a.Kind() == reflect.Map && a.Type().Key().Kind() == reflect.String:
		all := map[string]bool{}
		for _, m := range []reflect.Value{a, b} {
			for _, key := range m.MapKeys() {
				all[key.String()] = true
			}
		}
		for _, name := range slices.Sorted(maps.Keys(all)) {
			x, y := a.MapIndex(reflect.ValueOf(name)), b.MapIndex(reflect.ValueOf(name))
			if !x.IsValid() || !y.IsValid() || !reflect.DeepEqual(x.Interface(), y.Interface()) {
				keys = append(keys, join(path, name))
			}
		}
	default:
		keys = append(keys, path)
	}
	return keys
}

func join(path, name string) string { return strings.TrimPrefix(path+"."+name, ".") }
