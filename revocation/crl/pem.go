package crl

import (
	"bufio"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"

	"github.com/brevet-pki/brevet/files"
	"github.com/brevet-pki/brevet/pki"
)

const (
	// pemSuffix is appended to the file name of a full CRL for its copy in PEM.
	pemSuffix = ".pem"
	// bundleName is the file in a mirror that contains the full CRLs of all CAs in PEM.
	bundleName = "chain.crl" + pemSuffix
	// lineSize is the number of bytes that a line of PEM encodes (RFC 7468 §2).
	lineSize = 48
)

// bundleOf returns the CAs whose full CRLs are in the bundle. Those whose CRLs are signed here come first.
func bundleOf(c Config) []pki.IssuerID {
	var all []pki.IssuerID
	for _, i := range c.Issuers {
		all = append(all, pki.IssuerOf(i.Certificate))
	}
	for _, cert := range c.Elsewhere {
		all = append(all, pki.IssuerOf(cert))
	}
	return all
}

// writePEM writes full CRLs from the published directory to a PEM file in the mirror. It omits a CRL whose file is
// missing. It does not read the CRLs in the mirror: other processes can write them, with any size.
func (m *mirror) writePEM(dir *files.Directory, name string, issuers ...pki.IssuerID) error {
	return dir.Replace(name, publicMode, func(w io.Writer) error {
		out := bufio.NewWriterSize(w, chunkSize)
		for _, id := range issuers {
			path := m.from.path(Scope{Issuer: id})
			if err := appendPEM(out, path); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return fmt.Errorf("encode %s: %w", path, err)
			}
		}
		return out.Flush()
	})
}

// writeBundle writes the bundle, unless the mirror contains a newer CRL of one of the CAs. The process that copied the
// newer CRL also writes the bundle.
func (m *mirror) writeBundle(dir *files.Directory) error {
	for _, id := range m.bundle {
		scope := Scope{Issuer: id}
		ours, there := numberOf(files.Open(m.from.path(scope))), numberOf(dir.Open(scope.Path()))
		if ours != nil && there != nil && there.Cmp(ours) > 0 {
			return nil
		}
	}
	return m.writePEM(dir, bundleName, m.bundle...)
}

// appendPEM encodes a CRL in chunks, because a CRL may be larger than the memory.
func appendPEM(out *bufio.Writer, path string) error {
	file, err := files.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return err
	}
	if _, err := ReadNumber(file, info.Size()); err != nil {
		return err
	}
	if _, err := out.WriteString("-----BEGIN X509 CRL-----\n"); err != nil {
		return err
	}
	der := io.NewSectionReader(file, 0, info.Size())
	piece := make([]byte, chunkSize/lineSize*lineSize)
	for {
		n, err := io.ReadFull(der, piece)
		for line := range slices.Chunk(piece[:n], lineSize) {
			if _, werr := out.Write(append(base64.StdEncoding.AppendEncode(out.AvailableBuffer(), line), '\n')); werr != nil {
				return werr
			}
		}
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			break
		}
		if err != nil {
			return err
		}
	}
	_, err = out.WriteString("-----END X509 CRL-----\n")
	return err
}
