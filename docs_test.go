package brevet_test

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// The tests in this file check references in the documents. A code span that begins with the path of a Go file must
// continue with names that the file declares, for instance `ca/authority.go Authority.Issue, draft`. If a code span is
// a path below one of the module's folders, that path must exist. The target of a link to a file must also exist.

// A doc is a Markdown file.
type doc struct {
	path string
	text string
}

func documents(t *testing.T) []doc {
	t.Helper()
	paths := []string{"README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"}
	err := filepath.WalkDir("docs", func(path string, entry os.DirEntry, err error) error {
		if err == nil && !entry.IsDir() && strings.HasSuffix(path, ".md") {
			paths = append(paths, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	var docs []doc
	for _, path := range paths {
		docs = append(docs, doc{path, read(t, path)})
	}
	return docs
}

func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

var (
	fences = regexp.MustCompile("(?ms)^```([^\n]*)\n(.*?\n)```$")
	spans  = regexp.MustCompile("`([^`]+)`")
	links  = regexp.MustCompile(`\]\(([^)#\s]+)(?:#[^)]*)?\)`)
	paths  = regexp.MustCompile(`^[A-Za-z0-9_.-]+(/[A-Za-z0-9_.-]+)*/?$`)
	makes  = regexp.MustCompile(`\bmake ([a-z][a-z-]*)`)
)

// brokenReferences returns a text for every reference of a document to something that does not exist.
func (d doc) brokenReferences() []string {
	var found []string
	fault := func(format string, args ...any) { found = append(found, d.path+": "+fmt.Sprintf(format, args...)) }
	prose := fences.ReplaceAllString(d.text, "")
	for _, m := range spans.FindAllStringSubmatch(prose, -1) {
		words := strings.Fields(strings.ReplaceAll(m[1], ",", " "))
		switch {
		case len(words) == 0:
		case strings.Contains(words[0], "/") && strings.HasSuffix(words[0], ".go"):
			for _, missing := range undeclared(words[0], words[1:]) {
				fault("`%s`: %s", m[1], missing)
			}
		case len(words) == 1 && isTreePath(words[0]) && !exists(words[0]):
			fault("`%s` does not exist", m[1])
		}
	}
	for _, m := range links.FindAllStringSubmatch(prose, -1) {
		if !strings.Contains(m[1], "://") && !exists(filepath.Join(filepath.Dir(d.path), m[1])) {
			fault("the link to %s is broken", m[1])
		}
	}
	return found
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// isTreePath reports whether a word is a path in this tree: it has a slash, and its first folder exists.
func isTreePath(word string) bool {
	first, _, nested := strings.Cut(word, "/")
	return nested && paths.MatchString(word) && exists(first)
}

// undeclared returns an error message for each of the names that the Go file at path does not declare.
func undeclared(path string, names []string) []string {
	file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
	if err != nil {
		return []string{err.Error()}
	}
	known := declared(file)
	var missing []string
	for _, name := range names {
		if !known[name] {
			missing = append(missing, "the file does not declare "+name)
		}
	}
	return missing
}

// declared returns the names of the functions, types, constants and variables of a file, and its methods and fields as
// Type.Member.
func declared(file *ast.File) map[string]bool {
	known := map[string]bool{}
	for _, d := range file.Decls {
		switch d := d.(type) {
		case *ast.FuncDecl:
			known[funcName(d)] = true
		case *ast.GenDecl:
			for _, spec := range d.Specs {
				switch s := spec.(type) {
				case *ast.ValueSpec:
					for _, n := range s.Names {
						known[n.Name] = true
					}
				case *ast.TypeSpec:
					known[s.Name.Name] = true
					for _, n := range members(s.Type) {
						known[s.Name.Name+"."+n] = true
					}
				}
			}
		}
	}
	return known
}

func funcName(d *ast.FuncDecl) string {
	if d.Recv == nil {
		return d.Name.Name
	}
	of := d.Recv.List[0].Type
	if star, ok := of.(*ast.StarExpr); ok {
		of = star.X
	}
	switch generic := of.(type) {
	case *ast.IndexExpr:
		of = generic.X
	case *ast.IndexListExpr:
		of = generic.X
	}
	return of.(*ast.Ident).Name + "." + d.Name.Name
}

func members(of ast.Expr) []string {
	var list *ast.FieldList
	switch of := of.(type) {
	case *ast.StructType:
		list = of.Fields
	case *ast.InterfaceType:
		list = of.Methods
	default:
		return nil
	}
	var names []string
	for _, f := range list.List {
		for _, n := range f.Names {
			names = append(names, n.Name)
		}
	}
	return names
}

func TestReferencesInDocumentsExist(t *testing.T) {
	for _, d := range documents(t) {
		for _, fault := range d.brokenReferences() {
			t.Error(fault)
		}
	}
}

func TestBrokenReferencesAreFound(t *testing.T) {
	for text, want := range map[string]string{
		"`ca/authority.go Authority.Issue, Config.Journal, newSerial`": "",
		"`device/1` and `make nothing` and `ca`":                       "",
		"[here](deps_test.go), [there](https://example.com/x)":         "",
		"```\n`ca/nowhere.go`\n```":                                    "",
		"`ca/authority.go Authority.Revoke`":                           "does not declare Authority.Revoke",
		"`ca/nowhere.go Issue`":                                        "no such file",
		"`ca/nowhere/`":                                                "does not exist",
		"[here](nowhere.md#part)":                                      "is broken",
	} {
		got := doc{"made-up.md", text}.brokenReferences()
		if (want == "") != (len(got) == 0) || want != "" && !strings.Contains(got[0], want) {
			t.Errorf("%s: %q, want %q", text, got, want)
		}
	}
}

// block returns the content of a document's only fenced block with the given info string.
func block(t *testing.T, path, info string) string {
	t.Helper()
	var found []string
	for _, m := range fences.FindAllStringSubmatch(read(t, path), -1) {
		if m[1] == info {
			found = append(found, m[2])
		}
	}
	if len(found) != 1 {
		t.Fatalf("%s has %d fenced blocks %q, want one", path, len(found), info)
	}
	return found[0]
}

func TestArrowsAreDocumented(t *testing.T) {
	want := maps.Clone(arrows)
	delete(want, ".")
	compareArrows(t, "text arrows", want)
	compareArrows(t, "text rooms", maps.Clone(innerArrows))
}

// compareArrows compares a block of docs/architecture.md with a table of deps_test.go.
func compareArrows(t *testing.T, name string, want map[string]string) {
	t.Helper()
	documented := map[string]string{}
	for line := range strings.Lines(block(t, "docs/architecture.md", name)) {
		from, to, ok := strings.Cut(line, "→")
		if !ok {
			t.Fatalf("docs/architecture.md: %q is not an arrow", line)
		}
		to = strings.TrimSpace(to)
		if to == "nothing of ours" {
			to = ""
		}
		for folder := range strings.SplitSeq(from, ",") {
			documented[strings.TrimSpace(folder)] = to
		}
	}
	for folder, to := range want {
		if got, ok := documented[folder]; !ok || !slices.Equal(sorted(got), sorted(to)) {
			t.Errorf("docs/architecture.md has %s → %s, deps_test.go %s", folder, got, to)
		}
		delete(documented, folder)
	}
	for folder := range documented {
		t.Errorf("deps_test.go has no arrows for %s, docs/architecture.md has", folder)
	}
}

func sorted(list string) []string {
	return slices.Sorted(slices.Values(strings.FieldsFunc(list, func(r rune) bool { return r == ',' || r == ' ' })))
}

func TestContributingListsTheFolders(t *testing.T) {
	var listed []string
	for _, m := range regexp.MustCompile("(?m)^\\| `([a-z]+)/`").FindAllStringSubmatch(read(t, "CONTRIBUTING.md"), -1) {
		listed = append(listed, m[1])
	}
	entries, err := os.ReadDir(".")
	if err != nil {
		t.Fatal(err)
	}
	built := []string{"bin", "dist"} // made by make, not in the repository
	var there []string
	for _, e := range entries {
		if e.IsDir() && !strings.HasPrefix(e.Name(), ".") && !slices.Contains(built, e.Name()) {
			there = append(there, e.Name())
		}
	}
	slices.Sort(listed)
	if !slices.Equal(listed, there) {
		t.Errorf("CONTRIBUTING.md lists the folders %q, want %q", listed, there)
	}
}

func TestDocumentedTargetsExist(t *testing.T) {
	targets := regexp.MustCompile(`(?m)^\.PHONY: (.*)$`).FindStringSubmatch(read(t, "Makefile"))
	if targets == nil {
		t.Fatal("the Makefile has no line .PHONY")
	}
	for _, d := range documents(t) {
		code := spans.FindAllString(fences.ReplaceAllString(d.text, ""), -1)
		code = append(code, fences.FindAllString(d.text, -1)...)
		for _, m := range makes.FindAllStringSubmatch(strings.Join(code, "\n"), -1) {
			if !slices.Contains(strings.Fields(targets[1]), m[1]) {
				t.Errorf("%s: the Makefile has no target %s", d.path, m[1])
			}
		}
	}
}
