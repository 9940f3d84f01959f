package backup

import (
	"archive/tar"
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"

	"filippo.io/age"
	"golang.org/x/sys/unix"
)

// ageIntro is how a file begins that age has encrypted.
const ageIntro = "age-encryption.org/v1\n"

// Read verifies a backup and writes its files below an empty directory, durably. identities decrypt it; without any, the backup
// must be plain text. The error is a [*DamagedError], ErrEncrypted, or names what else is wrong. After an error, the
// directory may contain files.
func Read(r io.Reader, identities []age.Identity, dir string) (Manifest, error) {
	plain, err := decrypt(r, identities)
	if err != nil {
		return Manifest{}, err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return Manifest{}, err
	}
	defer root.Close()
	text, found, err := unpack(tar.NewReader(plain), root)
	if err != nil {
		return Manifest{}, err
	}
	if _, err := io.Copy(io.Discard, plain); err != nil { // age verifies that the file is complete at its end
		return Manifest{}, damaged("%v", err)
	}
	m, err := parseManifest(text)
	if err != nil {
		return m, err
	}
	if !slices.Equal(found, m.Files) {
		return m, damaged("its files are not those that its manifest names")
	}
	if !slices.ContainsFunc(m.Files, func(f File) bool { return f.Name == archiveName }) {
		return m, damaged("it has no archive of the log")
	}
	return m, nil
}

// decrypt returns the plain text of a backup.
func decrypt(r io.Reader, identities []age.Identity) (io.Reader, error) {
	buffered := bufio.NewReader(r)
	intro, err := buffered.Peek(len(ageIntro))
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("read the backup: %w", err)
	}
	encrypted := string(intro) == ageIntro
	switch {
	case encrypted && len(identities) == 0:
		return nil, ErrEncrypted
	case !encrypted && len(identities) > 0:
		return nil, errors.New("the backup is not encrypted, so its writer is unknown: leave out --key-file if that is what you expect")
	case !encrypted:
		return buffered, nil
	}
	plain, err := age.Decrypt(buffered, identities...)
	if none := (*age.NoIdentityMatchError)(nil); errors.As(err, &none) {
		return nil, errors.New("the backup is encrypted to other recipients: give the age identity of one of them with --key-file")
	}
	if err != nil {
		return nil, damaged("%v", err)
	}
	return plain, nil
}

// unpack writes the files before the manifest, and returns the manifest and what it wrote.
func unpack(r *tar.Reader, root *os.Root) (manifest []byte, found []File, err error) {
	for {
		header, err := r.Next()
		if errors.Is(err, io.EOF) && manifest != nil {
			return manifest, found, nil
		}
		if err != nil {
			return nil, nil, damaged("after %d files: %v", len(found), err)
		}
		if manifest != nil || header.Typeflag != tar.TypeReg || hasHoles(header) {
			return nil, nil, damaged("it contains %q", header.Name)
		}
		if err := checkName(header.Name); err != nil {
			return nil, nil, err
		}
		if header.Name == manifestName {
			if header.Size > maxManifest {
				return nil, nil, damaged("its manifest has %d bytes", header.Size)
			}
			if manifest, err = io.ReadAll(r); err != nil {
				return nil, nil, damaged("%v", err)
			}
			continue
		}
		f, err := unpackFile(r, root, header)
		if err != nil {
			return nil, nil, err
		}
		found = append(found, f)
	}
}

// hasHoles reports whether a file is sparse. A few bytes of a backup could then fill the disk.
func hasHoles(header *tar.Header) bool {
	for key := range header.PAXRecords {
		if strings.HasPrefix(key, "GNU.sparse.") {
			return true
		}
	}
	return false
}

// unpackFile writes one file.
func unpackFile(r io.Reader, root *os.Root, header *tar.Header) (found File, err error) {
	f, err := create(root, header.Name)
	if errors.Is(err, fs.ErrExist) || errors.Is(err, unix.ENOTDIR) {
		return File{}, damaged("it contains %q, or a file above it, twice", header.Name)
	}
	if err != nil {
		return File{}, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	digest := sha256.New()
	read := &errorReader{r: r}
	n, err := io.Copy(io.MultiWriter(f, digest), read)
	if read.err != nil {
		return File{}, damaged("in %s: %v", header.Name, read.err)
	}
	if err != nil {
		return File{}, err
	}
	return File{Name: header.Name, Size: n, SHA256: hex.EncodeToString(digest.Sum(nil))}, f.Sync()
}

// create creates a file and the directories above it.
func create(root *os.Root, name string) (*os.File, error) {
	if err := root.MkdirAll(path.Dir(name), 0o700); err != nil {
		return nil, err
	}
	return root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
}

// errorReader remembers the error of a reader, to tell it from that of a writer.
type errorReader struct {
	r   io.Reader
	err error
}

func (e *errorReader) Read(b []byte) (int, error) {
	n, err := e.r.Read(b)
	if err != nil && !errors.Is(err, io.EOF) {
		e.err = err
	}
	return n, err
}

// ParseIdentities returns the age identities of a file that age-keygen wrote.
func ParseIdentities(text []byte) ([]age.Identity, error) {
	identities, err := age.ParseIdentities(bytes.NewReader(text))
	if err != nil {
		return nil, errors.New("the file does not contain age identities (AGE-SECRET-KEY-1…), as age-keygen writes them")
	}
	return identities, nil
}
