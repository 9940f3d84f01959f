package pki

import (
	"go/ast"
	"go/parser"
	"go/token"
	"strings"
	"testing"
)

// TestEveryRuleHasAClass reads the constants from refusal.go, because Rules does not return a rule without a class.
func TestEveryRuleHasAClass(t *testing.T) {
	file, err := parser.ParseFile(token.NewFileSet(), "refusal.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	rules := 0
	ast.Inspect(file, func(n ast.Node) bool {
		spec, ok := n.(*ast.ValueSpec)
		if !ok || len(spec.Values) != 1 || !strings.HasPrefix(spec.Names[0].Name, "Rule") {
			return true
		}
		if text, ok := spec.Values[0].(*ast.BasicLit); ok {
			rules++
			if _, known := classes[Rule(strings.Trim(text.Value, `"`))]; !known {
				t.Errorf("%s has no class: add it to classes", spec.Names[0].Name)
			}
		}
		return true
	})
	if rules != len(classes) {
		t.Errorf("refusal.go declares %d rules, and classes has %d", rules, len(classes))
	}
}
