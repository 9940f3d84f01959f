package policy

import (
	"errors"
	"fmt"
	"regexp"
	"regexp/syntax"
	"slices"
	"strings"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/checker"
	"cel.dev/cel-go/common/ast"
	"cel.dev/cel-go/common/env"
	"cel.dev/cel-go/common/operators"
	"cel.dev/cel-go/common/overloads"
	"cel.dev/cel-go/common/types"

	"github.com/brevet-pki/brevet/ra"
)

// Limits of conditions. Costs are in units of CEL, of which one is about the cost of one operator.
const (
	maxCondition       = 4096 // bytes
	maxConditionDepth  = 64
	maxConditionCost   = 10_000
	maxConditionsCost  = 2_000_000 // of all rules for the same kinds of evidence
	maxPattern         = 256       // bytes of a regular expression
	maxPatternProgram  = 1000      // instructions of a compiled regular expression
	maxConditionFaults = 3         // that are reported for one condition
)

// functions returns the operators and functions that conditions may use, with their overloads. All of CEL's standard
// library is left out that loops, grows values, converts types without a need, or reads time zones from files.
func functions() *env.LibrarySubset {
	subset := env.NewLibrarySubset().SetDisableMacros(true)
	for name, ids := range map[string][]string{
		operators.LogicalAnd: nil, operators.LogicalOr: nil, operators.LogicalNot: nil, operators.Conditional: nil,
		operators.Equals: nil, operators.NotEquals: nil,
		operators.Less: {overloads.LessInt64, overloads.LessString, overloads.LessTimestamp, overloads.LessDuration},
		operators.LessEquals: {overloads.LessEqualsInt64, overloads.LessEqualsString, overloads.LessEqualsTimestamp,
			overloads.LessEqualsDuration},
		operators.Greater: {overloads.GreaterInt64, overloads.GreaterString, overloads.GreaterTimestamp,
			overloads.GreaterDuration},
		operators.GreaterEquals: {overloads.GreaterEqualsInt64, overloads.GreaterEqualsString,
			overloads.GreaterEqualsTimestamp, overloads.GreaterEqualsDuration},
		operators.Add: {overloads.AddTimestampDuration, overloads.AddDurationDuration},
		operators.Subtract: {
			overloads.SubtractTimestampDuration, overloads.SubtractTimestampTimestamp, overloads.SubtractDurationDuration,
		},
		operators.In: {overloads.InList},
		overloads.Size: {overloads.SizeString, overloads.SizeStringInst, overloads.SizeList,
			overloads.SizeListInst},
		overloads.Contains:             {overloads.ContainsString},
		overloads.StartsWith:           {overloads.StartsWithString},
		overloads.EndsWith:             {overloads.EndsWithString},
		overloads.Matches:              {overloads.MatchesString},
		overloads.TypeConvertInt:       {overloads.StringToInt},
		overloads.TypeConvertTimestamp: {overloads.StringToTimestamp},
		overloads.TypeConvertDuration:  {overloads.StringToDuration},
	} {
		f := env.NewFunction(name)
		for _, id := range ids {
			f.Overloads = append(f.Overloads, &env.Overload{ID: id})
		}
		subset.AddIncludedFunctions(f)
	}
	return subset
}

// celType returns the type of a fact in CEL.
func celType(t ra.FactType) *cel.Type {
	switch t {
	case ra.FactInt:
		return cel.IntType
	case ra.FactBool:
		return cel.BoolType
	case ra.FactTime:
		return cel.TimestampType
	case ra.FactStrings:
		return cel.ListType(cel.StringType)
	default:
		return cel.StringType
	}
}

// newCEL returns the environment in which conditions about the facts of a schema are compiled.
func newCEL(s *schema) (*cel.Env, error) {
	options := []cel.EnvOption{
		cel.StdLib(cel.StdLibSubset(functions())), cel.HomogeneousAggregateLiterals(),
		cel.ParserExpressionSizeLimit(maxCondition), cel.ParserRecursionLimit(maxConditionDepth),
		cel.ParserErrorRecoveryLimit(maxConditionFaults),
	}
	for _, name := range s.names {
		options = append(options, cel.Variable(name, celType(s.facts[name].is)))
	}
	e, err := cel.NewCustomEnv(options...)
	if err != nil {
		return nil, fmt.Errorf("prepare the conditions: %w", err)
	}
	return e, nil
}

// sizes estimates the sizes of facts, which Grant limits.
type sizes struct{ *schema }

// EstimateSize implements checker.CostEstimator.
func (s sizes) EstimateSize(node checker.AstNode) *checker.SizeEstimate {
	path := node.Path()
	if len(path) == 0 {
		return nil
	}
	switch s.facts[path[0]].is {
	case ra.FactString:
		return &checker.SizeEstimate{Max: maxFactBytes}
	case ra.FactStrings:
		if len(path) > 1 {
			return &checker.SizeEstimate{Max: maxFactBytes}
		}
		return &checker.SizeEstimate{Max: maxFactItems}
	default:
		return nil
	}
}

