package translog

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
)

// An archive is the line below and then records, back to back, integers big-endian:
//
//	4 octets   length of the entry
//	8 octets   index
//	4 octets   CRC-32C of the twelve before
//	…          the entry
//	32 octets  chain value
//
// The checksum is there for the length alone: without it, one flipped bit in the middle could look like an append
// that was cut short. Everything else is covered by the chain.
const archiveHeader = "brevet log archive 1\n"

const frameSize = 4 + 8 + 4

// MaxEntrySize is the longest encoded entry, in octets.
const MaxEntrySize = 1 << 20

func checksum(b []byte) uint32 { return crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)) }

func appendRecord(dst []byte, s Sequenced) []byte {
	start := len(dst)
	dst = binary.BigEndian.AppendUint32(dst, uint32(len(s.Entry))) //nolint:gosec // Append refuses entries over MaxEntrySize
	dst = binary.BigEndian.AppendUint64(dst, s.Index)
	dst = binary.BigEndian.AppendUint32(dst, checksum(dst[start:]))
	dst = append(dst, s.Entry...)
	return append(dst, s.Chain[:]...)
}

// Read checks an archive from its start to its end and calls visit, where it is not nil, for every record; the
// record's Entry holds only during the call. It returns the head of what verified, beside an error too: a
// *CorruptError, a *TornError, ErrNotArchive, what visit returned, or the reader's own. Memory is bounded, whatever
// the archive's size.
func Read(r io.Reader, visit func(Sequenced) error) (Head, error) {
	sc, err := newScanner(r)
	if err != nil {
		return Head{}, err
	}
	for {
		s, err := sc.next()
		if err == nil && visit != nil {
			err = visit(s)
		}
		if errors.Is(err, io.EOF) {
			return sc.verified.Head(), nil
		}
		if err != nil {
			return sc.verified.Head(), err
		}
	}
}

// scanner reads an archive's records in order and verifies each.
type scanner struct {
	r        *bufio.Reader
	verified Verifier
	offset   int64 // where the next record begins
	buf      []byte
}

func newScanner(r io.Reader) (*scanner, error) {
	sc := &scanner{r: bufio.NewReaderSize(r, 256<<10), offset: int64(len(archiveHeader))}
	got := make([]byte, len(archiveHeader))
	n, err := io.ReadFull(sc.r, got)
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return nil, fmt.Errorf("translog: read archive: %w", err)
	}
	if string(got[:n]) != archiveHeader {
		return nil, fmt.Errorf("translog: %w", ErrNotArchive)
	}
	return sc, nil
}

// next returns the next record, or io.EOF after the last one. The entry is good until the next call.
func (sc *scanner) next() (Sequenced, error) {
	var frame [frameSize]byte
	if err := sc.fill(frame[:], true); err != nil {
		return Sequenced{}, err
	}
	if binary.BigEndian.Uint32(frame[12:]) != checksum(frame[:12]) {
		return Sequenced{}, sc.bad(frame[:], "the record's length fails its checksum")
	}
	size := int(binary.BigEndian.Uint32(frame[:4]))
	if size > MaxEntrySize {
		return Sequenced{}, sc.corrupt(fmt.Sprintf("the record claims %d octets, more than an entry may have", size))
	}
	if need := size + len(Hash{}); cap(sc.buf) < need {
		sc.buf = make([]byte, need)
	}
	body := sc.buf[:size+len(Hash{})]
	if err := sc.fill(body, false); err != nil {
		return Sequenced{}, err
	}
	s := Sequenced{Index: binary.BigEndian.Uint64(frame[4:12]), Entry: body[:size:size], Chain: Hash(body[size:])}
	if due := sc.verified.Head().Size + 1; s.Index != due {
		return Sequenced{}, sc.corrupt(fmt.Sprintf("the record has index %d", s.Index))
	}
	if sc.verified.Add(s) != nil {
		return Sequenced{}, sc.bad(body, "the record's entry and chain value do not fit")
	}
	sc.offset += int64(len(frame) + len(body))
	return s, nil
}

// fill reads all of b. A file that ends there is torn, unless it ends where a record may begin.
func (sc *scanner) fill(b []byte, first bool) error {
	switch _, err := io.ReadFull(sc.r, b); {
	case err == nil:
		return nil
	case errors.Is(err, io.EOF) && first:
		return io.EOF
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return &TornError{Offset: sc.offset, Index: sc.verified.Head().Size + 1}
	default:
		return fmt.Errorf("translog: read archive: %w", err)
	}
}

// bad tells an append that power loss cut short from a record that was altered. Space that a file system gave the
// file and never wrote reads as zeros, up to the end of the file; anything else has been written by somebody.
func (sc *scanner) bad(read []byte, detail string) error {
	if read[len(read)-1] != 0 {
		return sc.corrupt(detail)
	}
	buf := make([]byte, 64<<10)
	for {
		n, err := sc.r.Read(buf)
		if len(bytes.Trim(buf[:n], "\x00")) > 0 {
			return sc.corrupt(detail)
		}
		if errors.Is(err, io.EOF) {
			return &TornError{Offset: sc.offset, Index: sc.verified.Head().Size + 1}
		}
		if err != nil {
			return fmt.Errorf("translog: read archive: %w", err)
		}
	}
}

func (sc *scanner) corrupt(detail string) error {
	return &CorruptError{Offset: sc.offset, Index: sc.verified.Head().Size + 1, Detail: detail}
}
