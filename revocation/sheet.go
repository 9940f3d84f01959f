package revocation

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
	// chunkSize is how much of a CRL is in one piece on its way to the file, in octets.
	chunkSize = 64 << 10
	// chunks is how many pieces are under way: what is being encoded, hashed and written.
	chunks = 4
)

// sheet is a CRL in the making. It is written in two passes over its entries, for DER says how long something is before it
// says what it is: the first adds up sizes, the second writes to a file. In between nothing of it is kept.
type sheet struct {
	crl     CRL
	listing Listing
	path    string // of its file, which is not yet where it will be published

	head       []byte // of the TBSCertList, before the entries
	extensions []byte // and after them
	listed     int64  // octets of the entries

	reserved int    // octets of the outer header, if the signature is as long as it can be
	tbs      int64  // octets of the TBSCertList
	digest   []byte // of that, where the key signs a digest
}

// draw reads the entries and writes everything of the CRL that is signed to its file.
func (s *sheet) draw(ctx context.Context, i *issuer, view View) error {
	encoder := newEntryEncoder(s.crl.ThisUpdate)
	s.listed, s.crl.Entries = 0, 0
	for e, err := range view.Entries(s.listing) {
		if err != nil {
			return fmt.Errorf("read what is revoked: %w", err)
		}
		s.listed += encoder.size(&e)
		s.crl.Entries++
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	file, err := files.Create(s.path, 0o600)
	if err != nil {
		return err
	}
	defer file.Close() // what matters is flushed when it is sealed
	return s.write(file, i, view, encoder)
}

func (s *sheet) write(file *os.File, i *issuer, view View, encoder *entryEncoder) error {
	content := int64(len(s.head) + len(s.extensions))
	if s.crl.Entries > 0 { // where nothing is revoked, the field is absent (RFC 5280 §5.1.2.6)
		content += int64(headerSize(s.listed)) + s.listed
	}
	s.tbs = int64(headerSize(content)) + content
	s.reserved = headerSize(s.tbs + int64(len(i.scheme.algorithm)) + bitStringSize(i.scheme.longest))
	if _, err := file.Write(make([]byte, s.reserved)); err != nil {
		return err
	}
	out := newStream(file, i.scheme)
	out.buffer = appendHeader(out.buffer, tagSequence, content)
	out.buffer = append(out.buffer, s.head...)
	if s.crl.Entries > 0 {
		out.buffer = appendHeader(out.buffer, tagSequence, s.listed)
	}
	var broken error
	for e, err := range view.Entries(s.listing) {
		if err != nil {
			broken = fmt.Errorf("read what is revoked: %w", err)
			break
		}
		out.buffer = encoder.append(out.buffer, &e)
		if len(out.buffer) >= chunkSize && !out.flush() {
			break
		}
	}
	out.buffer = append(out.buffer, s.extensions...)
	out.flush()
	written, digest, err := out.close()
	if failed := errors.Join(broken, err); failed != nil {
		return failed
	}
	if written != s.tbs {
		return fmt.Errorf("a CRL of %d octets became one of %d: the store yields one thing and then another", s.tbs, written)
	}
	s.digest = digest
	return nil
}

func bitStringSize(signature int) int64 {
	return int64(headerSize(int64(signature+1)) + 1 + signature)
}

// stream hashes and writes in a goroutine of its own, beside whoever encodes.
type stream struct {
	buffer  []byte // what is encoded next goes to its end
	full    chan []byte
	empty   chan []byte
	failed  chan struct{} // closed once writing has failed
	done    chan struct{}
	file    io.Writer
	hash    hash.Hash // nil for none
	written int64
	err     error
}

func newStream(file io.Writer, s scheme) *stream {
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

// flush hands over what is encoded. It reports false once there is no use in encoding more.
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

// seal signs the CRL, completes its file, and flushes it.
func (s *sheet) seal(i *issuer) (err error) {
	file, err := files.OpenFile(s.path, os.O_RDWR|files.NoFollow, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	begin := int64(s.reserved)
	signature, err := i.scheme.sign(i.Signer, i.Certificate.PublicKey, s.digest, io.NewSectionReader(file, begin, s.tbs))
	if err != nil {
		return err
	}
	tail := slices.Clone(i.scheme.algorithm)
	tail = appendHeader(tail, tagBitString, int64(len(signature)+1))
	tail = append(append(tail, 0), signature...) // no unused bits
	outer := appendHeader(nil, tagSequence, s.tbs+int64(len(tail)))
	if len(outer) < s.reserved {
		// A signature that is shorter than it could be has brought the whole below a power of 256.
		if err := shift(file, begin, int64(len(outer)), s.tbs); err != nil {
			return err
		}
		begin = int64(len(outer))
	}
	if _, err := file.WriteAt(outer, 0); err != nil {
		return err
	}
	if _, err := file.WriteAt(tail, begin+s.tbs); err != nil {
		return err
	}
	s.crl.Size = begin + s.tbs + int64(len(tail))
	if err := file.Truncate(s.crl.Size); err != nil {
		return err
	}
	return s.settle(file)
}

// settle flushes the file and, while the disk works, computes its hash.
func (s *sheet) settle(file *os.File) error {
	flushed := make(chan error, 1)
	go func() { flushed <- file.Sync() }()
	sum, err := hashOf(file, s.crl.Size)
	s.crl.SHA256 = sum
	return errors.Join(<-flushed, err)
}

// shift moves n octets of a file towards its beginning.
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

// hashOf hashes so many octets of a file, in pieces.
func hashOf(file io.ReaderAt, size int64) (sum [sha256.Size]byte, err error) {
	h := sha256.New()
	n, err := io.CopyBuffer(struct{ io.Writer }{h}, struct{ io.Reader }{io.NewSectionReader(file, 0, size)}, make([]byte, chunkSize))
	if err == nil && n != size {
		err = io.ErrUnexpectedEOF
	}
	return [sha256.Size]byte(h.Sum(nil)), err
}

// isThis reports whether the file at a path is the CRL that a record is about.
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
