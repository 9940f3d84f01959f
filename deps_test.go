package brevet_test

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/brevet-pki/brevet"

// arrows contains the table in docs/architecture.md: for each folder, the other folders that it may import. A folder
// includes the packages below it, except those of a deeper folder in the table. The folder "." is the module's root. To
// add an arrow, add it to docs/architecture.md first.
var arrows = map[string]string{
	".":               "",
	"pki":             "",
	"hsm":             "",
	"files":           "",
	"proto":           "",
	"fair":            "",
	"audit":           "pki",
	"ca":              "pki",
	"ra":              "ca pki",
	"revocation":      "fair files proto pki",
	"translog":        "files proto pki",
	"enroll":          "files proto pki",
	"examples":        "enroll proto pki",
	"store":           "store/retention audit ca ra revocation translog files pki",
	"store/retention": "pki",
	"server":          "store/retention audit ca ra revocation translog enroll fair proto pki",
	"cmd":             "internal",
	"internal":        "server store store/retention hsm ca ra revocation translog enroll files proto pki",
	"torture":         "",
}

// innerArrows restricts imports within a folder. It maps a package to the packages of the same folder that it may
// import. A package that is not a key may import every package of its folder.
var innerArrows = map[string]string{
	"server/admission": "",
	"server/authz":     "",
	"server/telemetry": "server/admission server/outcome",
	"server/outcome":   "",
	"server/handshake": "server/admission",
	"server/grpcapi":   "server/admission server/authz server/handshake server/outcome",
	"server/est":       "server/authz server/frontdoor",
	"server/frontdoor": "server/admission server/authz server/handshake server/outcome",

	"server/acme":            "server/acme/jws server/acme/validation server/admission server/authz server/frontdoor server/outcome",
	"server/acme/jws":        "",
	"server/acme/validation": "",

	"store/engine":                    "",
	"store/tables/internal/column":    "store/engine",
	"store/tables/internal/crlindex":  "store/engine",
	"store/tables/internal/crlshare":  "store/engine store/rules",
	"store/tables/internal/cross":     "store/engine",
	"store/tables/internal/epochs":    "store/tables/internal/column store/tables/internal/restoring store/engine",
	"store/tables/internal/expiry":    "store/engine",
	"store/tables/internal/installed": "store/engine store/rules",
	"store/tables/internal/logtable":  "store/engine store/rules",
	"store/tables/internal/bulk":      "store/tables/internal/column store/engine store/rules",
	"store/tables/internal/caller":    "store/tables/internal/bulk store/tables/internal/column store/engine store/rules",
	"store/tables/internal/recovery":  "store/tables/internal/bulk store/tables/internal/column store/engine store/rules",
	"store/tables/internal/sealing":   "store/engine",
	"store/tables/internal/restoring": "store/tables/internal/bulk store/tables/internal/column store/engine store/tables/internal/logtable store/rules",
	"store/tables/internal/rotations": "store/tables/internal/bulk store/tables/internal/column store/engine " +
		"store/tables/internal/logtable store/rules",
	"store/tables/internal/acmetable": "store/tables/internal/caller store/tables/internal/column store/engine store/tables/internal/logtable store/rules",
}

// A listed package is a package of the module in the output of `go list`. Imports are those of its non-test files.
type listed struct {
	ImportPath string
	Imports    []string
}

// violations returns a text for every import within the module that no arrow allows, and for every package whose folder
// is missing in arrows.
func violations(packages []listed) []string {
	var found []string
	for _, p := range packages {
		from := folder(p.ImportPath)
		allowed, known := arrows[from]
		if !known {
			found = append(found, fmt.Sprintf("%s: the folder %s is not in the table of arrows: "+
				"add to docs/architecture.md and deps_test.go what it may import", relativePath(p.ImportPath), from))
			continue
		}
		for _, imported := range p.Imports {
			if reason := refusal(relativePath(p.ImportPath), allowed, imported); reason != "" {
				found = append(found, fmt.Sprintf("%s imports %s: %s", relativePath(p.ImportPath), relativePath(imported), reason))
			}
		}
	}
	return found
}

// refusal returns why importer may not import the other package, or "" if it may. allowed lists the folders that
// importer's folder may import.
func refusal(importer, allowed, imported string) string {
	if !ours(imported) {
		return ""
	}
	if path.Base(imported) == path.Base(path.Dir(imported))+"test" || relativePath(imported) == "store/memory" {
		return "that package supports tests: only test files may import it"
	}
	from, to := folder(module+"/"+importer), folder(imported)
	if siblings, known := innerArrows[importer]; to == from && known && !slices.Contains(strings.Fields(siblings), relativePath(imported)) {
		return fmt.Sprintf("there is no arrow %s → %s (in its folder it may import: %s)", importer, relativePath(imported), cmp.Or(siblings, "nothing"))
	}
	if to == from || slices.Contains(strings.Fields(allowed), to) {
		return ""
	}
	if allowed == "" {
		allowed = "no package of the module"
	}
	return fmt.Sprintf("there is no arrow %s → %s (%s may import: %s); declare the interface where it is consumed, "+
		"or map the types in server or internal", from, to, from, allowed)
}

func ours(importPath string) bool {
	return importPath == module || strings.HasPrefix(importPath, module+"/")
}