// EstimateCallCost implements checker.CostEstimator. It leaves the estimate to package checker.
func (sizes) EstimateCallCost(string, string, *checker.AstNode, []checker.AstNode) *checker.CallEstimate {
	return nil
}

// condition is a checked condition. It is true if all its conjuncts are true.
type condition struct {
	conjuncts []conjunct
	cost      uint64 // maximum cost; zero if all conjuncts compare facts with constant texts
}

// conjunct is one of the conditions that && connects. It is a test of one text, or a program of CEL.
type conjunct struct {
	text    string // in a normal form: conjuncts with the same text mean the same
	test    *textTest
	program cel.Program
}

// A problem is a fault in a condition, with the offset of its line.
type problem struct {
	line int
	text string
}

// conditions compiles the conditions of rules for the same kinds of evidence.
type conditions struct {
	schema   *schema
	env      *cel.Env
	programs map[string]cel.Program // by the text of the conjunct
}

func newConditions(s *schema) (*conditions, error) {
	e, err := newCEL(s)
	return &conditions{s, e, map[string]cel.Program{}}, err
}

// compile checks a condition. It returns problems if the condition is not valid.
func (c *conditions) compile(source string) (*condition, []problem) {
	if len(source) > maxCondition {
		return nil, []problem{{0, fmt.Sprintf("the condition has %d bytes: write at most %d", len(source), maxCondition)}}
	}
	checked, issues := c.env.Compile(source)
	if issues.Err() != nil {
		var all []problem
		if line, ok := assignment(issues.Errors()); ok {
			return nil, []problem{{line, "write == to compare"}}
		}
		for _, e := range issues.Errors()[:min(len(issues.Errors()), maxConditionFaults)] {
			all = append(all, problem{max(0, e.Location.Line()-1), c.explain(source, e)})
		}
		return nil, all
	}
	if checked.OutputType() != cel.BoolType {
		return nil, []problem{{0, fmt.Sprintf("a condition is true or false, and this is a %s: compare it with a value",
			checked.OutputType())}}
	}
	native := checked.NativeRep()
	if all := c.restrict(native); len(all) > 0 {
		return nil, all
	}
	estimate, err := c.env.EstimateCost(checked, sizes{c.schema})
	if err != nil || estimate.Max > maxConditionCost {
		return nil, []problem{{0, fmt.Sprintf("the condition may cost %d units: simplify it to at most %d", estimate.Max,
			maxConditionCost)}}
	}
	result := &condition{}
	for _, e := range split(native.Expr()) {
		part, err := c.conjunct(native, e)
		if err != nil {
			return nil, []problem{{0, err.Error()}}
		}
		if part.test == nil || part.test.values == nil {
			result.cost = estimate.Max
		}
		result.conjuncts = append(result.conjuncts, part)
	}
	return result, nil
}

