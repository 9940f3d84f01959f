package crl

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"slices"

	"github.com/brevet-pki/brevet/files"
)

const (
	// chunkSize is the size of the chunks in which a CRL is written to its file, in bytes.
	chunkSize = 64 << 10
	// chunks is the number of buffers of a stream. While one is filled, others are hashed and written.
	chunks = 4
)

// builder writes and signs one CRL. In DER, the length of a list precedes its elements. The builder therefore reads the
// entries twice: first to add up their sizes, and then to write them to a file. It does not hold the entries in memory.
type builder struct {
	crl     CRL
	listing Listing
	path    string // path of the temporary file

	head       []byte // fields of the TBSCertList before the entries
	extensions []byte // extensions of the TBSCertList, after the entries
	listed     int64  // size of the entries, in bytes

	reserved int    // size of the outer header if the signature has its maximum length, in bytes
	tbs      int64  // size of the TBSCertList, in bytes
	digest   []byte // digest of the TBSCertList, if the key signs a digest
}

// write writes the TBSCertList of the CRL to its file.
func (b *builder) write(ctx context.Context, i *issuer, view View) error {
	encoder := newEntryEncoder(b.crl.ThisUpdate)
	b.listed, b.crl.Entries = 0, 0
	for e, err := range view.Entries(b.listing) {
		if err != nil {
			return fmt.Errorf("read the revoked certificates: %w", err)
		}
		b.listed += encoder.size(&e)
		b.crl.Entries++
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	file, err := files.Create(b.path, 0o600)
	if err != nil {
		return err
	}
	defer file.Close() // sign opens the file again and flushes it
	return b.writeTBS(file, i, view, encoder)
}

// writeTBS writes the TBSCertList, and leaves space before it for the outer header.
func (b *builder) writeTBS(file *os.File, i *issuer, view View, encoder *entryEncoder) error {
	content := int64(len(b.head) + len(b.extensions))
	if b.crl.Entries > 0 { // without entries the field must be absent (RFC 5280 §5.1.2.6)
		content += int64(headerSize(b.listed)) + b.listed
	}
	b.tbs = int64(headerSize(content)) + content
	b.reserved = headerSize(b.tbs + int64(len(i.scheme.algorithm)) + bitStringSize(i.scheme.maxSize))
	if _, err := file.Write(make([]byte, b.reserved)); err != nil {
		return err
	}
	out := newStream(file, i.scheme)
	out.buffer = appendHeader(out.buffer, tagSequence, content)
	out.buffer = append(out.buffer, b.head...)
	if b.crl.Entries > 0 {
		out.buffer = appendHeader(out.buffer, tagSequence, b.listed)
	}
	var broken error
	for e, err := range view.Entries(b.listing) {
		if err != nil {
			broken = fmt.Errorf("read the revoked certificates: %w", err)
			break
		}
		out.buffer = encoder.append(out.buffer, &e)
		if len(out.buffer) >= chunkSize && !out.flush() {
			break
		}
	}
	out.buffer = append(out.buffer, b.extensions...)
	out.flush()
	written, digest, err := out.close()
	if failed := errors.Join(broken, err); failed != nil {
		return failed
	}
	if written != b.tbs {
		return fmt.Errorf("the TBSCertList has %d bytes instead of %d: the two passes over the store differ", written, b.tbs)
	}
	b.digest = digest
	return nil
}

func bitStringSize(signature int) int64 {
	return int64(headerSize(int64(signature+1)) + 1 + signature)
}

// stream hashes and writes buffers in a goroutine, while its caller fills the next buffer.
type stream struct {
	buffer  []byte // buffer that the caller fills
	full    chan []byte
	empty   chan []byte
	failed  chan struct{} // closed when a write has failed
	done    chan struct{}
	file    io.Writer
	hash    hash.Hash // nil if the key signs no digest
	written int64
	err     error
}

func newStream(file io.Writer, s signatureScheme) *stream {
	o := &stream{
		full: make(chan []byte, chunks), empty: make(chan []byte, chunks), failed: make(chan struct{}), done: make(chan struct{}), file: file,
	}
	if s.hash != 0 {
		o.hash = s.hash.New()
	}
	for range chunks {
		o.empty <- make([]byte, 0, chunkSize+1024)
	}
	o.buffer = <-o.empty
	go o.run()
	return o
}

func (o *stream) run() {
	defer close(o.done)
	for b := range o.full {
		if o.err == nil {
			if o.hash != nil {
				o.hash.Write(b)
			}
			var n int
			n, o.err = o.file.Write(b)
			o.written += int64(n)
			if o.err != nil {
				close(o.failed)
			}
		}
		o.empty <- b[:0]
	}
}

// flush passes the buffer to the goroutine. It returns false if a write has failed.
func (o *stream) flush() bool {
	o.full <- o.buffer
	o.buffer = <-o.empty
	select {
	case <-o.failed:
		return false
	default:
		return true
	}
}

func (o *stream) close() (written int64, digest []byte, err error) {
	close(o.full)
	<-o.done
	if o.hash != nil {
		digest = o.hash.Sum(nil)
	}
	return o.written, digest, o.err
}

// sign signs the CRL, completes the file, and flushes it.
func (b *builder) sign(i *issuer) (err error) {
	file, err := files.OpenFile(b.path, os.O_RDWR|files.NoFollow, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	begin := int64(b.reserved)
	signature, err := i.scheme.sign(i.Signer, i.Certificate.PublicKey, b.digest, io.NewSectionReader(file, begin, b.tbs))
	if err != nil {
		return err
	}
	tail := slices.Clone(i.scheme.algorithm)
	tail = appendHeader(tail, tagBitString, int64(len(signature)+1))
	tail = append(append(tail, 0), signature...) // the BIT STRING has no unused bits
	outer := appendHeader(nil, tagSequence, b.tbs+int64(len(tail)))
	if len(outer) < b.reserved {
		// The signature is shorter than its maximum length, and therefore the outer header may be, too.
		if err := shift(file, begin, int64(len(outer)), b.tbs); err != nil {
			return err
		}
		begin = int64(len(outer))
	}
	if _, err := file.WriteAt(outer, 0); err != nil {
		return err
	}
	if _, err := file.WriteAt(tail, begin+b.tbs); err != nil {
		return err
	}
	b.crl.Size = begin + b.tbs + int64(len(tail))
	if err := file.Truncate(b.crl.Size); err != nil {
		return err
	}
	return b.flush(file)
}

// flush flushes the file to disk, and computes its hash at the same time.
func (b *builder) flush(file *os.File) error {
	flushed := make(chan error, 1)
	go func() { flushed <- file.Sync() }()
	sum, err := hashOf(file, b.crl.Size)
	b.crl.SHA256 = sum
	return errors.Join(<-flushed, err)
}

// shift moves n bytes of a file to an earlier offset.
func shift(file *os.File, from, to, n int64) error {
	buffer := make([]byte, chunkSize)
	for done := int64(0); done < n; {
		part := buffer[:min(int64(len(buffer)), n-done)]
		if _, err := file.ReadAt(part, from+done); err != nil {
			return err
		}
		if _, err := file.WriteAt(part, to+done); err != nil {
			return err
		}
		done += int64(len(part))
	}
	return nil
}

// hashOf hashes the first size bytes of a file.
func hashOf(file io.ReaderAt, size int64) (sum [sha256.Size]byte, err error) {
	h := sha256.New()
	n, err := io.CopyBuffer(struct{ io.Writer }{h}, struct{ io.Reader }{io.NewSectionReader(file, 0, size)}, make([]byte, chunkSize))
	if err == nil && n != size {
		err = io.ErrUnexpectedEOF
	}
	return [sha256.Size]byte(h.Sum(nil)), err
}

// isThis reports whether the file at a path contains the CRL in this record.
func (c *CRL) isThis(path string) bool {
	file, err := files.Open(path)
	if err != nil {
		return false
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil || info.Size() != c.Size {
		return false
	}
	sum, err := hashOf(file, c.Size)
	return err == nil && sum == c.SHA256
}

// ETag returns the entity tag (RFC 9110 §8.8.3) of the CRL's file.
func (c *CRL) ETag() string { return `"` + hex.EncodeToString(c.SHA256[:16]) + `"` }
