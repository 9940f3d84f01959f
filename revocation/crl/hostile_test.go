package crl_test

import (
	"bytes"
	"crypto/x509"
	"encoding/binary"
	"encoding/pem"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/revocation/crl"
	"github.com/brevet-pki/brevet/revocation/internal/revtest"
)

// TestMirrorWithHostileFiles creates files with the names of published CRLs, like another account with write permission
// for the directory could.
func TestMirrorWithHostileFiles(t *testing.T) {
	link := func(t *testing.T, victim, path string) { must(t, os.Symlink(victim, path)) }
	hard := func(t *testing.T, victim, path string) { must(t, os.Link(victim, path)) }
	fifo := func(t *testing.T, _, path string) { must(t, syscall.Mkfifo(path, 0o600)) }
	full := func(t *testing.T, _, path string) { must(t, os.MkdirAll(filepath.Join(path, "x"), 0o700)) }
	empty := func(t *testing.T, _, path string) { must(t, os.Mkdir(path, 0o700)) }
	for name, c := range map[string]struct {
		lay     func(t *testing.T, victim, path string)
		at      func(full, partition string) string
		blocked string // path of the file that cannot be published, or ""
	}{
		"a symbolic link at the temporary name":           {link, temporary, ""},
		"a hard link at the temporary name":               {hard, temporary, ""},
		"a FIFO at the temporary name":                    {fifo, temporary, ""},
		"an empty directory at the temporary name":        {empty, temporary, ""},
		"a directory at the temporary name":               {full, temporary, "full"},
		"a symbolic link at the name":                     {link, final, ""},
		"a hard link at the name":                         {hard, final, ""},
		"a FIFO at the name":                              {fifo, final, ""},
		"a directory at the name":                         {full, final, "full"},
		"a symbolic link at the name in PEM":              {link, inPEM, ""},
		"a FIFO at the name in PEM":                       {fifo, inPEM, ""},
		"a FIFO at the chain":                             {fifo, chain, ""},
		"a symbolic link at the chain's temporary name":   {link, func(f, p string) string { return temporary(chain(f, p), "") }, ""},
		"a symbolic link at a partition's temporary name": {link, func(_, p string) string { return temporary(p, "") }, ""},
		"a FIFO for the partitions' directory":            {fifo, func(_, p string) string { return filepath.Dir(p) }, "partition"},
		"a symbolic link for the partitions' directory": {func(t *testing.T, victim, path string) {
			must(t, os.Symlink(filepath.Dir(victim), path))
		}, func(_, p string) string { return filepath.Dir(p) }, "partition"},
	} {
		t.Run(name, func(t *testing.T) {
			synctestScene(t, func(t *testing.T, s *scene) {
				victim, dir := filepath.Join(t.TempDir(), "log.archive"), t.TempDir()
				write(t, victim, []byte("everything that ever changed"))
				s.further, s.points = []string{dir}, []crl.Point{s.pointIn(1, "pki.example")}
				full, partition := s.path(dir, 0, false), s.path(dir, 1, false)
				path := c.at(full, partition)
				must(t, os.MkdirAll(filepath.Dir(path), 0o700))
				c.lay(t, victim, path)
				s.start(t, revtest.Never)
				stop := s.running(t)
				wait(time.Minute)
				for which, path := range map[string]string{"full": full, "partition": partition} {
					info, err := os.Lstat(path)
					published := err == nil && info.Mode().IsRegular() && numberIn(t, path) == 1
					if published != (c.blocked != which) {
						t.Errorf("the %s CRL is published: %t", which, published)
					}
				}
				if failure := s.Mirrors()[dir]; (failure != nil) != (c.blocked != "") {
					t.Errorf("publishing to the directory fails with %v", failure)
				}
				stop()
				info, err := os.Stat(victim)
				if err != nil || info.Mode().Perm() != 0o600 || string(read(t, victim)) != "everything that ever changed" {
					t.Errorf("the server's own file has changed: %v %v %q", err, info.Mode(), read(t, victim))
				}
				if all, err := os.ReadDir(filepath.Dir(victim)); err != nil || len(all) != 1 {
					t.Errorf("files beside the server's own file: %v, %v", all, err)
				}
			})
		})
	}
}

