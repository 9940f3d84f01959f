package pki

import (
	"regexp"
	"regexp/syntax"
	"strings"
)

// Limits of an identity pattern.
const (
	maxPatternText    = 256 // bytes
	maxPatternProgram = 500 // instructions; matching takes at most this number of steps for each byte of a path
)

// hintPattern is the hint of a refused pattern.
const hintPattern = "use a regular expression (RE2) that begins with a whole path segment, such as sensor/S[0-9]{6}"

// IdentityPattern is a set of identities: those whose whole path matches a regular expression (RE2). All of its paths
// have the same first segment. The zero value matches no identity.
type IdentityPattern struct {
	prefix string // the literal text with which every path in the set begins
	whole  *regexp.Regexp
}

// ParseIdentityPattern parses the regular expression of a pattern. It refuses an expression that does not begin with a
// literal first segment and a slash, that can match reserved identities, or that is costly to match.
func ParseIdentityPattern(text string) (IdentityPattern, error) {
	refuse := func(detail string, args ...any) (IdentityPattern, error) {
		return IdentityPattern{}, Refuse(RuleRequest, hintPattern, "the pattern %.100q "+detail, append([]any{text}, args...)...)
	}
	if len(text) > maxPatternText {
		return refuse("has %d bytes, and may have %d", len(text), maxPatternText)
	}
	if strings.ContainsFunc(text, func(c rune) bool { return c <= ' ' || c > '~' }) {
		return refuse("has a character that no path has")
	}
	parsed, err := syntax.Parse(text, syntax.Perl)
	if err != nil {
		return refuse("is not a regular expression: %v", err)
	}
	if hasAssertion(parsed) {
		return refuse("has an assertion such as ^, $ or \\b: leave it out, because a pattern always matches a whole path")
	}
	program, err := syntax.Compile(parsed.Simplify())
	if err != nil {
		return refuse("is not a regular expression: %v", err)
	}
	if len(program.Inst) > maxPatternProgram {
		return refuse("is too costly: shorten it, or repeat less in it")
	}
	prefix, _ := program.Prefix()
	first, _, complete := strings.Cut(prefix, "/")
	if !complete || first == "" {
		return refuse("does not begin with a whole path segment")
	}
	inside, err := SPIFFEIDIn("pattern.example", first+"/x") // any identity that begins with this segment
	if err != nil {
		return refuse("does not begin with a path segment: use letters, digits, dots, dashes and underscores")
	}
	if inside.Reserved() {
		return IdentityPattern{}, Refuse(RuleReserved, "choose a pattern that does not begin with "+reservedRoot,
			"the pattern %.100q is of reserved identities", text)
	}
	whole, err := regexp.Compile(`\A(?:` + text + `)\z`)
	if err != nil {
		return refuse("is not a regular expression: %v", err)
	}
	return IdentityPattern{prefix, whole}, nil
}

// hasAssertion reports whether a part of an expression matches a place in the text instead of characters.
func hasAssertion(re *syntax.Regexp) bool {
	switch re.Op {
	case syntax.OpBeginLine, syntax.OpEndLine, syntax.OpBeginText, syntax.OpEndText, syntax.OpWordBoundary, syntax.OpNoWordBoundary:
		return true
	}
	for _, sub := range re.Sub {
		if hasAssertion(sub) {
			return true
		}
	}
	return false
}

// Matches reports whether the identity is in the set. It never matches a reserved identity.
func (p IdentityPattern) Matches(id SPIFFEID) bool {
	return p.whole != nil && !id.Reserved() && strings.HasPrefix(id.Path(), p.prefix) && p.whole.MatchString(id.Path())
}
