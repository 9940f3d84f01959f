package translog

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"sort"
)

// Limits of what an Archive keeps in memory to find an entry in its file.
const (
	minStride = 1024    // entries between two marks
	maxMarks  = 1 << 16 // of 48 bytes each; beyond it, every second mark is dropped and the stride is doubled
	maxRecent = 16
)

// mark is the start of a batch in an archive.
type mark struct {
	before Head  // the head before the batch
	offset int64 // in bytes from the start of the file
}

// marks finds the batch of an entry without reading the whole archive.
type marks struct {
	all    []mark // in order; the first one is the first batch
	stride uint64
	// recent holds the batches at which the last reads ended, at most maxRecent, so that a reader of the whole log reads
	// no batch more than twice.
	recent []mark
}

// add adds the start of the next batch, unless it is too close to the last mark.
func (m *marks) add(at mark) {
	m.stride = max(m.stride, minStride)
	if n := len(m.all); n > 0 && at.before.Size < m.all[n-1].before.Size+m.stride {
		return
	}
	if m.all = append(m.all, at); len(m.all) < maxMarks {
		return
	}
	half := m.all[:0]
	for i := 0; i < len(m.all); i += 2 {
		half = append(half, m.all[i])
	}
	m.all, m.stride = half, 2*m.stride
}

// last returns the last mark before an entry.
func (m *marks) last(index uint64) mark {
	n := sort.Search(len(m.all), func(i int) bool { return m.all[i].before.Size >= index })
	best := mark{offset: int64(headerSize)}
	if n > 0 {
		best = m.all[n-1]
	}
	for _, at := range m.recent {
		if at.before.Size < index && at.before.Size > best.before.Size {
			best = at
		}
	}
	return best
}

// ended records the batch at which a read ended.
func (m *marks) ended(at mark) {
	if len(m.recent) == maxRecent {
		m.recent = slices.Delete(m.recent, 0, 1)
	}
	m.recent = append(m.recent, at)
}

// Entries is like Reader.Entries. It verifies all that it reads from the file, from the last mark on. An altered file is a
// [*CorruptError].
func (a *Archive) Entries(ctx context.Context, from uint64, limit int) ([]Sequenced, error) {
	from = max(from, 1)
	a.mu.Lock()
	f, size, at, end := a.file, a.size, a.marks.last(from), a.end.Head().Size
	a.mu.Unlock()
	if f == nil {
		return nil, fmt.Errorf("read archive: %w", os.ErrClosed)
	}
	if limit < 1 || from > end {
		return nil, nil
	}
	page := NewPage(limit)
	sc := &scanner{
		r:     bufio.NewReaderSize(io.NewSectionReader(f, at.offset, size-at.offset), 64<<10),
		epoch: a.epoch, verified: at.before, offset: at.offset,
	}
	for !page.IsFull() {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		at = mark{sc.verified, sc.offset}
		batch, err := sc.next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, err
		}
		for _, s := range batch {
			if s.Index >= from && !page.IsFull() {
				s.Entry = slices.Clone(s.Entry) // the scanner reuses its buffer
				page.Add(s)
			}
		}
	}
	a.mu.Lock()
	a.marks.ended(at)
	a.mu.Unlock()
	return page.Entries, nil
}

// Holds returns nil if the archive's file has the entries from an index up to a head, and its chain value there is the
// head's. It reads them from the file.
func (a *Archive) Holds(ctx context.Context, from uint64, head Head) error {
	for from <= head.Size {
		page, err := a.Entries(ctx, from, batchSize)
		if err != nil {
			return err
		}
		if len(page) == 0 {
			return &ChainError{Index: from, Detail: "the archive does not have it"}
		}
		for _, s := range page {
			if s.Index == head.Size && s.Chain != head.Chain {
				return &ChainError{Index: s.Index, Detail: fmt.Sprintf("the chain value is %s in the archive, %s in the store", s.Chain, head.Chain)}
			}
		}
		from = page[len(page)-1].Index + 1
	}
	return nil
}
