package pki

import (
	"fmt"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/unicode/norm"
)

// MaxText bounds a text that a person gave, in bytes.
const MaxText = 256

// CheckText refuses a text that a person gave, such as a comment or a label, if it cannot be kept and compared as it is
// seen. It takes UTF-8 in Unicode normalisation form C: letters, digits, punctuation, symbols and spaces. It refuses control
// characters, and those that are invisible or change the direction of what follows. Whoever shows the text to a person
// escapes what is not ASCII.
func CheckText(what, text string) error {
	refuse := func(detail string, args ...any) error {
		return Refuse(RuleRequest, fmt.Sprintf("use UTF-8 of %d bytes at most, in normalisation form C: letters, digits, punctuation, symbols and spaces", MaxText),
			"%s %s", what, fmt.Sprintf(detail, args...))
	}
	if len(text) > MaxText {
		return refuse("has %d bytes", len(text))
	}
	if !utf8.ValidString(text) {
		return refuse("is not UTF-8")
	}
	for at, c := range text {
		if !unicode.IsPrint(c) || unicode.In(c, unicode.Other_Default_Ignorable_Code_Point, unicode.Variation_Selector) || at == 0 && unicode.IsMark(c) {
			return refuse("has the character U+%04X at byte %d", c, at)
		}
	}
	if !norm.NFC.IsNormalString(text) {
		return refuse("has characters in more parts than needed")
	}
	return nil
}
