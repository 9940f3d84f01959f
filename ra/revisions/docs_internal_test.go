package revisions

import (
	"os"
	"reflect"
	"strings"
	"testing"
)

// TestKeysOfSourcesAreInTheDocument compares the types that sections are decoded into with the tables in docs/policy.md.
func TestKeysOfSourcesAreInTheDocument(t *testing.T) {
	text, err := os.ReadFile("../../docs/policy.md")
	if err != nil {
		t.Fatal(err)
	}
	for section, of := range map[string]reflect.Type{
		"x5c.SOURCE": reflect.TypeFor[x5cSource](), "tpm.SOURCE": reflect.TypeFor[tpmSource](), "recovery": reflect.TypeFor[recoverySection](),
	} {
		for i := range of.NumField() {
			if row := "\n| `" + section + "." + of.Field(i).Tag.Get("yaml") + "` | "; !strings.Contains(string(text), row) {
				t.Errorf("docs/policy.md has no row that begins with %q", row)
			}
		}
	}
}
