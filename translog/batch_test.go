package translog

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// batchBytes returns the size of a batch of n records that the helper extend wrote. Each index must have one digit.
func batchBytes(n int) int { return frameSize + n*sizeOf([]byte("entry 1")) + len(Hash{}) }

// The bytes below are on disks. If this test fails, the format has changed and needs another header.
func TestArchiveGolden(t *testing.T) {
	first := Chain(Hash{}, []byte("one"))
	second := Chain(first, []byte("two"))
	want := "brevet log archive 3\n" + "\xe9" + strings.Repeat("\x00", 15) + "\xfc|\x0eI" + "\x00\x00\x00\x08" + "\x00\x00\x00\x00\x00\x00\x00\x01" + "\x61\x78\xc4\xc9" + "\x03one" + "\x03two" + string(second[:])
	path := filepath.Join(t.TempDir(), "log")
	appendTo(t, open(t, path), []Sequenced{{1, []byte("one"), first}, {2, []byte("two"), second}})
	if got, err := os.ReadFile(path); err != nil || string(got) != want {
		t.Errorf("archive %q, %v; want %q", got, err, want)
	}
}

// A change of any single byte is found and never repaired.
func TestEveryChangeIsFound(t *testing.T) {
	whole := written(t, 4)
	batchOf := map[int]int{} // start of the batch that contains a byte
	first := map[int]int{}   // first entry of the batch at an offset
	for at, entry := headerSize, 1; at < len(whole); {
		n := min(len(first)+1, 5-entry)
		first[at] = entry
		for i := range batchBytes(n) {
			batchOf[at+i] = at
		}
		at, entry = at+batchBytes(n), entry+n
	}
	for at := range len(whole) {
		for _, bit := range []byte{0x01, 0x80} {
			spoiled := bytes.Clone(whole)
			spoiled[at] ^= bit
			path := file0600(t, spoiled)
			_, err := OpenArchive(path, testEpoch, quiet())
			if at < headerSize {
				if !errors.Is(err, ErrNotArchive) {
					t.Fatalf("byte %d of the header changed: %v", at, err)
				}
				continue
			}
			offset, index := batchOf[at], first[batchOf[at]]
			var corrupt *CorruptError
			if !errors.As(err, &corrupt) || corrupt.Index != uint64(index) || corrupt.Offset != int64(offset) {
				t.Fatalf("byte %d changed: %v, want a CorruptError at offset %d, entry %d", at, err, offset, index)
			}
			if !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), strconv.Itoa(offset)) {
				t.Errorf("the error lacks the path or the offset: %v", err)
			}
			if now, err := os.ReadFile(path); err != nil || !bytes.Equal(now, spoiled) {
				t.Fatalf("byte %d changed: the open wrote to the file", at)
			}
		}
	}
}

// A chain value that ends in a zero byte looks like an interrupted append. The change is found because the entries that
// it covers do not match.
func TestChangeBeforeZeroByteIsFound(t *testing.T) {
	records := extend(Head{}, 1)
	for n := 0; records[0].Chain[31] != 0; n++ {
		records[0].Entry = fmt.Appendf(nil, "entry %d", n)
		records[0].Chain = Chain(Hash{}, records[0].Entry)
	}
	whole := appendBatch(header(), records)
	for at := headerSize + frameSize; at < len(whole)-len(Hash{}); at++ {
		spoiled := bytes.Clone(whole)
		spoiled[at] ^= 1
		_, err := Read(bytes.NewReader(spoiled), nil)
		var corrupt *CorruptError
		if !errors.As(err, &corrupt) {
			t.Errorf("byte %d changed: %v, want a CorruptError", at, err)
		}
	}
}

// framed returns an archive of one batch with arbitrary bytes as entries and the given chain value.
func framed(index uint64, entries string, chain Hash) []byte {
	frame := binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint32(nil, uint32(len(entries))), index)
	frame = binary.BigEndian.AppendUint32(frame, checksum(frame))
	return slices.Concat(header(), frame, []byte(entries), chain[:])
}

