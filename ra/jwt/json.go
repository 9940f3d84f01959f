package jwt

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"strings"
	"unicode/utf8"
)

// maxDepth is the maximum number of JSON objects and arrays within each other.
const maxDepth = 16

// object is a JSON object. Its values are an object, a []any, a string, a json.Number, a bool or nil.
type object map[string]any

var (
	errNotJSON    = errors.New("is not a JSON object in UTF-8")
	errDuplicate  = errors.New("has a member twice")
	errDepth      = errors.New("is nested too deep")
	errCharacters = errors.New("has a text that is not valid Unicode")
)

// parseObject parses one JSON object. Unlike encoding/json, it refuses duplicate members, which two parsers could
// understand differently, and texts that encoding/json would change. Names of members are case-sensitive.
func parseObject(data []byte) (object, error) {
	if !utf8.Valid(data) || !json.Valid(data) {
		return nil, errNotJSON
	}
	p := parser{json.NewDecoder(bytes.NewReader(data))}
	p.UseNumber()
	value, err := p.value(0)
	if err != nil {
		return nil, err
	}
	o, ok := value.(object)
	if !ok {
		return nil, errNotJSON
	}
	if _, err := p.Token(); !errors.Is(err, io.EOF) {
		return nil, errNotJSON
	}
	return o, nil
}

// parser parses JSON that json.Valid accepts.
type parser struct{ *json.Decoder }

func (p parser) value(depth int) (any, error) {
	t, err := p.Token()
	if err != nil {
		return nil, errNotJSON
	}
	switch t := t.(type) {
	case json.Delim:
		if depth == maxDepth {
			return nil, errDepth
		}
		if t == '{' {
			return p.members(depth + 1)
		}
		return p.items(depth + 1)
	case string:
		return checkText(t)
	default:
		return t, nil
	}
}

// members parses an object after its opening brace.
func (p parser) members(depth int) (object, error) {
	o := object{}
	for p.More() {
		t, err := p.Token()
		name, ok := t.(string)
		if err != nil || !ok {
			return nil, errNotJSON
		}
		if _, err := checkText(name); err != nil {
			return nil, err
		}
		if _, ok := o[name]; ok {
			return nil, errDuplicate
		}
		if o[name], err = p.value(depth); err != nil {
			return nil, err
		}
	}
	_, err := p.Token() // the closing brace
	return o, err
}

// items parses an array after its opening bracket.
func (p parser) items(depth int) ([]any, error) {
	list := []any{}
	for p.More() {
		item, err := p.value(depth)
		if err != nil {
			return nil, err
		}
		list = append(list, item)
	}
	_, err := p.Token() // the closing bracket
	return list, err
}

// checkText refuses a text with the replacement character. encoding/json decodes every unpaired surrogate to it, so
// that two different texts would become equal.
func checkText(s string) (string, error) {
	if strings.ContainsRune(s, utf8.RuneError) {
		return "", errCharacters
	}
	return s, nil
}

// text returns the member with a name. It returns false if the member exists and is not a text. If there is none, or
// it is null, text returns an empty text.
func (o object) text(name string) (string, bool) {
	switch v := o[name].(type) {
	case nil:
		return "", true
	case string:
		return v, true
	default:
		return "", false
	}
}

// texts returns the items of an array of texts. It returns false for every other value.
func texts(value any) ([]string, bool) {
	list, ok := value.([]any)
	if !ok {
		return nil, false
	}
	all := make([]string, 0, len(list))
	for _, item := range list {
		text, ok := item.(string)
		if !ok {
			return nil, false
		}
		all = append(all, text)
	}
	return all, true
}
