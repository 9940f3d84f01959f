// Package manual writes what a package installs beside a binary: man pages (man-pages(7)) and completions for bash, zsh
// and fish, from a tree of cobra commands. The completions ask the binary, so they know what it knows.
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

// Write puts manual and completions of a program into share, in the folders that Debian has for them in /usr/share. The
// same tree and date make the same bytes.
func Write(root *cobra.Command, share string, date time.Time) error {
	root.DisableAutoGenTag = true // which has the time of day in it
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

// writePages writes the page of a command and of each below it.
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

// What cobra writes of an option: its name, and what it does behind a tab, which only tables and literal text may have.
var option = regexp.MustCompile(`(?m)^(?:\.PP\n)?(\\fB-.*)\n\t`)

// plain has a page say what it is in words of man(7): options as tagged paragraphs, and the date as ISO 8601 has it.
func plain(page []byte, date time.Time) []byte {
	page = option.ReplaceAll(page, []byte(".TP\n$1\n"))
	return bytes.Replace(page, []byte(date.Format(`"Jan 2006"`)), []byte(date.Format(`"2006-01-02"`)), 1)
}

// pageName is the command's path with dashes, as man finds pages of sub-commands.
func pageName(c *cobra.Command) string {
	if !c.HasParent() {
		return c.Name()
	}
	return pageName(c.Parent()) + "-" + c.Name()
}

func write(path string, content []byte) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil { //nolint:gosec // G301: a package's folder is for everybody
		return err
	}
	return os.WriteFile(path, content, 0o644)
}

// Date is the date of the pages: SOURCE_DATE_EPOCH (reproducible-builds.org), in seconds.
func Date() (time.Time, error) {
	seconds, err := strconv.ParseInt(os.Getenv("SOURCE_DATE_EPOCH"), 10, 64)
	if err != nil {
		return time.Time{}, fmt.Errorf("SOURCE_DATE_EPOCH has to say when the manual is from: %w", err)
	}
	return time.Unix(seconds, 0), nil
}
