package brevet_test

import (
	"bytes"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const (
	maxFileLines     = 500  // a longer file is about more than one thing
	maxFunctionLines = 80   // a longer function does not fit on a screen
	maxPackageLines  = 4500 // a longer package is about more than one thing
	maxMainLines     = 300  // tests of other packages cannot import a package main, so it should be short
)

// longPackages are the packages that may have more than maxPackageLines.
var longPackages = map[string]string{
	"store/storetest": "a suite of tests: its files are independent of each other",
}

func TestFilesAndFunctionsAreShort(t *testing.T) {
	fset := token.NewFileSet()
	for _, name := range goFiles(t) {
		source, file := parse(t, fset, name)
		if ast.IsGenerated(file) {
			continue
		}
		if lines := bytes.Count(source, []byte("\n")); lines > maxFileLines {
			t.Errorf("%s has %d lines, over %d: split it by topic", name, lines, maxFileLines)
		}
		for where, lines := range longFunctions(fset, file) {
			t.Errorf("%s: a function of %d lines, over %d: make its steps functions", where, lines, maxFunctionLines)
		}
	}
}

// Lines of tests and of generated files do not count.
func TestPackagesAreShort(t *testing.T) {
	fset := token.NewFileSet()
	lines, limits := map[string]int{}, map[string]int{}
	for _, name := range goFiles(t) {
		source, file := parse(t, fset, name)
		if strings.HasSuffix(name, "_test.go") || ast.IsGenerated(file) {
			continue
		}
		dir := filepath.ToSlash(filepath.Dir(name))
		lines[dir] += bytes.Count(source, []byte("\n"))
		limits[dir] = maxPackageLines
		if file.Name.Name == "main" {
			limits[dir] = maxMainLines
		}
	}
	for dir, n := range lines {
		reason, isLong := longPackages[dir]
		switch {
		case isLong && n <= limits[dir]:
			t.Errorf("%s has %d lines, and may have more as %s: remove it from longPackages", dir, n, reason)
		case !isLong && n > limits[dir]:
			t.Errorf("%s has %d lines, over %d: split it by responsibility", dir, n, limits[dir])
		}
	}
}

// longFunctions returns the position and length of every function with more than maxFunctionLines. It includes function
// literals in package variables.
func longFunctions(fset *token.FileSet, file *ast.File) map[string]int {
	long := map[string]int{}
	ast.Inspect(file, func(node ast.Node) bool {
		switch node.(type) {
		case *ast.FuncDecl, *ast.FuncLit:
			start, end := fset.Position(node.Pos()), fset.Position(node.End())
			if lines := end.Line - start.Line + 1; lines > maxFunctionLines {
				long[start.String()] = lines
			}
			return false
		}
		return true
	})
	return long
}

func TestPackagesHaveComments(t *testing.T) {
	fset := token.NewFileSet()
	documented := map[string]bool{}
	for _, name := range goFiles(t) {
		_, file := parse(t, fset, name)
		if strings.HasSuffix(name, "_test.go") || ast.IsGenerated(file) {
			continue
		}
		dir := filepath.Dir(name)
		documented[dir] = documented[dir] || file.Doc != nil
	}
	for dir, ok := range documented {
		if !ok {
			t.Errorf("%s has no package comment: say what it does, what it refuses and which RFC it follows", dir)
		}
	}
}

func TestLongFunctionsAreFound(t *testing.T) {
	body := func(lines int) string { return "{\n" + strings.Repeat("\tg()\n", lines-2) + "}\n" }
	for _, c := range []struct {
		source string
		want   int
	}{
		{"package p\nfunc f() " + body(80), 0},
		{"package p\nfunc f() " + body(81), 1},
		{"package p\nvar v = func() " + body(81), 1},
		{"package p\nfunc f() {\n\t_ = func() " + body(90) + "}\n", 1},
	} {
		fset := token.NewFileSet()
		file, err := parser.ParseFile(fset, "p.go", c.source, 0)
		if err != nil {
			t.Fatal(err)
		}
		if got := longFunctions(fset, file); len(got) != c.want {
			t.Errorf("found %d long functions, want %d in\n%.60s…", len(got), c.want, c.source)
		}
	}
}

func parse(t *testing.T, fset *token.FileSet, name string) ([]byte, *ast.File) {
	t.Helper()
	source, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	file, err := parser.ParseFile(fset, name, source, parser.ParseComments)
	if err != nil {
		t.Fatal(err)
	}
	return source, file
}
