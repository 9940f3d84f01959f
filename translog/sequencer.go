package translog

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"
)

const (
	batchSize    = 512                    // entries per transaction and per append
	idleInterval = 100 * time.Millisecond // maximum wait of an entry without Kick
)

// Sequencer assigns indexes to entries and appends the entries to the archive. No entry is lost or written twice: the
// store sequences entries durably first, and the archive follows the store. Recovery after a crash, a failure or a full
// disk is therefore the normal operation.
type Sequencer struct {
	records Store
	archive *Archive
	log     *slog.Logger
	kick    chan struct{}

	// These fields belong to the goroutine in Run.
	sequencing, archiving attempt
	behind                bool // the store may have entries that the archive lacks
	compared              bool // the archive is known to be a prefix of the store's log

	mu       sync.Mutex
	started  uint64        // number of rounds started
	complete uint64        // the last round that succeeded
	advanced chan struct{} // closed and replaced when complete grows
	failure  error         // error of the last round, or nil
	stopped  chan struct{} // closed when Run has returned
}

// NewSequencer returns a Sequencer for a store and its archive. It logs failures, which Run retries.
func NewSequencer(records Store, archive *Archive, log *slog.Logger) *Sequencer {
	return &Sequencer{
		records: records, archive: archive, log: log, kick: make(chan struct{}, 1), behind: true,
		sequencing: newAttempt("sequence", log), archiving: newAttempt("archive", log),
		advanced: make(chan struct{}), stopped: make(chan struct{}),
	}
}

// Reconcile compares the archive with the store and appends what the archive lacks. If it returns a [*MismatchError] or
// an [*EpochError], the two have different logs, and the server must not start. Call it before Run, not concurrently.
func (s *Sequencer) Reconcile(ctx context.Context) error {
	before := s.archive.Head().Size
	err := s.reconcile(ctx)
	if after := s.archive.Head().Size; after > before {
		s.log.Info("appended entries that the archive lacked", "from", before+1, "to", after)
	}
	return err
}

// reconcile compares the archive's head with the store's entry at that index, then appends the later entries.
func (s *Sequencer) reconcile(ctx context.Context) error {
	store, err := s.records.Head(ctx)
	if err != nil {
		return fmt.Errorf("read the store's end of the log: %w", err)
	}
	archive := s.archive.Head()
	epoch, err := s.records.Epoch(ctx)
	if err != nil {
		return fmt.Errorf("read the store's epoch: %w", err)
	}
	if of := s.archive.Epoch(); epoch != of {
		return &EpochError{Archive: of, Store: epoch}
	}
	if store.Size < archive.Size {
		return &MismatchError{Archive: archive, Store: store, Index: store.Size + 1}
	}
	if archive.Size > 0 {
		at, err := s.entries(ctx, archive.Size, 1, store)
		if err != nil {
			return err
		}
		if at[0].Chain != archive.Chain {
			return &MismatchError{Archive: archive, Store: store, Index: archive.Size,
				Detail: fmt.Sprintf("the chain value is %s in the archive, %s in the store", archive.Chain, at[0].Chain)}
		}
	}
	return s.catchUp(ctx, store)
}

