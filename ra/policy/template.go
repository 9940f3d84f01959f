package policy

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/brevet-pki/brevet/ra"
)

// Limits of templates.
const (
	maxTemplate = 1024 // bytes
	maxUnits    = 32   // path segments or DNS labels
	maxPart     = 63   // greatest number of a part in split
)

// A use is what a template forms. It determines how the template is divided into units, and which values fit.
type use uint8

const (
	usePath  use = iota // path of a SPIFFE ID; the units are its segments
	useDNS              // DNS name; the units are its labels
	useLabel            // value of an identity's label; there is one unit
)

// separator returns the text between two units.
func (u use) separator() string { return [...]string{usePath: "/", useDNS: ".", useLabel: ""}[u] }

// unit names a unit in faults.
func (u use) unit() string {
	return [...]string{usePath: "path segment", useDNS: "DNS label", useLabel: "value"}[u]
}

// template forms a text from facts. A value in the text fills a unit, or the part of a unit beside literal text. It
// cannot add a unit.
type template struct {
	use   use
	units []unit
}

// unit is a part of a template that has at most one value. Two values in one unit could be divided differently and yet
// be the same text.
type unit struct {
	before, after string
	value         *placeholder // nil if the unit is literal text
}

// placeholder is a value in a template.
type placeholder struct {
	fact     string
	function function
	// separator and part are the arguments of split.
	separator string
	part      int
	// pattern is the argument of extract. It has one group, and matches only whole values.
	pattern *regexp.Regexp
}

// A function derives the value of a placeholder from its fact.
type function string

// The functions. The zero value leaves the value as it is.
const (
	splitFunction   function = "split"
	extractFunction function = "extract"
	digestFunction  function = "digest"
)

// fixed reports whether a template has no placeholders.
func (t *template) fixed() bool {
	return !slices.ContainsFunc(t.units, func(u unit) bool { return u.value != nil })
}

// facts returns the facts in a template.
func (t *template) facts() []string {
	var names []string
	for _, u := range t.units {
		if u.value != nil {
			names = append(names, u.value.fact)
		}
	}
	return names
}

// parseTemplate parses a template. The facts in it must be declared in s.
func parseTemplate(text string, u use, s *schema) (*template, error) {
	if len(text) > maxTemplate {
		return nil, fmt.Errorf("the template has %d bytes: write at most %d", len(text), maxTemplate)
	}
	t := &template{use: u}
	for {
		next, rest, more, err := parseUnit(text, u, s)
		if err != nil {
			return nil, err
		}
		t.units = append(t.units, next)
		if len(t.units) > maxUnits {
			return nil, fmt.Errorf("the template has too many %ss: write at most %d", u.unit(), maxUnits)
		}
		if !more {
			return t, nil
		}
		text = rest
	}
}

// parseUnit parses the first unit of a template. rest is the text after the separator, and more reports whether there
// was one.
func parseUnit(text string, u use, s *schema) (first unit, rest string, more bool, err error) {
	for text != "" {
		if u.separator() != "" {
			if rest, more = strings.CutPrefix(text, u.separator()); more {
				break
			}
		}
		switch text[0] {
		case '}':
			return first, "", false, fmt.Errorf("there is a } without a { before it")
		case '{':
			if first.value != nil {
				return first, "", false, fmt.Errorf("a %s has two values, and different values could form the same text: "+
					"write one value in each", u.unit())
			}
			if first.value, text, err = parsePlaceholder(text[1:], s); err != nil {
				return first, "", false, err
			}
		default:
			if first.value == nil {
				first.before += text[:1]
			} else {
				first.after += text[:1]
			}
			text = text[1:]
		}
	}
	if first.value == nil && first.before == "" {
		return first, "", false, fmt.Errorf("a %s of the template is empty", u.unit())
	}
	return first, rest, more, nil
}

