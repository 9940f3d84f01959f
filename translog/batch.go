package translog

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"iter"

	"google.golang.org/protobuf/encoding/protowire"
)

// An archive is the line below and then batches, back to back, integers big-endian:
//
//	4 octets   length of the entries, with a length before each
//	8 octets   index of the first entry
//	4 octets   CRC-32C of the twelve before
//	…          the entries: the length of each as a varint of Protocol Buffers, in its shortest form, and its octets
//	32 octets  chain value after the last entry
//
// The checksum is there for the length alone: without it, one flipped bit in the middle could look like an append
// that was cut short. Everything else is covered by the chain.
const archiveHeader = "brevet log archive 2\n"

const frameSize = 4 + 8 + 4

// MaxEntrySize is the longest encoded entry, in octets.
const MaxEntrySize = 1 << 20

// A batch is what a reader has to hold in memory: octets of entries with their lengths, of which the longest has three,
// and entries.
const (
	maxBatchSize    = 3 + MaxEntrySize
	maxBatchEntries = 4096
)

func checksum(b []byte) uint32 { return crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)) }

// batches cuts records into batches, each as large as it may be.
func batches(records []Sequenced) iter.Seq[[]Sequenced] {
	return func(yield func([]Sequenced) bool) {
		for len(records) > 0 {
			n, size := 0, 0
			for n < min(len(records), maxBatchEntries) {
				size += sizeOf(records[n].Entry)
				if size > maxBatchSize {
					break
				}
				n++
			}
			if !yield(records[:n:n]) {
				return
			}
			records = records[n:]
		}
	}
}

// sizeOf returns what an entry takes in a batch.
func sizeOf(entry []byte) int { return protowire.SizeBytes(len(entry)) }

// appendBatch appends what an archive holds of records that make one batch.
func appendBatch(dst []byte, batch []Sequenced) []byte {
	start, size := len(dst), 0
	for _, s := range batch {
		size += sizeOf(s.Entry)
	}
	dst = binary.BigEndian.AppendUint32(dst, uint32(size))
	dst = binary.BigEndian.AppendUint64(dst, batch[0].Index)
	dst = binary.BigEndian.AppendUint32(dst, checksum(dst[start:]))
	for _, s := range batch {
		dst = protowire.AppendBytes(dst, s.Entry)
	}
	return append(dst, batch[len(batch)-1].Chain[:]...)
}

// Read checks an archive from its start to its end and calls visit, where it is not nil, for every record of a batch
// that verified; the record's Entry holds only during the call. It returns the head of what verified, which are whole
// batches, beside an error too: a *CorruptError, a *TornError, ErrNotArchive, what visit returned, or the reader's own.
// Memory is bounded, whatever the archive's size.
func Read(r io.Reader, visit func(Sequenced) error) (Head, error) {
	sc, err := newScanner(r)
	if err != nil {
		return Head{}, err
	}
	for {
		batch, err := sc.next()
		if errors.Is(err, io.EOF) {
			return sc.verified, nil
		}
		for i := 0; err == nil && visit != nil && i < len(batch); i++ {
			err = visit(batch[i])
		}
		if err != nil {
			return sc.verified, err
		}
	}
}

// scanner reads an archive's batches in order and verifies each.
type scanner struct {
	r        *bufio.Reader
	verified Head
	offset   int64 // where the next batch begins
	buf      []byte
	batch    []Sequenced
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

// next returns the records of the next batch, or io.EOF after the last one. They are good until the next call.
func (sc *scanner) next() ([]Sequenced, error) {
	var frame [frameSize]byte
	if err := sc.fill(frame[:], true); err != nil {
		return nil, err
	}
	if binary.BigEndian.Uint32(frame[12:]) != checksum(frame[:12]) {
		return nil, sc.bad(frame[frameSize-1] == 0, "its length fails its checksum")
	}
	size := binary.BigEndian.Uint32(frame[:4])
	if size == 0 || size > maxBatchSize {
		return nil, sc.corrupt(fmt.Sprintf("it claims %d octets, and a batch has from 1 to %d", size, maxBatchSize))
	}
	if first := binary.BigEndian.Uint64(frame[4:12]); first != sc.verified.Size+1 {
		return nil, sc.corrupt(fmt.Sprintf("it has index %d", first))
	}
	need := int(size) + len(Hash{})
	if cap(sc.buf) < need {
		sc.buf = make([]byte, need)
	}
	body := sc.buf[:need]
	if err := sc.fill(body, false); err != nil {
		return nil, err
	}
	head, whole := sc.split(body[:size])
	if chain := body[size:]; !whole || Hash(chain) != head.Chain {
		// What was cut short is zeros from there on: the chain value is, or ends, too early.
		written := bytes.TrimRight(chain, "\x00")
		return nil, sc.bad(len(written) == 0 || whole && bytes.HasPrefix(head.Chain[:], written), "its entries and its chain value do not fit")
	}
	sc.verified = head
	sc.offset += int64(len(frame) + len(body))
	return sc.batch, nil
}

// split makes records of a batch's entries, and returns the head that they lead to. It reports whether they are whole.
func (sc *scanner) split(entries []byte) (head Head, whole bool) {
	sc.batch, head = sc.batch[:0], sc.verified
	for len(entries) > 0 {
		entry, n := protowire.ConsumeBytes(entries)
		if n < 0 || len(entry) == 0 || n != sizeOf(entry) || len(sc.batch) == maxBatchEntries {
			return head, false
		}
		head = Head{Size: head.Size + 1, Chain: Chain(head.Chain, entry)}
		sc.batch = append(sc.batch, Sequenced{Index: head.Size, Entry: entry[:len(entry):len(entry)], Chain: head.Chain})
		entries = entries[n:]
	}
	return head, true
}

// fill reads all of b. A file that ends there is torn, unless it ends where a batch may begin.
func (sc *scanner) fill(b []byte, first bool) error {
	switch _, err := io.ReadFull(sc.r, b); {
	case err == nil:
		return nil
	case errors.Is(err, io.EOF) && first:
		return io.EOF
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return sc.torn()
	default:
		return fmt.Errorf("translog: read archive: %w", err)
	}
}

// bad tells an append that power loss cut short from a batch that was altered. Space that a file system gave the
// file and never wrote reads as zeros, up to the end of the file; anything else has been written by somebody.
func (sc *scanner) bad(zeros bool, detail string) error {
	if !zeros {
		return sc.corrupt(detail)
	}
	buf := make([]byte, 64<<10)
	for {
		n, err := sc.r.Read(buf)
		if len(bytes.Trim(buf[:n], "\x00")) > 0 {
			return sc.corrupt(detail)
		}
		if errors.Is(err, io.EOF) {
			return sc.torn()
		}
		if err != nil {
			return fmt.Errorf("translog: read archive: %w", err)
		}
	}
}

func (sc *scanner) torn() error { return &TornError{Offset: sc.offset, Index: sc.verified.Size + 1} }

func (sc *scanner) corrupt(detail string) error {
	return &CorruptError{Offset: sc.offset, Index: sc.verified.Size + 1, Detail: detail}
}
