package policy

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	"cel.dev/cel-go/common/ast"
	"cel.dev/cel-go/common/operators"
	"cel.dev/cel-go/common/overloads"
	"cel.dev/cel-go/common/types"
)

// textTest is a conjunct that tests one text with constants. Most conditions consist of such tests. They need no program
// of CEL, which takes a hundred times as long, and the index can look up those with values.
type textTest struct {
	fact     string
	position int // of the fact
	holds    func(value string) bool
	// values are the texts that the fact may be equal to. It is nil if the test is not a comparison.
	values []string
}

// newTextTest returns the test that an expression makes, or nil if it is not such a test. The result must be that of CEL.
func newTextTest(e ast.Expr, s *schema) *textTest {
	if e.Kind() != ast.CallKind {
		return nil
	}
	call := e.AsCall()
	operands := slices.Clone(call.Args())
	if call.IsMemberFunction() {
		operands = append([]ast.Expr{call.Target()}, operands...)
	}
	if len(operands) != 2 {
		return nil
	}
	if call.FunctionName() == operators.Equals && operands[0].Kind() == ast.LiteralKind {
		slices.Reverse(operands)
	}
	if operands[0].Kind() != ast.IdentKind {
		return nil
	}
	fact := operands[0].AsIdent()
	t := &textTest{fact: fact, position: s.facts[fact].position}
	if call.FunctionName() == operators.In {
		return t.oneOf(operands[1])
	}
	text, ok := literal(operands[1])
	if !ok {
		return nil
	}
	switch call.FunctionName() {
	case operators.Equals:
		t.values = []string{text}
		t.holds = func(value string) bool { return value == text }
	case overloads.StartsWith:
		t.holds = func(value string) bool { return strings.HasPrefix(value, text) }
	case overloads.EndsWith:
		t.holds = func(value string) bool { return strings.HasSuffix(value, text) }
	case overloads.Contains:
		t.holds = func(value string) bool { return strings.Contains(value, text) }
	case overloads.Matches:
		pattern, err := regexp.Compile(text)
		if err != nil {
			return nil // the program of CEL reports the error
		}
		t.holds = pattern.MatchString
	default:
		return nil
	}
	return t
}

// oneOf completes the test whether a fact is in a list. It returns nil if the list contains more than constant texts.
func (t *textTest) oneOf(list ast.Expr) *textTest {
	if list.Kind() != ast.ListKind || list.AsList().Size() == 0 {
		return nil
	}
	for _, item := range list.AsList().Elements() {
		text, ok := literal(item)
		if !ok {
			return nil
		}
		t.values = append(t.values, text)
	}
	slices.Sort(t.values)
	t.values = slices.Compact(t.values)
	t.holds = func(value string) bool {
		_, found := slices.BinarySearch(t.values, value)
		return found
	}
	return t
}

// literal returns the text of an expression that is a constant text.
func literal(e ast.Expr) (string, bool) {
	if e.Kind() != ast.LiteralKind {
		return "", false
	}
	text, ok := e.AsLiteral().(types.String)
	return string(text), ok
}

// name returns a text that is the same for the same comparisons, however they are written. For other tests, it returns
// the text of the expression.
func (t *textTest) name(text string) string {
	if len(t.values) == 1 {
		return fmt.Sprintf("%s == %q", t.fact, t.values[0])
	}
	return text
}
