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
	idleInterval = 100 * time.Millisecond // how long an entry waits at most when nobody kicks
)

// Sequencer gives entries their places in the log and appends them to the archive. An entry is never lost and never
// written twice: the store sequences it durably first, and the archive only ever follows the store. So what is done
// after a crash, a failure or a full disk is what is always done.
type Sequencer struct {
	records Store
	archive *Archive
	log     *slog.Logger
	kick    chan struct{}

	// Of the goroutine in Run.
	sequencing, archiving attempt
	behind                bool // the store may hold entries that the archive lacks
	compared              bool // the archive is known to be the beginning of the store's log

	mu       sync.Mutex
	begun    uint64        // rounds begun
	complete uint64        // the last round that ended without an error
	advanced chan struct{} // closed and replaced when complete grows
	failure  error         // why the last round failed, or nil
	ended    chan struct{} // closed when Run has returned
}

// NewSequencer returns a Sequencer between a store and the archive that belongs to it. It logs failures that it retries.
func NewSequencer(records Store, archive *Archive, log *slog.Logger) *Sequencer {
	return &Sequencer{
		records: records, archive: archive, log: log, kick: make(chan struct{}, 1), behind: true,
		sequencing: newAttempt("sequence the log", log), archiving: newAttempt("archive the log", log),
		advanced: make(chan struct{}), ended: make(chan struct{}),
	}
}

// Reconcile compares the archive with the store and appends what the archive lacks. A *MismatchError says that the
// two do not hold the same log, and that the server must not start. Call it before Run, not beside it.
func (s *Sequencer) Reconcile(ctx context.Context) error {
	before := s.archive.Head().Size
	err := s.reconcile(ctx)
	if after := s.archive.Head().Size; after > before {
		s.log.Info("the archive has caught up with the store", "from", before+1, "to", after)
	}
	return err
}

func (s *Sequencer) reconcile(ctx context.Context) error {
	store, err := s.records.Head(ctx)
	if err != nil {
		return fmt.Errorf("translog: read the store's end of the log: %w", err)
	}
	archive := s.archive.Head()
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

// catchUp appends the store's entries up to its head.
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

// entries reads entries that the store's head says there are.
func (s *Sequencer) entries(ctx context.Context, from uint64, limit int, store Head) ([]Sequenced, error) {
	batch, err := s.records.Entries(ctx, from, limit)
	var broken *ChainError
	if errors.As(err, &broken) {
		return nil, &MismatchError{Archive: s.archive.Head(), Store: store, Index: broken.Index, Detail: "in the store, " + broken.Detail}
	}
	if err != nil {
		return nil, fmt.Errorf("translog: read entries from %d on: %w", from, err)
	}
	if len(batch) == 0 || batch[0].Index != from {
		return nil, &MismatchError{Archive: s.archive.Head(), Store: store, Index: from, Detail: "the store does not hold it"}
	}
	return batch, nil
}

// Run sequences and archives until the context ends, and then returns nil. Failures of the store and the disk are
// logged and retried, with growing pauses of up to some ten seconds. While only the archive fails, sequencing goes on,
// so that whoever follows the log is not kept waiting. Run returns a *MismatchError when the archive and the store turn
// out to hold different logs. Call it once.
func (s *Sequencer) Run(ctx context.Context) error {
	defer close(s.ended)
	for {
		err := s.round(ctx)
		var mismatch *MismatchError
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.As(err, &mismatch):
			return err
		}
		s.wait(ctx)
	}
}

// wait returns after a while, a kick, or the context's end.
func (s *Sequencer) wait(ctx context.Context) {
	t := time.NewTimer(idleInterval)
	defer t.Stop()
	select {
	case <-t.C:
	case <-s.kick:
	case <-ctx.Done():
	}
}

// round brings everything that was committed before it into the archive.
func (s *Sequencer) round(ctx context.Context) error {
	s.mu.Lock()
	s.begun++
	number := s.begun
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

func (s *Sequencer) advance(ctx context.Context) error {
	if !s.compared { // first, or an index that the archive has already could be given out again
		if err := s.archiving.try(ctx, s.follow); err != nil {
			return err
		}
	}
	sequenced := s.sequencing.try(ctx, s.sequence)
	return cmp.Or(s.archiving.try(ctx, s.follow), sequenced)
}

// sequence gives all waiting entries their places.
func (s *Sequencer) sequence(ctx context.Context) error {
	for {
		batch, err := s.records.Sequence(ctx, batchSize)
		s.behind = s.behind || err != nil || len(batch) > 0 // an error says little about whether it took effect
		if err != nil {
			return fmt.Errorf("translog: sequence entries: %w", err)
		}
		if len(batch) < batchSize {
			return nil
		}
	}
}

// follow brings the archive up to the store.
func (s *Sequencer) follow(ctx context.Context) error {
	if !s.behind {
		return nil
	}
	if err := s.reconcile(ctx); err != nil {
		return err
	}
	s.behind, s.compared = false, true
	return nil
}

// Kick asks Run to look for entries now instead of at the end of its interval. It never blocks.
func (s *Sequencer) Kick() {
	select {
	case s.kick <- struct{}{}:
	default: // asked already
	}
}

// Sync returns when every entry that was committed before the call is sequenced and archived. When the context ends
// first, the error is Temporary and names what is in the way: the entries are safe in the store. Safe for concurrent use.
func (s *Sequencer) Sync(ctx context.Context) error {
	s.mu.Lock()
	due := s.begun + 1 // a round that has begun may have looked already
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
		case <-s.ended:
			return &unavailable{"the sequencer has stopped", failure}
		case <-ctx.Done():
			return &unavailable{"the log is not yet archived", s.because(ctx.Err())}
		}
	}
}

// because adds to an error what keeps the rounds from completing.
func (s *Sequencer) because(err error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.failure == nil {
		return err
	}
	return fmt.Errorf("%w, because: %w", err, s.failure)
}