func final(full, _ string) string { return full }
func inPEM(full, _ string) string { return full + ".pem" }
func chain(full, _ string) string { return filepath.Join(filepath.Dir(full), "chain.crl.pem") }
func temporary(full, _ string) string {
	return filepath.Join(filepath.Dir(full), ".unfinished-"+filepath.Base(full))
}

// TestMirrorRacedWithLinks replaces temporary files by symbolic links as fast as possible while CRLs are published.
func TestMirrorRacedWithLinks(t *testing.T) {
	s := newScene(t, revtest.Never)
	victim, dir := filepath.Join(t.TempDir(), "log.archive"), t.TempDir()
	write(t, victim, []byte("everything that ever changed"))
	s.further = []string{dir}
	s.start(t, revtest.Never)
	full := s.path(dir, 0, false)
	var racing sync.WaitGroup
	done := make(chan struct{})
	for _, path := range []string{temporary(full, ""), full, temporary(chain(full, ""), "")} {
		racing.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
					_ = os.Remove(path)
					_ = os.Symlink(victim, path)
				}
			}
		})
	}
	for range 30 {
		_ = crl.PutFull(s.Updater, dir) // fails if a link already exists
	}
	close(done)
	racing.Wait()
	info, err := os.Stat(victim)
	if err != nil || info.Mode().Perm() != 0o600 || string(read(t, victim)) != "everything that ever changed" {
		t.Errorf("the server's own file has changed: %v %v %q", err, info.Mode(), read(t, victim))
	}
}

// TestMirrorDoesNotRespond blocks one directory. It must be reported, and must delay neither the other directories nor
// the shutdown.
func TestMirrorDoesNotRespond(t *testing.T) {
	synctestScene(t, func(t *testing.T, s *scene) {
		blockedDir, workingDir := t.TempDir(), t.TempDir()
		s.further = []string{blockedDir, workingDir}
		s.start(t, revtest.Never)
		back := make(chan struct{})
		crl.HoldDirectory(s.Updater, blockedDir, func() { <-back })
		stop := s.running(t)
		wait(2 * time.Minute)
		if n := numberIn(t, s.path(workingDir, 0, false)); n != 1 {
			t.Errorf("CRL %d is in the other directory, want 1", n)
		}
		if failures := s.Mirrors(); failures[blockedDir] == nil || failures[workingDir] != nil || s.log.Count("is blocked, waiting") != 1 {
			t.Errorf("the directories' errors are %v", failures)
		}
		back <- struct{}{}
		wait(time.Minute)
		if n := numberIn(t, s.path(blockedDir, 0, false)); n != 1 || s.Mirrors()[blockedDir] != nil {
			t.Errorf("after the directory responds again, it has CRL %d and the error %v", n, s.Mirrors()[blockedDir])
		}
		s.revoke(t, func() pki.CertRef { _, ref := s.issue(t); return ref }(), pki.Superseded)
		wait(2 * time.Second)
		begun := time.Now()
		stop()
		if took := time.Since(begun); took > time.Minute {
			t.Errorf("the shutdown took %v", took)
		}
		close(back)
		wait(time.Minute)
	})
}

