package engine

import (
	"strings"
	"unicode/utf8"

	"github.com/brevet-pki/brevet/pki"
)

// CheckTexts refuses arguments of a statement with a text that is not UTF-8, or that contains U+0000. PostgreSQL has no such
// texts, and SQLite must not store what PostgreSQL refuses. Every engine calls it, so that a text from outside is refused as
// such, and not retried as a failure of the database.
func CheckTexts(args []any) error {
	for _, a := range args {
		if text, is := a.(string); is && (strings.IndexByte(text, 0) >= 0 || !utf8.ValidString(text)) {
			return pki.Refuse(pki.RuleRequest, "use UTF-8 without U+0000", "the text %.64q cannot be stored", text)
		}
	}
	return nil
}

// Failed is a row that could not be read. Scan returns the error.
type Failed struct{ Err error }

// Scan implements Scanner.
func (f Failed) Scan(...any) error { return f.Err }