var (
	undeclared = regexp.MustCompile(`^undeclared reference to '([^']*)'`)
	unmatched  = regexp.MustCompile(`^found no matching overload for '([^']*)' applied to '([^']*)'`)
	word       = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_.]*`)
)

// assignment returns the line of the first error that a single = causes. It causes others after it, which say less.
func assignment(all []*cel.Error) (line int, ok bool) {
	for _, e := range all {
		if strings.HasPrefix(e.Message, "Syntax error: token recognition error at: '=") {
			return max(0, e.Location.Line()-1), true
		}
	}
	return 0, false
}

// explain returns an error of package cel in words of the documentation, or its message if there are no better ones.
func (c *conditions) explain(source string, e *cel.Error) string {
	if m := undeclared.FindStringSubmatch(e.Message); m != nil {
		name := m[1]
		if at := wordAt(source, e); strings.HasPrefix(at, name+".") { // package cel names only the part before the dot
			return Unknown("fact", at, c.schema.names)
		}
		names := []string{"contains", "duration", "endsWith", "int", "matches", "size", "startsWith", "timestamp"}
		return Unknown("function or fact", name, append(names, c.schema.names...))
	}
	if m := unmatched.FindStringSubmatch(e.Message); m != nil {
		return fmt.Sprintf("%s does not work with the types %s", strings.Trim(m[1], "_"), m[2])
	}
	return strings.TrimPrefix(e.Message, "Syntax error: ")
}

// wordAt returns the name with its dots at the position of an error. It omits a function that is called on the name.
func wordAt(source string, e *cel.Error) string {
	lines := strings.Split(source, "\n")
	if e.Location.Line() < 1 || e.Location.Line() > len(lines) {
		return ""
	}
	line := []rune(lines[e.Location.Line()-1])
	text := string(line[min(max(0, e.Location.Column()), len(line)):])
	found := word.FindString(text)
	if strings.HasPrefix(text[len(found):], "(") {
		found = found[:max(0, strings.LastIndexByte(found, '.'))]
	}
	return found
}

// restrict returns problems for expressions that type-check and that conditions must not contain.
func (c *conditions) restrict(checked *ast.AST) []problem {
	var all []problem
	ast.PostOrderVisit(checked.Expr(), ast.NewExprVisitor(func(e ast.Expr) {
		text := ""
		switch e.Kind() {
		case ast.LiteralKind, ast.ListKind:
		case ast.IdentKind:
			if _, ok := c.schema.facts[e.AsIdent()]; !ok {
				text = Unknown("fact", e.AsIdent(), c.schema.names)
			}
		case ast.CallKind:
			if e.AsCall().FunctionName() == overloads.Matches {
				text = checkMatches(e.AsCall())
			}
		default:
			text = "a condition cannot contain maps, messages, fields or loops"
		}
		if text != "" && len(all) < maxConditionFaults {
			all = append(all, problem{max(0, checked.SourceInfo().GetStartLocation(e.ID()).Line()-1), text})
		}
	}))
	return all
}

// checkMatches returns a problem if the pattern of matches is not constant, or does not describe the whole value.
func checkMatches(call ast.CallExpr) string {
	pattern, ok := call.Args()[0].AsLiteral().(types.String)
	if call.Args()[0].Kind() != ast.LiteralKind || !ok {
		return "the pattern of matches must be a text between quotes"
	}
	parsed, err := parsePattern(string(pattern))
	if err != nil {
		return "matches: " + err.Error()
	}
	if !anchored(parsed) {
		return "matches would accept a longer value that contains the pattern: write ^(?:...)$ for the whole value"
	}
	return ""
}

// parsePattern parses a regular expression in the syntax of RE2, and refuses one that is too large.
func parsePattern(text string) (*syntax.Regexp, error) {
	if len(text) > maxPattern {
		return nil, fmt.Errorf("the regular expression has %d bytes: write at most %d", len(text), maxPattern)
	}
	parsed, err := syntax.Parse(text, syntax.Perl)
	if err != nil {
		return nil, fmt.Errorf("this is not a regular expression: %s", strings.TrimPrefix(err.Error(),
			"error parsing regexp: "))
	}
	program, err := syntax.Compile(parsed.Simplify())
	if err != nil || len(program.Inst) > maxPatternProgram {
		return nil, fmt.Errorf("the regular expression is too large: repeat less in it")
	}
	return parsed, nil
}

// anchored reports whether a regular expression matches only whole texts.
func anchored(re *syntax.Regexp) bool {
	if re.Op != syntax.OpConcat || len(re.Sub) < 2 {
		return false
	}
	return re.Sub[0].Op == syntax.OpBeginText && re.Sub[len(re.Sub)-1].Op == syntax.OpEndText
}

// split returns the expressions that && connects.
func split(e ast.Expr) []ast.Expr {
	if e.Kind() != ast.CallKind || e.AsCall().FunctionName() != operators.LogicalAnd {
		return []ast.Expr{e}
	}
	var all []ast.Expr
	for _, arg := range e.AsCall().Args() {
		all = append(all, split(arg)...)
	}
	return all
}

// conjunct prepares one of the expressions of a condition for evaluation.
func (c *conditions) conjunct(checked *ast.AST, e ast.Expr) (conjunct, error) {
	text, err := cel.ExprToString(e, checked.SourceInfo())
	if err != nil {
		return conjunct{}, fmt.Errorf("print the condition: %w", err)
	}
	if e.Kind() == ast.LiteralKind {
		return conjunct{}, fmt.Errorf("%s is constant: remove it", text)
	}
	if test := newTextTest(e, c.schema); test != nil {
		if slices.Contains(test.values, "") {
			return conjunct{}, fmt.Errorf("%s: no fact is the empty text, because the evidence does not have it then: remove "+
				"the comparison", text)
		}
		return conjunct{text: test.name(text), test: test}, nil
	}
	result := conjunct{text: text, program: c.programs[text]}
	if result.program != nil {
		return result, nil
	}
	part := ast.NewCheckedAST(ast.NewAST(e, checked.SourceInfo()), checked.TypeMap(), checked.ReferenceMap())
	result.program, err = c.env.PlanProgram(part, cel.EvalOptions(cel.OptOptimize), cel.CostLimit(maxConditionCost))
	if err != nil {
		return conjunct{}, fmt.Errorf("%s: %w", text, err)
	}
	c.programs[text] = result.program
	return result, nil
}

// holds reports whether a conjunct is true. It is false if it depends on a fact that the evidence does not have. So a
// negation is not true for evidence that says nothing.
func (c conjunct) holds(f *facts) (bool, error) {
	if c.test != nil {
		text := f.texts[c.test.position]
		return text != "" && c.test.holds(text), nil
	}
	result, _, err := c.program.Eval(f)
	if errors.Is(err, errAbsent) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return result == types.True, nil
}

// holds reports whether a condition is true. A condition with a false conjunct is false, even if another conjunct cannot
// be evaluated. Otherwise holds returns the error of the first conjunct that cannot be evaluated.
func (c *condition) holds(f *facts) (bool, error) {
	var failed error
	for _, part := range c.conjuncts {
		holds, err := part.holds(f)
		if err != nil {
			failed = err
		} else if !holds {
			return false, nil
		}
	}
	return failed == nil, failed
}