// TestPEMFilesMatchDER compares the PEM files with the DER files.
func TestPEMFilesMatchDER(t *testing.T) {
	synctestScene(t, func(t *testing.T, s *scene) {
		dir := t.TempDir()
		s.further = []string{dir}
		s.start(t, revtest.Never)
		if _, err := s.Import(t.Context(), rootCRL(t, s.root, nil), operator); err != nil {
			t.Fatal(err)
		}
		s.running(t)
		wait(time.Minute)
		for range 3000 { // so that the CRL is longer than a chunk
			s.revoke(t, func() pki.CertRef { _, ref := s.issue(t); return ref }(), pki.Superseded)
		}
		wait(time.Minute)
		full := s.path(dir, 0, false)
		der := [][]byte{read(t, full), read(t, filepath.Join(dir, s.root.ID().Short()+".crl"))}
		for path, want := range map[string][][]byte{full + ".pem": der[:1], chain(full, ""): der} {
			rest, info := read(t, path), error(nil)
			if stat, err := os.Stat(path); err != nil || stat.Mode().Perm() != 0o644 {
				t.Errorf("%s: %v %v", path, info, err)
			}
			for _, crl := range want {
				var block *pem.Block
				if block, rest = pem.Decode(rest); block == nil || block.Type != "X509 CRL" || !bytes.Equal(block.Bytes, crl) {
					t.Fatalf("%s does not contain the CRLs in DER", path)
				}
				if !bytes.Equal(pem.EncodeToMemory(block), pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: crl})) {
					t.Errorf("%s differs from the output of encoding/pem", path)
				}
			}
			if len(rest) > 0 {
				t.Errorf("%s has trailing data: %.100q", path, rest)
			}
		}
		if list, err := x509.ParseRevocationList(der[0]); err != nil || len(list.RevokedCertificateEntries) != 3000 || len(der[0]) < 65536 {
			t.Errorf("the CRL has %d bytes, %v", len(der[0]), err)
		}
	})
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// zeros is a file of a given size. It starts with a prefix, and continues with zero bytes, which are empty elements.
type zeros struct {
	t      *testing.T
	prefix []byte
	reads  int
}

// ReadAt implements io.ReaderAt.
func (z *zeros) ReadAt(p []byte, at int64) (int, error) {
	if z.reads++; z.reads > 20 {
		z.t.Fatal("reading the number takes more than 20 reads")
	}
	clear(p)
	if at < int64(len(z.prefix)) {
		copy(p, z.prefix[at:])
	}
	return len(p), nil
}

// ReadNumber refuses a large file with many elements after a few reads.
func TestReadNumberOfManyElements(t *testing.T) {
	t.Parallel()
	const size = 1 << 30
	file := &zeros{t: t, prefix: sequenceOf(sequenceOf(nil, size-12), size-6)}
	if n, err := crl.ReadNumber(file, size); err == nil {
		t.Errorf("ReadNumber = %d, want an error", n)
	}
}

// sequenceOf returns the beginning of a SEQUENCE with the given length.
func sequenceOf(begin []byte, length uint32) []byte {
	return append(binary.BigEndian.AppendUint32([]byte{0x30, 0x84}, length), begin...)
}

// TestMirrorWithSparseCRL creates a sparse file in the directory that looks like a large CRL. The file may stay, but
// nothing must be copied from it.
func TestMirrorWithSparseCRL(t *testing.T) {
	for _, number := range []byte{1, 99} {
		synctestScene(t, func(t *testing.T, s *scene) {
			dir := t.TempDir()
			s.further = []string{dir}
			full := s.path(dir, 0, false)
			const hole = 64 << 20
			extensions := []byte{0xa0, 14, 0x30, 12, 0x30, 10, 0x06, 3, 0x55, 0x1d, 0x14, 0x04, 3, 0x02, 1, number}
			length := uint32(6 + hole + len(extensions))
			begin := sequenceOf(sequenceOf(sequenceOf(nil, hole), length), length+6)
			file, err := os.Create(full)
			must(t, err)
			_, err = file.Write(begin)
			must(t, err)
			_, err = file.WriteAt(extensions, int64(len(begin))+hole)
			must(t, errors.Join(err, file.Close()))
			if n := numberIn(t, full); n != int64(number) {
				t.Fatalf("the file has the number %d", n)
			}
			s.start(t, revtest.Never)
			s.running(t)
			wait(time.Minute)
			for _, path := range []string{inPEM(full, ""), chain(full, "")} {
				if info, err := os.Stat(path); err == nil && info.Size() > 1<<20 {
					t.Errorf("number %d: %s has %d bytes", number, filepath.Base(path), info.Size())
				}
			}
			if err := s.Mirrors()[dir]; err != nil {
				t.Errorf("number %d: publishing to the directory fails with %v", number, err)
			}
		})
	}
}
