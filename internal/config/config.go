// Package config reads the one configuration file of a Brevet binary: YAML, decoded strictly into a struct.
//
// It refuses unknown and repeated keys, naming the nearest key that would pass, values of another type, durations
// without a unit, aliases and merge keys, several documents in one file, and files over 1 MiB. Every refusal is an
// *Error with the path of the key and, where the text is at hand, its line. Fields are named by their `yaml` tags.
package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"go.yaml.in/yaml/v3"
)

// maxFile is how large a configuration may be, in octets.
const maxFile = 1 << 20

// Error says what is wrong in a configuration.
type Error struct {
	File    string // empty where the text did not come from a file
	Line    int    // from 1; 0 where it is unknown
	Key     string // path of the key, such as "log.format"; empty for the whole
	Problem string // what is wrong, and what would pass
}

// Error formats as "file:line: key: problem", leaving out what is unknown.
func (e *Error) Error() string {
	var b strings.Builder
	if e.File != "" {
		b.WriteString(e.File + ":")
	}
	if e.Line > 0 {
		if e.File == "" {
			b.WriteString("line ")
		}
		fmt.Fprintf(&b, "%d:", e.Line)
	}
	if b.Len() > 0 {
		b.WriteByte(' ')
	}
	if e.Key != "" {
		b.WriteString(e.Key + ": ")
	}
	return b.String() + e.Problem
}

// Load decodes a file into a pointer to a struct. Fields that the file does not name keep their values.
func Load(path string, into any) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("read the configuration: %w", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return fmt.Errorf("read the configuration: %w", err)
	}
	err = DecodeYAML(data, into)
	var e *Error
	if errors.As(err, &e) {
		e.File = path
	}
	return err
}

// DecodeYAML decodes one YAML document into a pointer to a struct. An empty document changes nothing.
func DecodeYAML(data []byte, into any) error {
	if len(data) > maxFile {
		return &Error{Problem: fmt.Sprintf("a configuration has at most %d octets", maxFile)}
	}
	var document, second yaml.Node
	decoder := yaml.NewDecoder(bytes.NewReader(data))
	if err := decoder.Decode(&document); errors.Is(err, io.EOF) {
		return nil
	} else if err != nil {
		return syntaxError(err)
	}
	if err := decoder.Decode(&second); err == nil {
		return &Error{Line: second.Line, Problem: "a second document starts here: give one"}
	} else if !errors.Is(err, io.EOF) {
		return syntaxError(err)
	}
	return decode(document.Content[0], into)
}

// DecodeMap decodes what a reader such as viper made of a file, by the same rules.
func DecodeMap(values map[string]any, into any) error {
	var root yaml.Node
	if err := root.Encode(values); err != nil {
		return &Error{Problem: "the values do not form a configuration: " + err.Error()}
	}
	return decode(&root, into)
}

// syntaxError takes the line out of yaml's message, which starts "yaml: line 3: ".
func syntaxError(err error) error {
	e := &Error{Problem: strings.TrimPrefix(err.Error(), "yaml: ")}
	if _, scanErr := fmt.Sscanf(e.Problem, "line %d:", &e.Line); scanErr == nil {
		_, e.Problem, _ = strings.Cut(e.Problem, ": ")
	}
	e.Problem = "this is not YAML: " + e.Problem
	return e
}
