package translog

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	if os.Getenv(appenderEnv) != "" {
		os.Exit(appendUntilKilled())
	}
	goleak.VerifyTestMain(m)
}

// testEpoch is the epoch of the logs in these tests.
var testEpoch = Epoch{0xe9}

// entryTime is the time of entries in these tests.
var entryTime = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// header returns the header of an archive of testEpoch.
func header() []byte { return appendHeader(nil, testEpoch) }

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// extend returns n records that continue a head, each with a different entry.
func extend(head Head, n int) []Sequenced {
	var records []Sequenced
	for range n {
		entry := fmt.Appendf(nil, "entry %d", head.Size+1)
		head = Head{Size: head.Size + 1, Chain: Chain(head.Chain, entry)}
		records = append(records, Sequenced{Index: head.Size, Entry: entry, Chain: head.Chain})
	}
	return records
}

// memory is a minimal Store in memory. The stores of the product have their own conformance suite.
type memory struct {
	mu        sync.Mutex
	waiting   [][]byte
	sequenced []Sequenced
	first     int                                       // the number of sequenced entries that have left
	archived  uint64                                    // as reported
	fault     func(call string) (apply bool, err error) // nil for none
}

var errStore = errors.New("the store is unavailable")

func (m *memory) commit(entry string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.waiting = append(m.waiting, []byte(entry))
}

func (m *memory) inject(call string) (bool, error) {
	if m.fault == nil {
		return true, nil
	}
	return m.fault(call)
}

func (m *memory) head() Head {
	if n := len(m.sequenced); n > 0 {
		return Head{Size: m.sequenced[n-1].Index, Chain: m.sequenced[n-1].Chain}
	}
	return Head{}
}

func (m *memory) Epoch(context.Context) (Epoch, error) { return testEpoch, nil }

func (m *memory) Written(context.Context) (uint64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return uint64(len(m.sequenced) + len(m.waiting)), nil
}

func (m *memory) Sequence(_ context.Context, limit int) ([]Sequenced, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	apply, err := m.inject("Sequence")
	if !apply {
		return nil, err
	}
	from := len(m.sequenced)
	for range min(limit, len(m.waiting)) {
		head := m.head()
		m.sequenced = append(m.sequenced, Sequenced{
			Index: head.Size + 1, Entry: m.waiting[0], Chain: Chain(head.Chain, m.waiting[0]),
		})
		m.waiting = m.waiting[1:]
	}
	if err != nil {
		return nil, err
	}
	return m.sequenced[from:len(m.sequenced):len(m.sequenced)], nil
}

func (m *memory) Head(context.Context) (Head, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, err := m.inject("Head"); err != nil {
		return Head{}, err
	}
	return m.head(), nil
}

func (m *memory) Entries(_ context.Context, from uint64, limit int) ([]Sequenced, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, err := m.inject("Entries"); err != nil {
		return nil, err
	}
	for i, s := range m.sequenced {
		if s.Index >= from {
			if i < m.first {
				return nil, &RemovedError{Index: from, First: uint64(m.first) + 1}
			}
			end := min(i+limit, len(m.sequenced))
			return m.sequenced[i:end:end], nil
		}
	}
	return nil, nil
}

func (m *memory) Archived(_ context.Context, index uint64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.archived = index
	return nil
}

// Checkpoint knows the boundary and multiples of four.
func (m *memory) Checkpoint(_ context.Context, index uint64) (Head, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for ; index > 0; index-- {
		if index%4 == 0 || index >= uint64(m.first) {
			return Head{Size: index, Chain: m.sequenced[index-1].Chain}, nil
		}
	}
	return Head{}, nil
}

func (m *memory) Remove(_ context.Context, from uint64, to Head) (bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	apply, err := m.inject("Remove")
	if !apply || to.Size >= m.head().Size || uint64(m.first)+1 != from {
		return false, err
	}
	m.first = int(to.Size)
	return err == nil, err
}
