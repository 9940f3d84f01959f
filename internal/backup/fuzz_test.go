package backup

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
)

// FuzzRead reads files that may be backups. If one is read, its files are there, and none is outside of the directory.
func FuzzRead(f *testing.F) {
	archive, store := regular(archiveName, "log"), regular(storeName, "store")
	crl := regular("crls/a.crl", "crl")
	f.Add(packed(f, archive, store, crl, manifestOf(f, archive, store, crl)))
	f.Add(packed(f, archive, regular("../a", ""), manifestOf(f, archive)))
	f.Add(withHole(f))
	f.Add([]byte(ageIntro))
	f.Fuzz(func(t *testing.T, raw []byte) {
		parent := t.TempDir()
		dir := filepath.Join(parent, "dir")
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		m, err := Read(bytes.NewReader(raw), nil, dir)
		if got := list(t, parent); len(got) != 1 {
			t.Fatalf("%v was written", got)
		}
		if err != nil {
			return
		}
		size := int64(0)
		for _, file := range m.Files {
			info, err := os.Lstat(filepath.Join(dir, file.Name))
			if err != nil || !info.Mode().IsRegular() || info.Mode().Perm() != 0o600 || info.Size() != file.Size {
				t.Fatalf("%s: %v, %v", file.Name, info, err)
			}
			size += info.Size()
		}
		if size > int64(len(raw)) {
			t.Fatalf("%d bytes became %d", len(raw), size)
		}
	})
}
