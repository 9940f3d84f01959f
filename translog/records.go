package translog

import (
	"context"
	"encoding/hex"
	"fmt"
)

// Sequenced is an encoded entry with its position in the log.
type Sequenced struct {
	Index uint64 // from 1 without gaps
	Entry []byte // output of Entry.Marshal
	Chain Hash   // chain value after this entry
}

// Epoch identifies a log. It is drawn at random when the log is created, and again when it forks because its store was
// restored and lost entries. Together with an index it is the position of an entry.
type Epoch [16]byte

// String formats the epoch as hexadecimal.
func (e Epoch) String() string { return hex.EncodeToString(e[:]) }

// EpochFromBytes returns the epoch of 16 bytes.
func EpochFromBytes(b []byte) (Epoch, error) {
	if len(b) != len(Epoch{}) {
		return Epoch{}, fmt.Errorf("an epoch has 16 bytes, and this one %d", len(b))
	}
	return Epoch(b), nil
}

// Head is the end of a log: its last index and chain value.
type Head struct {
	Size  uint64 // the index of the last entry; zero for an empty log
	Chain Hash
}

// PageSize is the size in bytes at which a page of encoded entries ends: the entry that reaches it is the last one.
// Readers keep whole pages in memory, and an entry can have [MaxEntrySize] bytes.
const PageSize = 256 << 10

// Page collects entries until it has a number of them or PageSize bytes.
type Page struct {
	Entries []Sequenced
	limit   int
	size    int
}

// NewPage returns an empty page of at most limit entries.
func NewPage(limit int) *Page { return &Page{limit: limit} }

// Add appends an entry.
func (p *Page) Add(s Sequenced) {
	p.Entries = append(p.Entries, s)
	p.size += len(s.Entry)
}

// IsFull reports whether the page ends with its last entry.
func (p *Page) IsFull() bool { return len(p.Entries) >= p.limit || p.size >= PageSize }

// Store is the log in the database, as the [Sequencer] and the [Remover] use it. The store writes entries unsequenced, in the
// transaction of the change that they record; the Sequencer assigns their indexes. Reads are safe for concurrent use.
type Store interface {
	Removable
	// Sequence assigns the next indexes and chain values to the oldest unsequenced entries, in the order in which their
	// transactions were committed. It does so in one durable transaction and returns these entries. They are a [Page]
	// of at most limit: if it is not full, no more entries waited. If there are none, it writes nothing. If several servers
	// share the store, only the leader sequences: to others, Sequence returns an error that wraps [pki.ErrNotLeader].
	Sequence(ctx context.Context, limit int) ([]Sequenced, error)
	// Written returns the number of entries that were ever written, including unsequenced ones.
	Written(ctx context.Context) (uint64, error)
	// Archived records up to which index this server's archive has the log. Entries beyond it do not leave the store (see
	// Removable).
	Archived(ctx context.Context, index uint64) error
}

// Reader reads the sequenced log. It is safe for concurrent use.
type Reader interface {
	// Epoch returns the epoch of the log.
	Epoch(ctx context.Context) (Epoch, error)
	// Head returns the end of the sequenced log.
	Head(ctx context.Context) (Head, error)
	// Checkpoint returns the last head up to an index whose chain value the store has, also where entries have left it. It
	// is zero if there is none.
	Checkpoint(ctx context.Context, index uint64) (Head, error)
	// Entries returns sequenced entries from an index on, in order and without gaps. They are a [Page] of at most limit,
	// with at least one entry if there is one. If the first of them has left the store, the error is a [*RemovedError].
	Entries(ctx context.Context, from uint64, limit int) ([]Sequenced, error)
}
