// Package manual writes the man pages (man-pages(7)) and the completions for bash, zsh and fish of a binary, from its
// tree of cobra commands. The completion scripts run the binary to get the suggestions.
package manual

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"
)

// Write writes the manual and completions of a program to share, in the subfolders that Debian uses in /usr/share. The
// same tree and date always produce the same bytes.
func Write(root *cobra.Command, share string, date time.Time) error {
	root.DisableAutoGenTag = true // the tag would contain the current date
	name := root.Name()
	for path, generate := range map[string]func(*bytes.Buffer) error{
		"bash-completion/completions/" + name:         func(b *bytes.Buffer) error { return root.GenBashCompletionV2(b, true) },
		"zsh/vendor-completions/_" + name:             func(b *bytes.Buffer) error { return root.GenZshCompletion(b) },
		"fish/vendor_completions.d/" + name + ".fish": func(b *bytes.Buffer) error { return root.GenFishCompletion(b, true) },
	} {
		var b bytes.Buffer
		if err := generate(&b); err != nil {
			return err
		}
		if err := write(filepath.Join(share, path), b.Bytes()); err != nil {
			return err
		}
	}
	return writePages(root, filepath.Join(share, "man", "man1"), date.UTC())
}

// writePages writes the page of a command and the pages of all its subcommands.
func writePages(c *cobra.Command, dir string, date time.Time) error {
	if c.HasParent() && !c.IsAvailableCommand() {
		return nil
	}
	for _, sub := range c.Commands() {
		if err := writePages(sub, dir, date); err != nil {
			return err
		}
	}
	header := &doc.GenManHeader{Section: "1", Date: &date, Source: c.Root().Name(), Manual: "Brevet"}
	var page bytes.Buffer
	if err := doc.GenMan(c, header, &page); err != nil {
		return err
	}
	var packed bytes.Buffer
	z, err := gzip.NewWriterLevel(&packed, gzip.BestCompression)
	if err != nil {
		return err
	}
	if _, err := z.Write(plain(page.Bytes(), date)); err != nil {
		return err
	}
	if err := z.Close(); err != nil {
		return err
	}
	return write(filepath.Join(dir, pageName(c)+".1.gz"), packed.Bytes())
}

// option matches an option in a page from cobra: its name, a line break and a tab before the description. Outside
// tables and literal text, a page must not contain tabs.
var option = regexp.MustCompile(`(?m)^(?:\.PP\n)?(\\fB-.*)\n\t`)

// plain rewrites a page to follow man(7): options become tagged paragraphs, and the date has the format of ISO 8601.
func plain(page []byte, date time.Time) []byte {
	page = option.ReplaceAll(page, []byte(".TP\n$1\n"))
	return bytes.Replace(page, []byte(date.Format(`"Jan 2006"`)), []byte(date.Format(`"2006-01-02"`)), 1)
}

// pageName returns the command's path with dashes, which is how man(1) finds the pages of subcommands.
func pageName(c *cobra.Command) string {
	if !c.HasParent() {
		return c.Name()
	}
	return pageName(c.Parent()) + "-" + c.Name()
}

func write(path string, content []byte) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil { //nolint:gosec // G301: the folder is public
		return err
	}
	return os.WriteFile(path, content, 0o644)
}

// Date returns the date of the pages from SOURCE_DATE_EPOCH (reproducible-builds.org), which is in seconds.
func Date() (time.Time, error) {
	seconds, err := strconv.ParseInt(os.Getenv("SOURCE_DATE_EPOCH"), 10, 64)
	if err != nil {
		return time.Time{}, fmt.Errorf("SOURCE_DATE_EPOCH has to say when the manual is from: %w", err)
	}
	return time.Unix(seconds, 0), nil
}