// catchUp appends the store's entries up to the given head.
func (s *Sequencer) catchUp(ctx context.Context, store Head) error {
	for head := s.archive.Head(); head.Size < store.Size; head = s.archive.Head() {
		batch, err := s.entries(ctx, head.Size+1, batchSize, store)
		if err != nil {
			return err
		}
		err = s.archive.Append(ctx, batch)
		var broken *ChainError
		if errors.As(err, &broken) {
			return &MismatchError{Archive: head, Store: store, Index: broken.Index, Detail: "in the store, " + broken.Detail}
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// entries reads entries that must exist according to the store's head.
func (s *Sequencer) entries(ctx context.Context, from uint64, limit int, store Head) ([]Sequenced, error) {
	batch, err := s.records.Entries(ctx, from, limit)
	var broken *ChainError
	if errors.As(err, &broken) {
		return nil, &MismatchError{Archive: s.archive.Head(), Store: store, Index: broken.Index, Detail: "in the store, " + broken.Detail}
	}
	if err != nil {
		return nil, fmt.Errorf("read entries from %d on: %w", from, err)
	}
	if len(batch) == 0 || batch[0].Index != from {
		return nil, &MismatchError{Archive: s.archive.Head(), Store: store, Index: from, Detail: "the store does not hold it"}
	}
	return batch, nil
}

// Run sequences and archives entries until the context ends, and then returns nil. It logs failures of the store and
// the disk and retries them after growing pauses of up to about ten seconds. If only the archive fails, sequencing
// continues, because clients that follow the log depend on it. Run returns a [*MismatchError] if the archive and the
// store turn out to have different logs. Call it once.
func (s *Sequencer) Run(ctx context.Context) error {
	defer close(s.stopped)
	for {
		err := s.round(ctx)
		var mismatch *MismatchError
		var other *EpochError
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.As(err, &mismatch), errors.As(err, &other):
			return err
		}
		s.wait(ctx)
	}
}

// wait returns after idleInterval, after Kick, or when the context ends.
func (s *Sequencer) wait(ctx context.Context) {
	t := time.NewTimer(idleInterval)
	defer t.Stop()
	select {
	case <-t.C:
	case <-s.kick:
	case <-ctx.Done():
	}
}

// round archives everything that was committed before it started.
func (s *Sequencer) round(ctx context.Context) error {
	s.mu.Lock()
	s.started++
	number := s.started
	s.mu.Unlock()

	err := s.advance(ctx)

	s.mu.Lock()
	defer s.mu.Unlock()
	s.failure = err
	if err == nil {
		s.complete = number
		close(s.advanced)
		s.advanced = make(chan struct{})
	}
	return err
}

// advance sequences the waiting entries, then archives them.
func (s *Sequencer) advance(ctx context.Context) error {
	if !s.compared { // otherwise an index that the archive already has could be assigned again
		if err := s.archiving.try(ctx, s.archiveNew); err != nil {
			return err
		}
	}
	sequenced := s.sequencing.try(ctx, s.sequence)
	return cmp.Or(s.archiving.try(ctx, s.archiveNew), sequenced)
}

// sequence assigns indexes to all unsequenced entries.
func (s *Sequencer) sequence(ctx context.Context) error {
	for {
		batch, err := s.records.Sequence(ctx, batchSize)
		s.behind = s.behind || err != nil || len(batch) > 0 // after an error the call may have taken effect
		if err != nil {
			return fmt.Errorf("sequence entries: %w", err)
		}
		page := NewPage(batchSize)
		for _, s := range batch {
			page.Add(s)
		}
		if !page.IsFull() {
			return nil
		}
	}
}

// archiveNew archives the store's entries if there may be new ones.
func (s *Sequencer) archiveNew(ctx context.Context) error {
	if !s.behind {
		return nil
	}
	if err := s.reconcile(ctx); err != nil {
		return err
	}
	s.behind, s.compared = false, true
	return nil
}

// Kick makes Run look for entries immediately instead of after its interval. It never blocks.
func (s *Sequencer) Kick() {
	select {
	case s.kick <- struct{}{}:
	default: // already requested
	}
}

// Advanced returns a channel that is closed after the next round that archived all entries, and another one that is
// closed when Run has returned.
func (s *Sequencer) Advanced() (advanced, stopped <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.advanced, s.stopped
}

// Sync waits until every entry that was committed before the call is sequenced and archived. If the context ends first,
// Sync returns a temporary error that names the cause; the entries are safe in the store. Sync is safe for concurrent
// use.
func (s *Sequencer) Sync(ctx context.Context) error {
	s.mu.Lock()
	due := s.started + 1 // the current round may have read the entries already
	s.mu.Unlock()
	s.Kick()
	for {
		s.mu.Lock()
		done, advanced, failure := s.complete >= due, s.advanced, s.failure
		s.mu.Unlock()
		if done {
			return nil
		}
		select {
		case <-advanced:
		case <-s.stopped:
			return &unavailable{"the sequencer has stopped", failure}
		case <-ctx.Done():
			return &unavailable{"the log is not yet archived", s.withCause(ctx.Err())}
		}
	}
}

// withCause adds the error of the last round to err.
func (s *Sequencer) withCause(err error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.failure == nil {
		return err
	}
	return fmt.Errorf("%w, because: %w", err, s.failure)
}
