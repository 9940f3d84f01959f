package translog

import "context"

// Sequenced is an entry with its place in the log.
type Sequenced struct {
	Index uint64 // from 1, without gaps
	Entry []byte // as Entry.Marshal made it
	Chain Hash   // over all entries up to this one
}

// Head is the end of a log.
type Head struct {
	Size  uint64 // the index of the last entry; zero for an empty log
	Chain Hash
}

// Store is the store's side of the log. The store writes entries unsequenced, in the transaction of the change that
// they record; the Sequencer gives them their places. Reads are safe for concurrent use.
type Store interface {
	// Sequence gives the oldest unsequenced entries the next indexes and their chain values, in one durable
	// transaction, in the order in which their changes were committed. It returns them: limit entries, or as many as
	// there are. With nothing to sequence it writes nothing.
	Sequence(ctx context.Context, limit int) ([]Sequenced, error)
	// Head returns the end of the sequenced log.
	Head(ctx context.Context) (Head, error)
	// Written returns how many entries there are, those that wait for their places included.
	Written(ctx context.Context) (uint64, error)
	// Entries returns sequenced entries from an index on, in their order and without a gap: at least one where there
	// is one, at most limit.
	Entries(ctx context.Context, from uint64, limit int) ([]Sequenced, error)
}
