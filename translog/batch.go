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

// archiveHeader is the first line of an archive. The 16 bytes of the log's epoch follow it, and 4 bytes of their CRC-32C.
// Then batches follow without gaps. Integers are big-endian:
//
//	4 bytes   length of the entries, including their length prefixes
//	8 bytes   index of the first entry
//	4 bytes   CRC-32C of the preceding 12 bytes
//	…         the entries, each after its length as a Protocol Buffers varint in its shortest form
//	32 bytes  chain value after the last entry
//
// The checksum protects only the length: a flipped bit there could look like an interrupted append. The chain protects
// everything else.
const archiveHeader = "brevet log archive 3\n"

// headerSize is the size in bytes of the header, which precedes the first batch.
const headerSize = len(archiveHeader) + len(Epoch{}) + 4

// appendHeader appends the header of an archive.
func appendHeader(dst []byte, epoch Epoch) []byte {
	dst = append(append(dst, archiveHeader...), epoch[:]...)
	return binary.BigEndian.AppendUint32(dst, checksum(epoch[:]))
}

// frameSize is the size in bytes of the fields before the entries.
const frameSize = 4 + 8 + 4

// MaxEntrySize is the maximum size of an encoded entry in bytes.
const MaxEntrySize = 1 << 20

// These constants bound a batch, because a reader holds it in memory. maxBatchSize counts entries with their length
// prefixes, which have at most three bytes.
const (
	maxBatchSize    = 3 + MaxEntrySize
	maxBatchEntries = 4096
)

func checksum(b []byte) uint32 { return crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)) }

// batches splits records into batches of maximum size.
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

// sizeOf returns the size of an entry in a batch, in bytes.
func sizeOf(entry []byte) int { return protowire.SizeBytes(len(entry)) }

// appendBatch appends the encoding of a batch to dst.
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

// Read verifies an archive from start to end. It calls visit, unless that is nil, for every record of each verified
// batch; the record's Entry is valid only during the call. It returns the head after the last verified batch, also
// together with an error. The error is a [*CorruptError], a [*TornError], ErrNotArchive, or an error of visit or the
// reader. Read uses a bounded amount of memory.
func Read(r io.Reader, visit func(Sequenced) error) (Head, error) {
	head, _, err := ReadEpoch(r, visit)
	return head, err
}

// ReadEpoch is Read, and also returns the epoch of the log.
func ReadEpoch(r io.Reader, visit func(Sequenced) error) (Head, Epoch, error) {
	sc, err := newScanner(r)
	if err != nil {
		return Head{}, Epoch{}, err
	}
	head, err := sc.all(visit)
	return head, sc.epoch, err
}

// Measure verifies an archive like [ReadEpoch], and returns the size of what it verified, in bytes. It accepts an archive that
// ends within a batch, because a server may append to it.
func Measure(r io.Reader) (Head, Epoch, int64, error) {
	sc, err := newScanner(r)
	if err != nil {
		return Head{}, Epoch{}, 0, err
	}
	head, err := sc.all(nil)
	if torn := (*TornError)(nil); errors.As(err, &torn) {
		err = nil
	}
	return head, sc.epoch, sc.offset, err
}

// all reads all batches.
func (sc *scanner) all(visit func(Sequenced) error) (Head, error) {
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

// scanner reads and verifies the batches of an archive in order.
type scanner struct {
	r        *bufio.Reader
	epoch    Epoch
	verified Head
	offset   int64 // start of the next batch
	buf      []byte
	batch    []Sequenced
}

func newScanner(r io.Reader) (*scanner, error) {
	sc := &scanner{r: bufio.NewReaderSize(r, 256<<10), offset: int64(headerSize)}
	got := make([]byte, headerSize)
	n, err := io.ReadFull(sc.r, got)
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return nil, fmt.Errorf("read archive: %w", err)
	}
	if n == headerSize {
		sc.epoch = Epoch(got[len(archiveHeader):])
	}
	if !bytes.Equal(got[:n], appendHeader(nil, sc.epoch)) {
		return nil, ErrNotArchive
	}
	return sc, nil
}

// next returns the records of the next batch, valid until the next call, or io.EOF after the last batch.
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
		return nil, sc.corrupt(fmt.Sprintf("it has %d bytes instead of 1 to %d", size, maxBatchSize))
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
		// An interrupted append leaves zeros from some point on: before the chain value, or within it.
		written := bytes.TrimRight(chain, "\x00")
		return nil, sc.bad(len(written) == 0 || whole && bytes.HasPrefix(head.Chain[:], written), "its entries and its chain value do not fit")
	}
	sc.verified = head
	sc.offset += int64(len(frame) + len(body))
	return sc.batch, nil
}

// split decodes the entries of a batch and computes the head after them. whole is false if they are malformed.
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

// fill reads all of b. If the file ends, fill returns io.EOF at the start of a batch, and a TornError within one.
func (sc *scanner) fill(b []byte, first bool) error {
	switch _, err := io.ReadFull(sc.r, b); {
	case err == nil:
		return nil
	case errors.Is(err, io.EOF) && first:
		return io.EOF
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return sc.torn()
	default:
		return fmt.Errorf("read archive: %w", err)
	}
}

// bad returns the error for a batch that does not verify. Space that a file system allocated but never wrote reads as
// zeros to the end of the file. If everything from here on is zeros, the append was interrupted; otherwise the batch
// was altered.
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
			return fmt.Errorf("read archive: %w", err)
		}
	}
}

func (sc *scanner) torn() error { return &TornError{Offset: sc.offset, Index: sc.verified.Size + 1} }

func (sc *scanner) corrupt(detail string) error {
	return &CorruptError{Offset: sc.offset, Index: sc.verified.Size + 1, Detail: detail}
}
