package manual

import (
	"compress/gzip"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"
)

func tree() *cobra.Command {
	run := func(*cobra.Command, []string) {}
	root := &cobra.Command{Use: "tool", Short: "Does things"}
	group := &cobra.Command{Use: "key", Short: "Does things with keys"}
	sub := &cobra.Command{Use: "make NAME", Short: "Make a key", Example: "  tool key make a_b", Run: run}
	sub.Flags().String("out", "key.pem", "file to write")
	group.AddCommand(sub)
	root.AddCommand(group, &cobra.Command{Use: "secret", Hidden: true, Run: run})
	return root
}

func unpack(t *testing.T, path string) string {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestWrite(t *testing.T) {
	share := t.TempDir()
	if err := Write(tree(), share, time.Unix(86400, 0)); err != nil {
		t.Fatal(err)
	}
	page := unpack(t, filepath.Join(share, "man", "man1", "tool-key-make.1.gz"))
	for _, want := range []string{"tool-key-make - Make a key", `"1970-01-02"`, ".TP\n\\fB--out\\fP=\"key.pem\"\nfile to write", "tool key make a_b"} {
		if !strings.Contains(page, want) {
			t.Errorf("the page does not say %q:\n%s", want, page)
		}
	}
	if strings.Contains(page, "\n\t") {
		t.Errorf("an option is told behind a tab, which filled text has none of:\n%s", page)
	}
	if page := unpack(t, filepath.Join(share, "man", "man1", "tool.1.gz")); !strings.Contains(page, "tool-key(1)") || strings.Contains(page, "secret") {
		t.Errorf("the first page leads elsewhere:\n%s", page)
	}
	if _, err := os.Stat(filepath.Join(share, "man", "man1", "tool-secret.1.gz")); err == nil {
		t.Error("a hidden command has a page")
	}
	for _, script := range []string{"bash-completion/completions/tool", "zsh/vendor-completions/_tool", "fish/vendor_completions.d/tool.fish"} {
		if text, err := os.ReadFile(filepath.Join(share, script)); err != nil || !strings.Contains(string(text), "__complete") {
			t.Errorf("%s does not ask the binary: %v", script, err)
		}
	}
}

// Write produces the same bytes for the same commands, so that two builds of a package can be compared.
func TestWriteIsReproducible(t *testing.T) {
	shares := []string{t.TempDir(), t.TempDir()}
	for _, share := range shares {
		if err := Write(tree(), share, time.Unix(86400, 0)); err != nil {
			t.Fatal(err)
		}
	}
	err := filepath.WalkDir(shares[0], func(path string, entry os.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		rel, err := filepath.Rel(shares[0], path)
		if err != nil {
			return err
		}
		one, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		other, err := os.ReadFile(filepath.Join(shares[1], rel))
		if err == nil && string(one) != string(other) {
			t.Errorf("%s differs", rel)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}