// parsePlaceholder parses a placeholder, whose { has been read. It returns the text after its }.
func parsePlaceholder(text string, s *schema) (*placeholder, string, error) {
	l := &lexer{rest: text}
	p := &placeholder{fact: l.word()}
	if l.symbol('(') {
		p.function = function(p.fact)
		p.fact = l.word()
		if err := p.arguments(l); err != nil {
			return nil, "", err
		}
		if !l.symbol(')') {
			return nil, "", fmt.Errorf("%s: a ) is missing, or there are too many arguments", p.function)
		}
	}
	if !l.symbol('}') {
		return nil, "", fmt.Errorf("a placeholder is {fact}, {split(fact, \"separator\", number)}, "+
			"{extract(fact, \"pattern\")} "+
			"or {digest(fact)}, and this is {%.40s", text)
	}
	d, ok := s.facts[p.fact]
	switch {
	case !ok:
		return nil, "", fmt.Errorf("%s", Unknown("fact", p.fact, s.names))
	case d.is != ra.FactString && (d.is != ra.FactInt || p.function != ""):
		return nil, "", fmt.Errorf("%s is not a text: only texts and numbers can be in a template, and functions take texts",
			p.fact)
	}
	return p, l.rest, nil
}

// arguments parses the arguments of a function after its fact.
func (p *placeholder) arguments(l *lexer) (err error) {
	switch p.function {
	case digestFunction:
		return nil
	case splitFunction:
		var separator, part bool
		if l.symbol(',') {
			p.separator, separator = l.quoted()
		}
		if separator && l.symbol(',') {
			p.part, part = l.number()
		}
		if !part || p.separator == "" || p.part > maxPart {
			return fmt.Errorf(`split: write split(fact, "separator", number); the parts are numbered from 0 to %d`, maxPart)
		}
		return nil
	case extractFunction:
		var pattern string
		var ok bool
		if l.symbol(',') {
			pattern, ok = l.quoted()
		}
		if !ok {
			return fmt.Errorf(`extract: write extract(fact, "pattern") with a regular expression that has one group`)
		}
		p.pattern, err = extractPattern(pattern)
		return err
	default:
		return fmt.Errorf("%s", Unknown("function", string(p.function), []string{"digest", "extract", "split"}))
	}
}

// extractPattern compiles a regular expression with one group, so that it matches only whole values.
func extractPattern(text string) (*regexp.Regexp, error) {
	parsed, err := parsePattern(text)
	if err != nil {
		return nil, fmt.Errorf("extract: %w", err)
	}
	if n := parsed.MaxCap(); n != 1 {
		return nil, fmt.Errorf("extract: the regular expression has %d groups: write one, in ( and ); (?: does not count", n)
	}
	return regexp.Compile(`\A(?:` + text + `)\z`)
}

// lexer reads the tokens of a placeholder. Spaces before a token are skipped.
type lexer struct{ rest string }

func (l *lexer) skip() { l.rest = strings.TrimLeft(l.rest, " ") }

// word returns the next word of letters, digits, underscores and dots. It is empty if there is none.
func (l *lexer) word() string {
	l.skip()
	end := strings.IndexFunc(l.rest, func(c rune) bool {
		return (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '_' && c != '.'
	})
	if end < 0 {
		end = len(l.rest)
	}
	word := l.rest[:end]
	l.rest = l.rest[end:]
	return word
}

// symbol reads c, and reports whether it is the next token.
func (l *lexer) symbol(c byte) bool {
	l.skip()
	if l.rest == "" || l.rest[0] != c {
		return false
	}
	l.rest = l.rest[1:]
	return true
}

// quoted returns the text between the next two quotes, which are single or double. There are no escape sequences.
func (l *lexer) quoted() (string, bool) {
	quote := `"`
	if l.symbol('\'') {
		quote = "'"
	} else if !l.symbol('"') {
		return "", false
	}
	text, rest, ok := strings.Cut(l.rest, quote)
	l.rest = rest
	return text, ok
}

func (l *lexer) number() (int, bool) {
	n, err := strconv.Atoi(l.word())
	return n, err == nil
}
