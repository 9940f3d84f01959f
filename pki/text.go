package pki

import (
	"fmt"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/unicode/norm"
)

// MaxText is the maximum length in bytes of a text that a person entered.
const MaxText = 256

// CheckText returns a refusal of a text that a person entered, such as a comment or a label, or nil. It accepts UTF-8
// in Unicode normalization form C: letters, digits, punctuation, symbols and spaces. It refuses control characters,
// invisible characters, and characters that change the direction of text, because different texts could then look the
// same. A program that shows the text must escape all characters except ASCII.
func CheckText(what, text string) error {
	refuse := func(detail string, args ...any) error {
		return Refuse(RuleRequest, fmt.Sprintf("use UTF-8 of %d bytes at most, in normalization form C: letters, digits, punctuation, symbols and spaces", MaxText),
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
