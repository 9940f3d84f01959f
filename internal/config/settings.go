package config

import (
	"encoding"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/brevet-pki/brevet/pki"
)

// A Setting is one configuration key with its value.
type Setting struct {
	Key   string
	Value string // as it is written in a configuration file
}

// Settings returns the keys of a configuration with their values, in the order of the fields. It sorts the keys of a
// map. For a list of groups it returns each key of each group, such as "further_hsms[0].label".
func Settings(of any) []Setting { return settings("", reflect.ValueOf(of)) }

func settings(path string, v reflect.Value) []Setting {
	_, isText := reflect.New(v.Type()).Interface().(encoding.TextUnmarshaler)
	var all []Setting
	switch {
	case v.Kind() == reflect.Struct && !isText:
		for f := range v.Type().Fields() {
			name, _, _ := strings.Cut(f.Tag.Get("yaml"), ",")
			all = append(all, settings(join(path, name), v.FieldByIndex(f.Index))...)
		}
	case v.Kind() == reflect.Map:
		for _, name := range slices.SortedFunc(maps.Keys(entries(v)), strings.Compare) {
			all = append(all, settings(join(path, name), v.MapIndex(reflect.ValueOf(name)))...)
		}
	case v.Kind() == reflect.Slice && v.Type().Elem().Kind() == reflect.Struct:
		for i := range v.Len() {
			all = append(all, settings(fmt.Sprintf("%s[%d]", path, i), v.Index(i))...)
		}
	default:
		all = append(all, Setting{path, Text(v)})
	}
	return all
}

func entries(v reflect.Value) map[string]bool {
	names := map[string]bool{}
	for _, key := range v.MapKeys() {
		names[key.String()] = true
	}
	return names
}

// Text returns a value as it is written in a configuration file, and "" for an empty string.
func Text(v reflect.Value) string {
	if d, ok := v.Interface().(time.Duration); ok {
		return pki.FormatDuration(d)
	}
	if text, ok := v.Interface().(fmt.Stringer); ok {
		return text.String()
	}
	if v.Kind() != reflect.Slice {
		return fmt.Sprint(v.Interface())
	}
	items := make([]string, v.Len())
	for i := range items {
		items[i] = Text(v.Index(i))
	}
	return "[" + strings.Join(items, ", ") + "]"
}