func TestRewritingIsFound(t *testing.T) {
	whole := header()
	for _, s := range extend(Head{}, 5) {
		whole = appendBatch(whole, []Sequenced{s})
	}
	begin, size := headerSize, batchBytes(1)
	cut := func(from, to int) []byte {
		return append(bytes.Clone(whole[:begin+from*size]), whole[begin+to*size:]...)
	}
	swapped := bytes.Clone(whole)
	copy(swapped[begin+size:], whole[begin+2*size:begin+3*size])
	copy(swapped[begin+2*size:], whole[begin+size:begin+2*size])
	one := Chain(Hash{}, []byte("one"))
	var many Head
	for range maxBatchEntries + 1 {
		many = Head{many.Size + 1, Chain(many.Chain, []byte("x"))}
	}
	if _, err := Read(bytes.NewReader(framed(1, "\x03one", one)), nil); err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string][]byte{
		"a batch removed":                   cut(1, 2),
		"the first batch removed":           cut(0, 1),
		"two batches swapped":               swapped,
		"one batch twice":                   append(bytes.Clone(whole), whole[begin+4*size:]...),
		"text after the end":                append(bytes.Clone(whole), strings.Repeat("x", 100)...),
		"a frame of text":                   append(bytes.Clone(whole), strings.Repeat("x", frameSize)...),
		"zeros, then text":                  append(append(bytes.Clone(whole), make([]byte, 1<<17)...), 'x'),
		"a batch that is too long":          framed(1, strings.Repeat("x", maxBatchSize+1), one),
		"too many entries":                  framed(1, strings.Repeat("\x01x", maxBatchEntries+1), many.Chain),
		"an empty batch":                    framed(1, "", Hash{}),
		"an empty entry":                    framed(1, "\x00", Chain(Hash{}, nil)),
		"a length not in its shortest form": framed(1, "\x83\x00one", one),
		"a length beyond the batch":         framed(1, "\x04one", one),
		"a length that does not end":        framed(1, "\x03one\xff", one),
		"a length that is too large":        framed(1, "\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01one", one),
		"another first entry":               framed(2, "\x03one", one),
		"zeros instead of a batch":          append(append(bytes.Clone(whole[:begin+size]), make([]byte, size)...), whole[begin+2*size:]...),
		"zeros instead of a chain value":    append(append(bytes.Clone(whole[:begin+size-32]), make([]byte, 32)...), whole[begin+size:]...),
		"an extra byte at the end":          append(bytes.Clone(whole[:len(whole)-1]), 0, 'x'),
	} {
		path := file0600(t, b)
		_, err := OpenArchive(path, testEpoch, quiet())
		var corrupt *CorruptError
		if !errors.As(err, &corrupt) {
			t.Errorf("%s: %v, want a CorruptError", name, err)
		}
	}
	for _, other := range []string{"brevet log archive 2\n", "brevet log archive 4\n", "SQLite format 3\x00 and what follows it", "x"} {
		if _, err := OpenArchive(file0600(t, []byte(other)), testEpoch, quiet()); !errors.Is(err, ErrNotArchive) {
			t.Errorf("%q: %v, want ErrNotArchive", other, err)
		}
	}
}

// All appended records can be read back, in batches of bounded size.
func TestBatchesAreBounded(t *testing.T) {
	shared := bytes.Repeat([]byte{'x'}, MaxEntrySize)
	rapid.Check(t, func(t *rapid.T) {
		var records []Sequenced
		size := rapid.SampledFrom([]int{1, 127, 128, 2000, MaxEntrySize / 2, MaxEntrySize/2 + 1, MaxEntrySize - 1, MaxEntrySize})
		for _, n := range rapid.SliceOfN(size, 0, 6).Draw(t, "sizes") {
			records = append(records, Sequenced{Entry: shared[:n]})
		}
		few := rapid.SampledFrom([]int{0, maxBatchEntries - 1, maxBatchEntries, maxBatchEntries + 1}).Draw(t, "small ones")
		for range few {
			records = append(records, Sequenced{Entry: shared[:1]})
		}
		head := Head{}
		for i := range records {
			head = Head{head.Size + 1, Chain(head.Chain, records[i].Entry)}
			records[i].Index, records[i].Chain = head.Size, head.Chain
		}
		content := header()
		for batch := range batches(records) {
			before := len(content)
			content = appendBatch(content, batch)
			if size := len(content) - before - frameSize - len(Hash{}); size > maxBatchSize || len(batch) > maxBatchEntries {
				t.Fatalf("a batch of %d entries, %d bytes", len(batch), size)
			}
		}
		if int64(len(content)-headerSize) != appendSize(records) {
			t.Fatalf("%d bytes, want %d", len(content), appendSize(records))
		}
		var index uint64
		got, err := Read(bytes.NewReader(content), func(s Sequenced) error {
			if want := records[index]; s.Index != want.Index || s.Chain != want.Chain || !bytes.Equal(s.Entry, want.Entry) {
				t.Fatalf("record %d is read as record %d of %d bytes", index+1, s.Index, len(s.Entry))
			}
			index++
			return nil
		})
		if err != nil || got != head || index != head.Size {
			t.Fatalf("read up to %d of %d, %d visited: %v", got.Size, head.Size, index, err)
		}
	})
}

func TestReadReturnsErrors(t *testing.T) {
	whole := written(t, 3)
	enough := errors.New("enough")
	visits := 0
	head, err := Read(bytes.NewReader(whole), func(Sequenced) error {
		if visits++; visits == 2 {
			return enough
		}
		return nil
	})
	if !errors.Is(err, enough) || visits != 2 {
		t.Errorf("Read = %+v, %v after %d visits", head, err, visits)
	}
	for cut := range len(whole) {
		broken := io.MultiReader(bytes.NewReader(whole[:cut]), failingReader{enough})
		if _, err := Read(broken, nil); !errors.Is(err, enough) {
			t.Fatalf("a reader that fails at %d: %v", cut, err)
		}
	}
}

type failingReader struct{ err error }

func (r failingReader) Read([]byte) (int, error) { return 0, r.err }
