package backup

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"filippo.io/age"
	"golang.org/x/sys/unix"

	"github.com/brevet-pki/brevet/files"
	"github.com/brevet-pki/brevet/store/sqlite"
	"github.com/brevet-pki/brevet/translog"
)

// A Source is a server whose backup is written. The server may be running.
type Source struct {
	TrustDomain string
	Store       string            // path of the SQLite file; empty for PostgreSQL
	Archive     string            // path of the log's archive
	CRLs        string            // directory of the published CRLs
	Evidence    string            // directory of the files of trust sources
	Config      map[string]string // paths of the configuration and the files that it names, by name in the backup
}

// Write writes a backup to a new file, encrypted to the recipients. Without recipients it is plain text. The file appears
// under its name when it is complete and durable; before that it is path+".part". After an error, neither exists.
//
// The copy of the store is made in the directory of the store, as store.db.backup, and removed afterwards.
func Write(ctx context.Context, s Source, recipients []age.Recipient, path string) (m Manifest, err error) {
	part, err := createLocked(path + ".part")
	if err != nil {
		return m, err
	}
	defer func() {
		err = errors.Join(err, part.Close())
		if err != nil {
			_ = os.Remove(part.Name()) // the first error is reported
		}
	}()
	var out io.Writer = part
	seal := func() error { return nil }
	if len(recipients) > 0 {
		sealed, err := age.Encrypt(part, recipients...)
		if err != nil {
			return m, fmt.Errorf("encrypt the backup: %w", err)
		}
		out, seal = sealed, sealed.Close
	}
	if m, err = s.write(ctx, out); err != nil {
		return m, err
	}
	if err := errors.Join(seal(), part.Sync()); err != nil {
		return m, fmt.Errorf("write the backup: %w", err)
	}
	if _, err := os.Lstat(path); err == nil {
		return m, fmt.Errorf("%s exists already: choose another name", path)
	}
	if err := os.Rename(part.Name(), path); err != nil {
		return m, err
	}
	return m, files.Flush(filepath.Dir(path))
}

// createLocked creates an empty file for its owner, and locks it. It fails if another process has it locked. It replaces a file
// that a process left that was killed, and never writes to one that it has not created: another account could have it open.
func createLocked(path string) (*os.File, error) {
	left, err := lockAt(path, 0)
	if err == nil {
		err = errors.Join(os.Remove(path), left.Close()) // removed while it is locked
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	f, err := lockAt(path, os.O_CREATE|os.O_EXCL)
	if errors.Is(err, fs.ErrExist) {
		err = otherWrites(path)
	}
	return f, err
}

// lockAt opens a file with additional flags, and locks it.
func lockAt(path string, flags int) (*os.File, error) {
	f, err := files.OpenFile(path, os.O_RDWR|files.NoFollow|flags, 0o600)
	if err != nil {
		return nil, err
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		err = otherWrites(path)
	}
	if err == nil {
		err = isAt(f, path)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

func otherWrites(path string) error {
	return fmt.Errorf("another process writes %s: wait for its end, and run the command again", path)
}

// isAt returns an error if a locked file is no longer the one with its name, because another process has renamed or removed
// it.
func isAt(f *os.File, path string) error {
	have, err := f.Stat()
	if err != nil {
		return err
	}
	named, err := os.Stat(path)
	if err != nil || !os.SameFile(have, named) {
		return otherWrites(path)
	}
	return nil
}

// write writes the tar file.
func (s *Source) write(ctx context.Context, out io.Writer) (Manifest, error) {
	w := &writer{tar: tar.NewWriter(out), now: time.Now().UTC().Truncate(time.Second)}
	m := Manifest{Format: format, TrustDomain: s.TrustDomain, Time: w.now}
	// The archive is read before the store, so that the store has all entries of the archive.
	if err := s.writeArchive(w, &m); err != nil {
		return m, err
	}
	if s.Store != "" {
		if err := s.writeStore(ctx, w, &m); err != nil {
			return m, err
		}
	}
	if err := w.tree("crls", s.CRLs); err != nil {
		return m, err
	}
	if err := w.tree("evidence", s.Evidence); err != nil {
		return m, err
	}
	for _, name := range slices.Sorted(maps.Keys(s.Config)) {
		if err := w.file(path.Join("config", name), s.Config[name]); err != nil {
			return m, err
		}
	}
	m.Files = w.files
	text, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return m, err
	}
	if len(text) > maxManifest {
		return m, fmt.Errorf("the backup has %d files: the server's directories contain files of another program", len(m.Files))
	}
	if err := w.add(manifestName, int64(len(text)), strings.NewReader(string(text))); err != nil {
		return m, err
	}
	return m, w.failed(w.tar.Close())
}

// writeArchive adds the part of the archive that verifies, which a server may be extending.
func (s *Source) writeArchive(w *writer, m *Manifest) error {
	f, err := files.Open(s.Archive)
	if err != nil {
		return fmt.Errorf("open the log's archive: %w", err)
	}
	defer f.Close()
	head, epoch, size, err := translog.Measure(f)
	if err != nil {
		return fmt.Errorf("%w (archive %s)", err, s.Archive)
	}
	m.Epoch, m.Entries, m.Chain = epoch.String(), head.Size, head.Chain.String()
	return w.add(archiveName, size, io.NewSectionReader(f, 0, size))
}

// writeStore copies the store, and adds the copy.
func (s *Source) writeStore(ctx context.Context, w *writer, m *Manifest) (err error) {
	f, err := createLocked(s.Store + ".backup")
	if err != nil {
		return fmt.Errorf("copy the store: %w", err)
	}
	defer func() { err = errors.Join(err, os.Remove(f.Name()), f.Close()) }() // removed while it is locked
	if m.Schema, err = sqlite.Snapshot(ctx, s.Store, f.Name()); err != nil {
		return err
	}
	info, err := f.Stat()
	if err != nil {
		return err
	}
	return w.add(storeName, info.Size(), f)
}

// writer writes files into a tar file, and records their digests.
type writer struct {
	tar   *tar.Writer
	now   time.Time
	files []File
}

func (w *writer) failed(err error) error {
	if err != nil {
		return fmt.Errorf("write the backup: %w", err)
	}
	return nil
}

// add adds a file of a known size.
func (w *writer) add(name string, size int64, content io.Reader) error {
	err := w.tar.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Size: size, Mode: 0o600, ModTime: w.now, Format: tar.FormatPAX})
	if err != nil {
		return w.failed(err)
	}
	digest := sha256.New()
	if _, err := io.CopyN(io.MultiWriter(w.tar, digest), content, size); err != nil {
		return w.failed(fmt.Errorf("%s: %w", name, err))
	}
	w.files = append(w.files, File{Name: name, Size: size, SHA256: hex.EncodeToString(digest.Sum(nil))})
	return nil
}

// file adds a file that is never changed in place.
func (w *writer) file(name, path string) error {
	f, err := files.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	return w.add(name, info.Size(), f)
}

// tree adds the regular files below a directory, if there is one. The server replaces and removes files meanwhile.
func (w *writer) tree(name, dir string) error {
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() && filepath.Ext(path) != ".new" { // which the server is writing
			below, relErr := filepath.Rel(dir, path)
			if relErr != nil {
				return relErr
			}
			err = w.file(name+"/"+filepath.ToSlash(below), path)
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("add the files of %s: %w", dir, err)
	}
	return nil
}
