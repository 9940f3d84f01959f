package ceremony

import (
	"bytes"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/brevet-pki/brevet/pki"
)

// Subject is the distinguished name of a CA. It has one common name, and may have other attributes. The zero value is
// no name.
type Subject struct{ der string }

// attribute is an attribute that a CA's subject may have, with its upper bound of RFC 5280 appendix A.1.
type attribute struct {
	keyword   string
	oid       asn1.ObjectIdentifier
	maxLength int // in characters
	repeats   bool
}

// attributes returns the attributes that a CA's subject may have.
func attributes() []attribute {
	return []attribute{
		{"CN", asn1.ObjectIdentifier{2, 5, 4, 3}, 64, false},
		{"C", asn1.ObjectIdentifier{2, 5, 4, 6}, 2, false},
		{"L", asn1.ObjectIdentifier{2, 5, 4, 7}, 128, false},
		{"ST", asn1.ObjectIdentifier{2, 5, 4, 8}, 128, false},
		{"O", asn1.ObjectIdentifier{2, 5, 4, 10}, 64, false},
		{"OU", asn1.ObjectIdentifier{2, 5, 4, 11}, 64, true},
	}
}

const subjectForm = "write it like CN=Fleet Root G1,O=Example, with CN and any of O, OU, L, ST, C, and \\ before a comma in a value"

// refuseSubject returns a refusal of a subject.
func refuseSubject(detail string, args ...any) *pki.Refusal {
	return pki.Refuse(pki.RuleSubject, subjectForm, detail, args...)
}

// ParseSubject parses a name such as "CN=Fleet Root G1,O=Example". The form is that of RFC 4514, with the most specific
// attribute first. It must not contain multi-valued names, quotes, object identifiers, or spaces around separators. The
// error is a [*pki.Refusal] with the rule ceremony.subject.
func ParseSubject(text string) (Subject, error) {
	if len(text) > 1024 {
		return Subject{}, refuseSubject("the subject has %d bytes, more than 1024", len(text))
	}
	var name pkix.RDNSequence
	for _, part := range splitNames(text) {
		keyword, escaped, found := strings.Cut(part, "=")
		if !found {
			return Subject{}, refuseSubject("%q has no =", part)
		}
		i := slices.IndexFunc(attributes(), func(a attribute) bool { return strings.EqualFold(a.keyword, keyword) })
		if i < 0 {
			return Subject{}, refuseSubject("%q is not an attribute that a CA's subject may have", keyword)
		}
		value, err := unescape(keyword, escaped)
		if err != nil {
			return Subject{}, err
		}
		name = append(name, pkix.RelativeDistinguishedNameSET{{Type: attributes()[i].oid, Value: value}})
	}
	slices.Reverse(name) // in DER the most specific attribute is last (RFC 4514 §2.1)
	return newSubject(name)
}

// splitNames splits a string at its unescaped commas.
func splitNames(text string) []string {
	var parts []string
	start := 0
	for i := 0; i < len(text); i++ {
		switch text[i] {
		case '\\':
			i++
		case ',':
			parts = append(parts, text[start:i])
			start = i + 1
		}
	}
	return append(parts, text[start:])
}

// unescape decodes a value that is escaped according to RFC 4514 section 3.
func unescape(keyword, text string) (string, error) {
	if strings.HasPrefix(text, "#") || strings.HasPrefix(text, " ") {
		return "", refuseSubject("the value of %s starts with an unescaped %q", keyword, text[0])
	}
	var b strings.Builder
	for i := 0; i < len(text); i++ {
		switch c := text[i]; {
		case c == ' ' && i == len(text)-1:
			return "", refuseSubject("the value of %s ends with an unescaped space", keyword)
		case strings.IndexByte(`+;"<>`, c) >= 0:
			return "", refuseSubject("the value of %s contains an unescaped %q", keyword, c)
		case c != '\\':
			b.WriteByte(c)
		case i+1 < len(text) && strings.IndexByte(`"+,;<>\ #=`, text[i+1]) >= 0:
			b.WriteByte(text[i+1])
			i++
		default:
			octet, err := hex.DecodeString(text[i+1 : min(i+3, len(text))])
			if err != nil || len(octet) != 1 {
				return "", refuseSubject("the value of %s contains a \\ without a special character or two hexadecimal digits after it", keyword)
			}
			b.WriteByte(octet[0])
			i += 2
		}
	}
	return b.String(), nil
}

