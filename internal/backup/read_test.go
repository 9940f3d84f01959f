package backup

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// entry is a file in a tar file of a test.
type entry struct {
	tar.Header
	content string
}

func regular(name, content string) entry { return entry{tar.Header{Name: name}, content} }

// packed returns a tar file of entries.
func packed(t testing.TB, entries ...entry) []byte {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, e := range entries {
		e.Size, e.Mode = int64(len(e.content)), 0o600
		if err := w.WriteHeader(&e.Header); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(e.content)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// manifestOf returns the manifest of entries.
func manifestOf(t testing.TB, entries ...entry) entry {
	t.Helper()
	m := Manifest{Format: format}
	for _, e := range entries {
		sum := sha256.Sum256([]byte(e.content))
		m.Files = append(m.Files, File{e.Name, int64(len(e.content)), hex.EncodeToString(sum[:])})
	}
	text, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return regular(manifestName, string(text))
}

// block returns a part of a tar file that the package does not write.
func block(name string, kind byte, content string) []byte {
	header := make([]byte, 512)
	for at, text := range map[int]string{
		0: name, 100: "0000600\x00", 124: fmt.Sprintf("%011o\x00", len(content)), 148: "        ", 156: string(kind), 257: "ustar\x0000",
	} {
		copy(header[at:], text)
	}
	sum := 0
	for _, b := range header {
		sum += int(b)
	}
	copy(header[148:], fmt.Sprintf("%06o\x00 ", sum))
	return append(append(header, content...), make([]byte, (512-len(content)%512)%512)...)
}

// withHole returns a backup whose copy of the store is one hole, and takes no space in the backup.
func withHole(t testing.TB) []byte {
	t.Helper()
	const size = 1 << 20
	records := ""
	for _, r := range []string{"major=1", "minor=0", "name=" + storeName, fmt.Sprint("realsize=", size)} {
		r = "GNU.sparse." + r + "\n"
		records += fmt.Sprintf("%d %s", len(r)+3, r)
	}
	archive := regular(archiveName, "log")
	raw := append(block("x", tar.TypeXHeader, records), block(storeName, tar.TypeReg, "0\n"+strings.Repeat("\x00", 510))...)
	return append(raw, packed(t, archive, manifestOf(t, regular(storeName, strings.Repeat("\x00", size)), archive))...)
}

// TestReadRefuses gives Read files that no backup has. Nothing is written outside of the directory, or without end.
func TestReadRefuses(t *testing.T) {
	archive, store := regular(archiveName, "log"), regular(storeName, "store")
	with := func(entries ...entry) []byte { return packed(t, append(entries, manifestOf(t, entries...))...) }
	link := func(name, to string, kind byte) entry {
		return entry{tar.Header{Name: name, Linkname: to, Typeflag: kind}, ""}
	}
	lying := manifestOf(t, archive, regular(storeName, "other"))
	for name, raw := range map[string][]byte{
		"a path outside":             with(archive, regular("../escaped", "x")),
		"a path outside by a detour": with(archive, regular("crls/../../escaped", "x")),
		"an absolute path":           with(archive, regular("/escaped", "x")),
		"another folder":             with(archive, regular("keys/a", "x")),
		"a file of the workspace":    with(archive, regular(completeName, "x")),
		"a folder as a file":         with(archive, regular("crls", "x")),
		"a link":                     with(archive, link("crls/a", "/etc/passwd", tar.TypeSymlink)),
		"a hard link":                with(archive, link("crls/a", "/etc/passwd", tar.TypeLink)),
		"a link to a folder":         with(archive, link("crls", "..", tar.TypeSymlink), regular("crls/escaped", "x")),
		"a device":                   with(archive, link("crls/a", "", tar.TypeChar)),
		"a file twice":               with(archive, store, store),
		"a file below a file":        with(archive, regular("crls/a", "x"), regular("crls/a/b", "x")),
		"a manifest that lies":       packed(t, archive, store, lying),
		"two manifests":              packed(t, archive, manifestOf(t, archive), manifestOf(t, archive)),
		"a file after the manifest":  packed(t, archive, manifestOf(t, archive), store),
		"no manifest":                packed(t, archive, store),
		"no archive":                 with(store),
		"a hole":                     withHole(t),
	} {
		parent := t.TempDir()
		dir := filepath.Join(parent, "dir")
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if _, err := Read(bytes.NewReader(raw), nil, dir); !errors.As(err, new(*DamagedError)) {
			t.Errorf("%s: %v, want a DamagedError", name, err)
		}
		if got := list(t, parent); !slices.Equal(got, []string{"dir"}) {
			t.Errorf("%s: %v was written", name, got)
		}
	}
}
