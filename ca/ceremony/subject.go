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

// Subject is the distinguished name of a CA: one common name, and what else places it. The zero value is none.
type Subject struct{ der string }

// attribute is a kind of name that a CA's subject may have, with the upper bound of RFC 5280 appendix A.1.
type attribute struct {
	keyword string
	oid     asn1.ObjectIdentifier
	longest int // in characters
	repeats bool
}

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

func refuseSubject(detail string, args ...any) *pki.Refusal {
	return pki.Refuse(pki.RuleSubject, subjectForm, detail, args...)
}

// ParseSubject reads a name such as "CN=Fleet Root G1,O=Example": the string form of RFC 4514, in which the most
// specific name comes first, without multi-valued names, quotes, object identifiers, or spaces around separators.
// The error is a *pki.Refusal (ceremony.subject).
func ParseSubject(text string) (Subject, error) {
	if len(text) > 1024 {
		return Subject{}, refuseSubject("a subject has at most 1024 octets, not %d", len(text))
	}
	var name pkix.RDNSequence
	for _, part := range splitNames(text) {
		keyword, escaped, found := strings.Cut(part, "=")
		if !found {
			return Subject{}, refuseSubject("%q has no =", part)
		}
		i := slices.IndexFunc(attributes(), func(a attribute) bool { return strings.EqualFold(a.keyword, keyword) })
		if i < 0 {
			return Subject{}, refuseSubject("%q is not a name that a CA's subject may have", keyword)
		}
		value, err := unescape(keyword, escaped)
		if err != nil {
			return Subject{}, err
		}
		name = append(name, pkix.RelativeDistinguishedNameSET{{Type: attributes()[i].oid, Value: value}})
	}
	slices.Reverse(name) // DER has the most specific name last (RFC 4514 §2.1)
	return newSubject(name)
}

// splitNames cuts a string at the commas that no backslash takes away.
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

// unescape reads a value as RFC 4514 §3 writes it.
func unescape(keyword, text string) (string, error) {
	if strings.HasPrefix(text, "#") || strings.HasPrefix(text, " ") {
		return "", refuseSubject("the value of %s begins with a bare %q", keyword, text[0])
	}
	var b strings.Builder
	for i := 0; i < len(text); i++ {
		switch c := text[i]; {
		case c == ' ' && i == len(text)-1:
			return "", refuseSubject("the value of %s ends with a bare space", keyword)
		case strings.IndexByte(`+;"<>`, c) >= 0:
			return "", refuseSubject("the value of %s has a bare %q", keyword, c)
		case c != '\\':
			b.WriteByte(c)
		case i+1 < len(text) && strings.IndexByte(`"+,;<>\ #=`, text[i+1]) >= 0:
			b.WriteByte(text[i+1])
			i++
		default:
			octet, err := hex.DecodeString(text[i+1 : min(i+3, len(text))])
			if err != nil || len(octet) != 1 {
				return "", refuseSubject("the value of %s has a \\ that nothing special follows", keyword)
			}
			b.WriteByte(octet[0])
			i += 2
		}
	}
	return b.String(), nil
}

// subjectFromDER takes over a name that somebody else encoded, under the same rules.
func subjectFromDER(der []byte) (Subject, error) {
	var name pkix.RDNSequence
	if rest, err := asn1.Unmarshal(der, &name); err != nil || len(rest) > 0 {
		return Subject{}, refuseSubject("the subject is not a distinguished name")
	}
	return newSubject(name)
}

func newSubject(name pkix.RDNSequence) (Subject, error) {
	seen := make(map[string]bool)
	for _, rdn := range name {
		if len(rdn) != 1 {
			return Subject{}, refuseSubject("the subject has a name of several values")
		}
		i := slices.IndexFunc(attributes(), func(a attribute) bool { return a.oid.Equal(rdn[0].Type) })
		if i < 0 {
			return Subject{}, refuseSubject("%s is not a name that a CA's subject may have", rdn[0].Type)
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

func (a attribute) check(value string) error {
	n := utf8.RuneCountInString(value)
	switch {
	case strings.TrimSpace(value) == "":
		return refuseSubject("the value of %s is empty", a.keyword)
	case n > a.longest:
		return refuseSubject("the value of %s has %d characters, more than %d", a.keyword, n, a.longest)
	case !utf8.ValidString(value) || strings.ContainsFunc(value, func(r rune) bool { return !unicode.IsGraphic(r) }):
		return refuseSubject("the value of %s has characters that do not print", a.keyword)
	case a.keyword == "C" && (n != 2 || strings.ContainsFunc(value, func(r rune) bool { return r < 'A' || r > 'Z' })):
		return refuseSubject("the value of C is a country's two capital letters")
	}
	return nil
}

// String formats the name as ParseSubject reads it.
func (s Subject) String() string { return nameText([]byte(s.der)) }

// IsZero reports whether s names nothing.
func (s Subject) IsZero() bool { return s.der == "" }

func (s Subject) bytes() []byte { return []byte(s.der) }

// nameText formats a DER name, whoever made it.
func nameText(der []byte) string {
	var name pkix.RDNSequence
	if _, err := asn1.Unmarshal(der, &name); err != nil {
		return "(not a distinguished name)"
	}
	return name.String()
}

// sameName compares names as RFC 5280 §7.1 does: case, and how many spaces separate words, make no difference.
func sameName(a, b []byte) bool {
	return bytes.Equal(a, b) || strings.EqualFold(foldSpaces(a), foldSpaces(b))
}

func foldSpaces(der []byte) string {
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