// subjectFromDER checks a name encoded by other software according to the rules of ParseSubject.
func subjectFromDER(der []byte) (Subject, error) {
	var name pkix.RDNSequence
	if rest, err := asn1.Unmarshal(der, &name); err != nil || len(rest) > 0 {
		return Subject{}, refuseSubject("the subject is not a distinguished name")
	}
	return newSubject(name)
}

// newSubject checks the attributes of a name and encodes it.
func newSubject(name pkix.RDNSequence) (Subject, error) {
	seen := make(map[string]bool)
	for _, rdn := range name {
		if len(rdn) != 1 {
			return Subject{}, refuseSubject("the subject has a multi-valued name")
		}
		i := slices.IndexFunc(attributes(), func(a attribute) bool { return a.oid.Equal(rdn[0].Type) })
		if i < 0 {
			return Subject{}, refuseSubject("%s is not an attribute that a CA's subject may have", rdn[0].Type)
		}
		a := attributes()[i]
		if seen[a.keyword] && !a.repeats {
			return Subject{}, refuseSubject("the subject has %s twice", a.keyword)
		}
		seen[a.keyword] = true
		value, ok := rdn[0].Value.(string)
		if !ok {
			return Subject{}, refuseSubject("the value of %s is not text", a.keyword)
		}
		if err := a.check(value); err != nil {
			return Subject{}, err
		}
	}
	if !seen["CN"] {
		return Subject{}, refuseSubject("the subject has no CN")
	}
	der, err := asn1.Marshal(name)
	if err != nil {
		return Subject{}, refuseSubject("the subject cannot be encoded: %v", err)
	}
	return Subject{string(der)}, nil
}

// check refuses a value that the attribute cannot have.
func (a attribute) check(value string) error {
	n := utf8.RuneCountInString(value)
	switch {
	case strings.TrimSpace(value) == "":
		return refuseSubject("the value of %s is empty", a.keyword)
	case n > a.maxLength:
		return refuseSubject("the value of %s has %d characters, more than %d", a.keyword, n, a.maxLength)
	case !utf8.ValidString(value) || strings.ContainsFunc(value, func(r rune) bool { return !unicode.IsGraphic(r) }):
		return refuseSubject("the value of %s contains unprintable characters", a.keyword)
	case a.keyword == "C" && (n != 2 || strings.ContainsFunc(value, func(r rune) bool { return r < 'A' || r > 'Z' })):
		return refuseSubject("the value of C must be the two capital letters of a country")
	}
	return nil
}

// String formats the name in the form that ParseSubject parses.
func (s Subject) String() string { return nameText([]byte(s.der)) }

// IsZero reports whether s is no name.
func (s Subject) IsZero() bool { return s.der == "" }

func (s Subject) bytes() []byte { return []byte(s.der) }

// nameText formats a name in DER, including names that ParseSubject would refuse.
func nameText(der []byte) string {
	var name pkix.RDNSequence
	if _, err := asn1.Unmarshal(der, &name); err != nil {
		return "(not a distinguished name)"
	}
	return name.String()
}

// sameName compares names according to RFC 5280 section 7.1: it ignores case and the number of spaces between words.
func sameName(a, b []byte) bool {
	return bytes.Equal(a, b) || strings.EqualFold(singleSpaced(a), singleSpaced(b))
}

// singleSpaced formats a name in DER with single spaces between words.
func singleSpaced(der []byte) string {
	var name pkix.RDNSequence
	if _, err := asn1.Unmarshal(der, &name); err != nil {
		return string(der)
	}
	for _, rdn := range name {
		for i, v := range rdn {
			if text, ok := v.Value.(string); ok {
				rdn[i].Value = strings.Join(strings.Fields(text), " ")
			}
		}
	}
	return name.String()
}
