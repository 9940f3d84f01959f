package brevet_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// fakeGo is a fake go command with one package. Its fuzz targets print the output of real fuzz targets.
const fakeGo = `#!/bin/sh
case "$*" in
'env GOCACHE') pwd ;;
'list -f '*) pwd ;;
list) echo fleet.example/x ;;
'test -c '*)
	cat >"$6" <<'TARGETS'
#!/bin/sh
case "$*" in
*-test.list*) printf 'FuzzTime\nFuzzGood\nFuzzBad\nFuzzBadAtTheEnd\nFuzzLast\n' ;;
*FuzzTime*) printf -- '--- FAIL: FuzzTime (1.02s)\n    context deadline exceeded\nFAIL\n'; exit 1 ;;
*'FuzzBad$'*) printf -- '--- FAIL: FuzzBad (0.10s)\n    --- FAIL: FuzzBad (0.00s)\n        x_test.go:9: wrong\n    \n    Failing input written to testdata/fuzz/FuzzBad/1\nFAIL\n'; exit 1 ;;
*FuzzBadAtTheEnd*) printf -- '--- FAIL: FuzzBadAtTheEnd (1.00s)\n    x_test.go:7: context deadline exceeded\n    context deadline exceeded\nFAIL\n'; exit 1 ;;
*) echo PASS ;;
esac
TARGETS
	chmod +x "$6" ;;
*) echo "no such command: $*" >&2; exit 3 ;;
esac
`

// TestFuzzScriptRunsAllTargets runs the script with fuzz targets of which one ends like in go.dev/issue/75804, and
// others fail.
func TestFuzzScriptRunsAllTargets(t *testing.T) {
	dir := t.TempDir()
	for name, content := range map[string]string{"deploy/fuzz.sh": read(t, "deploy/fuzz.sh"), "go": fakeGo, "x_test.go": "func FuzzTime(f *testing.F) {}\n"} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	run := func() (string, error) {
		cmd := exec.CommandContext(t.Context(), "sh", filepath.Join(dir, "deploy", "fuzz.sh"), "1s")
		cmd.Env = append(os.Environ(), "GO="+filepath.Join(dir, "go"))
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	out, err := run()
	for _, want := range []string{
		"== fleet.example/x FuzzLast, 1s\nPASS\n",
		"    context deadline exceeded\nFAIL\nthe time ended while an input was tried (go.dev/issue/75804): not a failure\n== fleet.example/x FuzzGood",
		"== 5 targets, of which these failed, see above:\n  fleet.example/x FuzzBad\n  fleet.example/x FuzzBadAtTheEnd\n",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("the output does not contain %q", want)
		}
	}
	if err == nil {
		t.Error("the script succeeds although targets failed")
	}
	calm := strings.Replace(fakeGo, `\nFuzzBad\nFuzzBadAtTheEnd`, "", 1)
	if err := os.WriteFile(filepath.Join(dir, "go"), []byte(calm), 0o700); err != nil {
		t.Fatal(err)
	}
	if calmOut, err := run(); err != nil || !strings.HasSuffix(calmOut, "== 3 targets, none failed\n") {
		t.Errorf("without failing targets it ends with %v:\n%s", err, calmOut)
	}
	if t.Failed() {
		t.Log(out)
	}
}