// relativePath returns the import path without the module's path. For the module's root it returns ".".
func relativePath(importPath string) string {
	if importPath == module {
		return "."
	}
	return strings.TrimPrefix(importPath, module+"/")
}

// folder returns the deepest folder in arrows that contains a package. If there is none, it returns the first element
// of the package's relative path.
func folder(importPath string) string {
	for path := relativePath(importPath); ; {
		if _, known := arrows[path]; known {
			return path
		}
		end := strings.LastIndexByte(path, '/')
		if end < 0 {
			return path
		}
		path = path[:end]
	}
}

func TestImportsFollowTheArrows(t *testing.T) {
	packages := listPackages(t)
	if len(packages) < 2 {
		t.Fatalf("go list found %d packages: run the test in the module's root", len(packages))
	}
	goFiles(t) // opens the files, so that the test cache notices changes; it does not notice what go list reads
	for _, v := range violations(packages) {
		t.Error(v)
	}
}

// listPackages returns every package of the module.
func listPackages(t *testing.T) []listed {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "list", "-json=ImportPath,Imports", "./...")
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, stderr.String())
	}
	var packages []listed
	decoder := json.NewDecoder(strings.NewReader(string(out)))
	for {
		var p listed
		if err := decoder.Decode(&p); errors.Is(err, io.EOF) {
			return packages
		} else if err != nil {
			t.Fatal(err)
		}
		packages = append(packages, p)
	}
}

func TestImportViolationsAreReported(t *testing.T) {
	for _, c := range []struct{ from, to, want string }{
		{"ca", "pki", ""},
		{"ca/ceremony", "ca", ""},
		{"ra/token", "ra", ""},
		{"store/sqlite", "revocation", ""},
		{"server", "enroll", ""},
		{"server", "server/grpcapi", ""},
		{"server/grpcapi", "server/authz", ""},
		{"server/grpcapi", "ra", ""},
		{"server/authz", "server/grpcapi", "server/authz → server/grpcapi"},
		{"server/telemetry", "server/grpcapi", "server/telemetry → server/grpcapi"},
		{"server/grpcapi", "server", "server/grpcapi → server"},
		{"server/grpcapi", "store/sqlite", "server → store"},
		{"cmd/brevet", "internal/cli/serve", ""},
		{"internal/cli/node", "store/sqlite", ""},
		{"internal/cli/node", "internal/config", ""},
		{"examples/workload", "proto/brevet/v1", ""},
		{"pki", "proto/brevet/v1", "pki → proto"},
		{"hsm", "pki", "hsm → pki"},
		{"ca", "ra", "ca → ra"},
		{"ca/ceremony", "translog", "ca → translog"},
		{"revocation/check", "ca", "revocation → ca"},
		{"enroll", "ra/token", "enroll → ra"},
		{"server", "store/sqlite", "server → store"},
		{"server/grpcapi", "store/retention", ""},
		{"store/retention", "store/sqlite", "store/retention → store"},
		{"ra", "audit", "ra → audit"},
		{"store/sqlite", "hsm", "store → hsm"},
		{"store/sqlite", "store/tables/internal/bulk", ""},
		{"store/tables/internal/bulk", "store/tables/internal/column", ""},
		{"store/tables/internal/column", "store/tables/internal/bulk", "store/tables/internal/column → store/tables/internal/bulk"},
		{"store/tables/internal/bulk", "store/sqlite", "store/tables/internal/bulk → store/sqlite"},
		{"examples/workload", "server", "examples → server"},
		{"enroll", "internal/config", "enroll → internal"},
		{"store/sqlite", "store/storetest", "supports tests"},
		{"cmd/brevet", "store/storetest", "supports tests"},
		{"cmd/brevet", "store/memory", "supports tests"},
		{"store/rules", "ra", ""},
		{"store/rules", "hsm", "store → hsm"},
		{"cmd/brevet", "internal/cli/clitest", "supports tests"},
		{"cmd/brevet", "store/sqlite", "cmd → store"},
		{"newfolder/sub", "pki", "newfolder is not in the table"},
	} {
		got := violations([]listed{{ImportPath: module + "/" + c.from, Imports: []string{"fmt", module + "/" + c.to}}})
		switch {
		case c.want == "" && len(got) > 0:
			t.Errorf("%s → %s is refused: %s", c.from, c.to, got[0])
		case c.want != "" && (len(got) != 1 || !strings.Contains(got[0], c.want)):
			t.Errorf("%s → %s: want one violation naming %q, got %q", c.from, c.to, c.want, got)
		}
	}
}

// goFiles returns every Go file of the module, except those that go ignores.
func goFiles(t *testing.T) []string {
	t.Helper()
	var files []string
	err := filepath.WalkDir(".", func(name string, entry os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		base := entry.Name()
		hidden := name != "." && (strings.HasPrefix(base, ".") || strings.HasPrefix(base, "_"))
		if entry.IsDir() && (hidden || base == "testdata" || base == "vendor") {
			return filepath.SkipDir
		}
		if !entry.IsDir() && !hidden && strings.HasSuffix(base, ".go") {
			files = append(files, name)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(files) < 2 {
		t.Fatalf("found %d Go files: run the test in the module's root", len(files))
	}
	return files
}
