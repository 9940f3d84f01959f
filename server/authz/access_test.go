package authz

import (
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/brevet-pki/brevet/pki"
)

func TestOperationsOutsideTheTableAreDenied(t *testing.T) {
	a := New(Config{})
	for _, op := range []Operation{"", "DeleteIdentity", "enroll", "/brevet.v1.EnrollmentService/Enroll"} {
		for _, check := range []func() (Caller, error){
			func() (Caller, error) { return a.Authenticate(op, nil) },
			func() (Caller, error) { return a.Authorize(t.Context(), op, nil) },
		} {
			c, err := check()
			if r, ok := pki.AsRefusal(err); !ok || r.Rule != pki.RuleMethod || !errors.Is(err, ErrNoOperation) || c != (Caller{}) {
				t.Errorf("%q: %v by %v, want %s", op, err, c, pki.RuleMethod)
			}
		}
	}
}

// Operations of operators need a permission, and others need none.
func TestOperatorsNeedAPermission(t *testing.T) {
	for op, a := range access {
		if (a.Callers == Operators) != (a.Permission != 0) || a.Callers == Nobody {
			t.Errorf("%s: the callers %d, with the permission %s", op, a.Callers, a.Permission)
		}
	}
}

// The table in docs/operations.md has a row for each permission, with its operations and roles.
func TestPermissionsAreDocumented(t *testing.T) {
	text, err := os.ReadFile("../../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	roles := "| permission | operations |"
	for _, role := range pki.AllRoles() {
		roles += " " + role.String() + " |"
	}
	rows := []string{roles}
	for _, p := range pki.AllPermissions() {
		var operations []string
		for _, op := range Operations() {
			if access[op].Permission == p {
				operations = append(operations, "`"+string(op)+"`")
			}
		}
		row := "| `" + p.String() + "` | " + strings.Join(operations, ", ") + " |"
		for _, role := range pki.AllRoles() {
			if role.Permits(p) {
				row += " yes |"
			} else {
				row += " no |"
			}
		}
		rows = append(rows, row)
	}
	for _, row := range rows {
		if !strings.Contains(string(text), "\n"+row+"\n") {
			t.Errorf("docs/operations.md lacks the row\n%s", row)
		}
	}
}
