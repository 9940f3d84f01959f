package policy

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"

	"github.com/brevet-pki/brevet/pki"
)

// maxValue is the maximum length in bytes of a value in a template.
const maxValue = 255

// expand replaces the placeholders of a template by values. It refuses values that do not fit.
func (t *template) expand(rule string, f *facts) (string, error) {
	texts := make([]string, len(t.units))
	for i, u := range t.units {
		texts[i] = u.before
		if u.value == nil {
			continue
		}
		value, problem := u.value.of(f)
		if problem == "" {
			problem = t.use.check(value)
		}
		texts[i] += value + u.after
		if problem == "" {
			problem = t.use.checkUnit(texts[i])
		}
		if problem != "" { // the value itself may be personal
			return "", pki.Refuse(pki.RulePolicy,
				"ask the operator to change the template, for instance to digest("+u.value.fact+")",
				"rule %s matches, but its template does not accept the value of %s, which %s", rule, u.value.fact, problem)
		}
	}
	return strings.Join(texts, t.use.separator()), nil
}

// of returns the value of a placeholder. If there is none, it returns what is wrong with the fact.
func (p *placeholder) of(f *facts) (value, problem string) {
	fact := f.text(p.fact)
	switch p.function {
	case splitFunction:
		parts := strings.SplitN(fact, p.separator, maxPart+2)
		if p.part >= len(parts) {
			return "", fmt.Sprintf("has no part %d", p.part)
		}
		return parts[p.part], ""
	case extractFunction:
		groups := p.pattern.FindStringSubmatch(fact)
		if groups == nil {
			return "", "does not match the pattern of extract"
		}
		return groups[1], ""
	case digestFunction:
		if fact == "" {
			return "", "is empty"
		}
		sum := sha256.Sum256([]byte(fact))
		return hex.EncodeToString(sum[:16]), ""
	default:
		return fact, ""
	}
}

// check returns what is wrong with a value, or "".
func (u use) check(value string) string {
	switch {
	case value == "":
		return "is empty"
	case len(value) > maxValue:
		return fmt.Sprintf("has more than %d bytes", maxValue)
	case value == "." || value == "..":
		return "is a dot segment"
	}
	for i := range len(value) {
		c := value[i]
		switch {
		case c < ' ' || c > '~':
			return "has control characters, or characters outside of ASCII"
		case c == '/' || c == '\\':
			return "has a slash"
		case strings.IndexByte("*?[]{}", c) >= 0:
			return "has a wildcard or a bracket"
		case !u.accepts(c):
			return fmt.Sprintf("has a character that a %s cannot have (%#02x)", u.unit(), c)
		}
	}
	return ""
}

// accepts reports whether values may contain an ASCII character. A DNS name cannot contain upper-case letters, because
// DNS ignores the case: two different values could form the same name.
func (u use) accepts(c byte) bool {
	lower, upper, digit := c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9'
	switch u {
	case usePath:
		return lower || upper || digit || c == '.' || c == '-' || c == '_'
	case useDNS:
		return lower || digit || c == '-'
	default:
		return true
	}
}

// checkUnit returns what is wrong with a unit that contains a value, or "".
func (u use) checkUnit(text string) string {
	switch {
	case u == usePath && (text == "." || text == ".."):
		return "forms a dot segment"
	case u == useDNS && (len(text) > 63 || text[0] == '-' || text[len(text)-1] == '-'):
		return "forms a DNS label of over 63 bytes, or with a hyphen at an end"
	case u == useLabel && (len(text) > pki.MaxText || text[0] == ' ' || text[len(text)-1] == ' '):
		return fmt.Sprintf("forms a text of over %d bytes, or with a space at an end", pki.MaxText)
	}
	return ""
}
