// Package config reads the configuration of a Brevet binary. It decodes one YAML file strictly into a struct. Values
// from environment variables and flags override those of the file.
//
// It refuses unknown and repeated keys, values of the wrong type, durations without a unit, aliases and merge keys,
// several documents in one file, and files over 1 MiB. It refuses unknown environment variables with the binary's
// prefix, and those that would hold a secret. Every refusal is an [*Error]. Fields are named by their `yaml` tags.
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

// maxFile is the maximum size of a configuration file in bytes.
const maxFile = 1 << 20

// Error is an error in a configuration.
type Error struct {
	Source  string // the file, the environment variable as "$NAME", or the flag as "--name"; empty if unknown
	Line    int    // line in the file, starting with 1; 0 if unknown
	Key     string // path of the key, such as "log.format"; empty for the whole configuration
	Problem string // what was found, and what would pass
	Instead string // the new key, or where else the value belongs, if Key was replaced; otherwise empty
}

// Error returns "source:line: key: problem". It omits unknown parts.
func (e *Error) Error() string {
	var b strings.Builder
	if e.Source != "" {
		b.WriteString(e.Source + ":")
	}
	if e.Line > 0 {
		if e.Source == "" {
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

// Replacer is a configuration with replaced keys. Decoding an old key fails with an [*Error] that
// names the new key.
type Replacer interface {
	// ReplacedKeys returns the new path of each old path, or where else its value belongs.
	ReplacedKeys() map[string]string
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
		e.Source = path
	}
	return err
}

// DecodeYAML decodes one YAML document into a pointer to a struct. An empty document changes nothing.
func DecodeYAML(data []byte, into any) error {
	if len(data) > maxFile {
		return &Error{Problem: fmt.Sprintf("a configuration has at most %d bytes", maxFile)}
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

// syntaxError returns an [*Error] for an error of the yaml package, whose message starts with "yaml: line 3: ".
func syntaxError(err error) error {
	e := &Error{Problem: strings.TrimPrefix(err.Error(), "yaml: ")}
	if _, scanErr := fmt.Sscanf(e.Problem, "line %d:", &e.Line); scanErr == nil {
		_, e.Problem, _ = strings.Cut(e.Problem, ": ")
	}
	e.Problem = "this is not YAML: " + e.Problem
	return e
}
