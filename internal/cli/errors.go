package cli

import (
	"slices"
	"strings"
)

// failure is an error of a command that was given rightly. What is no failure is wrong use.
type failure struct{ err error }

func (f *failure) Error() string { return f.err.Error() }
func (f *failure) Unwrap() error { return f.err }

// Usage is an error that more careful typing avoids, found while a command runs.
type Usage struct{ text string }

// Error returns what to type instead.
func (u *Usage) Error() string { return u.text }

// WrongUse returns a [*Usage] with a text that says what to type instead.
func WrongUse(text string) error { return &Usage{text} }

// TrimPrefixes drops the package names that errors begin with: a person at a terminal has no use for them.
func TrimPrefixes(text string) string {
	parts := strings.Split(text, ": ")
	last := len(parts) - 1
	return strings.Join(append(slices.DeleteFunc(parts[:last:last], func(p string) bool { return packages[p] }), parts[last]), ": ")
}

var packages = map[string]bool{
	"ca": true, "ra": true, "hsm": true, "pki": true, "enroll": true, "revocation": true, "responder": true,
	"translog": true, "server": true, "floor": true, "sqlite": true, "config": true, "ceremony": true,
}
