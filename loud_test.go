package brevet_test

import (
	"go/ast"
	"go/token"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// loudMessages returns the messages that a file logs at WARN and ERROR. A NUL separates the literal parts of each
// message.
func loudMessages(file *ast.File) []string {
	var messages []string
	ast.Inspect(file, func(node ast.Node) bool {
		call, ok := node.(*ast.CallExpr)
		if !ok {
			return true
		}
		method, ok := call.Fun.(*ast.SelectorExpr)
		if !ok || !slices.Contains([]string{"Error", "Warn", "ErrorContext", "WarnContext"}, method.Sel.Name) || !isLog(method.X) {
			return true
		}
		args := call.Args
		if strings.HasSuffix(method.Sel.Name, "Context") {
			args = args[1:]
		}
		if len(args) > 0 {
			messages = append(messages, strings.Join(literals(args[0]), "\x00"))
		}
		return true
	})
	return messages
}

// isLog reports whether an expression has the name of a logger.
func isLog(x ast.Expr) bool {
	switch x := x.(type) {
	case *ast.Ident:
		return strings.EqualFold(x.Name, "log")
	case *ast.SelectorExpr:
		return strings.EqualFold(x.Sel.Name, "log")
	}
	return false
}

// literals returns the string literals in a concatenation of strings.
func literals(x ast.Expr) []string {
	switch x := x.(type) {
	case *ast.BasicLit:
		if text, err := strconv.Unquote(x.Value); err == nil {
			return []string{text}
		}
	case *ast.BinaryExpr:
		return append(literals(x.X), literals(x.Y)...)
	}
	return nil
}

// explained reports whether one code span of a document contains all parts of a message, in order.
func (d doc) explained(message string) bool {
	for _, m := range spans.FindAllStringSubmatch(fences.ReplaceAllString(d.text, ""), -1) {
		rest, found := m[1], true
		for part := range strings.SplitSeq(message, "\x00") {
			if _, rest, found = strings.Cut(rest, part); !found {
				break
			}
		}
		if found {
			return true
		}
	}
	return false
}

func TestWarningsAndErrorsAreDocumented(t *testing.T) {
	operations := doc{"docs/operations.md", read(t, "docs/operations.md")}
	fset, found := token.NewFileSet(), 0
	for _, name := range goFiles(t) {
		if strings.HasSuffix(name, "_test.go") || strings.HasPrefix(name, "examples/") || strings.Contains(name, "servertest/") {
			continue
		}
		_, file := parse(t, fset, name)
		for _, message := range loudMessages(file) {
			found++
			if message == "" || !operations.explained(message) {
				t.Errorf("%s logs %q: add it to docs/operations.md, with what the operator should do", name, message)
			}
		}
	}
	if found < 20 {
		t.Fatalf("found %d messages: the test does not find the code", found)
	}
	if operations.explained("a message that is never logged") || operations.explained("cannot \x00 then") {
		t.Error("explained returns true for messages that are not in docs/operations.md")
	}
}
