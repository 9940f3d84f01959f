// Package backup writes and reads backups of a server, and restores a store from one.
//
// A backup is one tar file, encrypted to age recipients unless the operator asked for plain text. It contains a consistent
// copy of the store (SQLite), the archive of the log, the CRLs, the files of trust sources, and the configuration. Its last
// file is a [Manifest] with the size and the SHA-256 of each other file. It never contains the keys or PINs of an HSM, nor the
// server's own credentials, which a server makes anew.
//
// [Read] refuses a backup that is truncated, altered, of a newer format, or encrypted to other recipients. [Restore] replays the
// archive of the log over the copy, so that nothing that was revoked becomes good, and begins an epoch of the log.
package backup

import (
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// format is the version of backups that this program writes, and the newest that it reads.
const format = 1

// Names in a backup.
const (
	manifestName = "MANIFEST.json"
	storeName    = "store.db"
	archiveName  = "log.archive"
)

// folders are the directories that a backup may contain.
var folders = []string{"config", "crls", "evidence"}

// maxManifest is the maximum size of a manifest in bytes.
const maxManifest = 16 << 20

// A Manifest describes a backup.
type Manifest struct {
	Format      int       `json:"format"`
	Time        time.Time `json:"time"` // when the backup began
	TrustDomain string    `json:"trust_domain"`
	Epoch       string    `json:"epoch"`   // of the log, in hexadecimal
	Entries     uint64    `json:"entries"` // of the archive
	Chain       string    `json:"chain"`   // after the last of them, in hexadecimal
	Schema      int64     `json:"schema"`  // version of the tables; zero if the backup has no copy of the store
	Files       []File    `json:"files"`
}

// A File is a file of a backup.
type File struct {
	Name   string `json:"name"`
	Size   int64  `json:"size"`
	SHA256 string `json:"sha256"`
}

// HasStore reports whether the backup has a copy of the store. A backup of a server on PostgreSQL has none.
func (m *Manifest) HasStore() bool { return m.Schema != 0 }

func parseManifest(text []byte) (m Manifest, err error) {
	if err := json.Unmarshal(text, &m); err != nil {
		return m, damaged("its manifest cannot be read: %v", err)
	}
	if m.Format > format {
		return m, fmt.Errorf("the backup has the format %d, and this brevet reads %d: use the newer brevet that made it", m.Format, format)
	}
	return m, nil
}

// checkName returns an error for a file that no backup has.
func checkName(name string) error {
	folder, _, isBelow := strings.Cut(name, "/")
	switch {
	case name == storeName, name == archiveName, name == manifestName:
		return nil
	case isBelow && slices.Contains(folders, folder) && filepath.IsLocal(name) && filepath.ToSlash(filepath.Clean(name)) == name:
		return nil
	}
	return damaged("it contains %q", name)
}

// ErrEncrypted means that a backup is encrypted, and no key was given.
var ErrEncrypted = errors.New("the backup is encrypted: give the age identity of one of its recipients with --key-file")

// DamagedError means that a file is no complete and unaltered backup.
type DamagedError struct{ Detail string }

// Error says what was found, and what the operator can do.
func (e *DamagedError) Error() string {
	return "this is no complete backup of brevet: " + e.Detail + "; nothing was restored: copy the file again, or take another backup"
}

func damaged(detail string, args ...any) error { return &DamagedError{fmt.Sprintf(detail, args...)} }
