package sqlite_test

import (
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

// TestMigrationsAreNotChanged: a store says by numbers alone which tables it has. So a migration with another text needs
// another number, or a store is opened whose tables are not those that the statements expect. Before the first release it
// takes the next one, and what was made before is refused; from then on it stays, and a change is a file of its own.
func TestMigrationsAreNotChanged(t *testing.T) {
	want := map[string]string{
		"00016_initial.sql": "252517f638c6c946b324819327989f3b209a6fae37545bd4684cb1a5abf19927",
	}
	files, err := os.ReadDir("migrations")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		text, err := os.ReadFile(filepath.Join("migrations", file.Name()))
		if err != nil {
			t.Fatal(err)
		}
		if got := fmt.Sprintf("%x", sha256.Sum256(text)); got != want[file.Name()] {
			t.Errorf("migrations/%s has another text than stores of that number were made by (%s): give it the next number", file.Name(), got)
		}
		delete(want, file.Name())
	}
	for name := range want {
		t.Errorf("migrations/%s is missing", name)
	}
}
