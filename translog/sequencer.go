package translog

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/brevet-pki/brevet/pki"
)

const (
	batchSize    = 512                    // entries per transaction and per append
	idleInterval = 100 * time.Millisecond // maximum wait of an entry without Kick
	reportEvery  = 10 * time.Minute       // how often the store gets to know the end of the archive
)

// Sequencer assigns indexes to entries and appends the entries to the archive. No entry is lost or written twice: the
// store sequences entries durably first, and the archive follows the store. Recovery after a crash, a failure or a full
// disk is therefore the normal operation.
type Sequencer struct {
	records Store
	archive *Archive
	copy    *Copy // nil if there is none
	log     *slog.Logger
	kick    chan struct{}

	// These fields belong to the goroutine in Run.
	sequencing, archiving attempt
	reporting             attempt
	reportAt              time.Time
	behind                bool // the store may have entries that the archive lacks
	compared              bool // the archive is known to be a prefix of the store's log
	goal                  goal // zero if there is none

	mu       sync.Mutex
	started  uint64        // number of rounds started
	complete uint64        // the last round that succeeded
	advanced chan struct{} // closed and replaced when a round has archived all sequenced entries
	failure  error         // error of the last round, or nil
	stopped  chan struct{} // closed when Run has returned
}

// A goal is what the archive of a server that does not lead must have, so that a round has succeeded: all entries that were
// written before. It stays until it is reached. The other servers write all the time, so that each later round has to archive
// more.
type goal struct {
	round   uint64
	written uint64 // number of entries
}

// NewSequencer returns a Sequencer for a store and its archive. It logs failures, which Run retries.
func NewSequencer(records Store, archive *Archive, log *slog.Logger) *Sequencer {
	return NewSequencerWithCopy(records, archive, nil, log)
}

// NewSequencerWithCopy is NewSequencer for an archive with a second copy, or nil. Entries that the copy lacks do not leave
// the store.
func NewSequencerWithCopy(records Store, archive *Archive, second *Copy, log *slog.Logger) *Sequencer {
	return &Sequencer{
		copy:    second,
		records: records, archive: archive, log: log, kick: make(chan struct{}, 1), behind: true,
		sequencing: newAttempt("sequence", log), archiving: newAttempt("archive", log),
		reporting: newAttempt("report the end of the archive", log),
		advanced:  make(chan struct{}), stopped: make(chan struct{}),
	}
}

// Reconcile compares the archive with the store and appends what the archive lacks. If it returns a [*MismatchError] or
// an [*EpochError], the two have different logs; a [*BehindError] means that nothing can complete the archive. The server
// must then not start. Call it before Run, not concurrently.
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
		if left := new(RemovedError); errors.As(err, &left) {
			return s.reconcileRemoved(ctx, archive, store, left.First)
		}
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

// reconcileRemoved is reconcile for an archive whose last entry has left the store. It compares the archive with the last
// chain value that the store kept. The archive can be completed only if the store's first entry is the next one.
func (s *Sequencer) reconcileRemoved(ctx context.Context, archive, store Head, first uint64) error {
	kept, err := s.records.Checkpoint(ctx, archive.Size)
	if err != nil {
		return fmt.Errorf("read a chain value: %w", err)
	}
	if kept.Size > 0 {
		err := s.archive.Holds(ctx, kept.Size, kept)
		if broken := new(ChainError); errors.As(err, &broken) {
			return &MismatchError{Archive: archive, Store: store, Index: broken.Index, Detail: broken.Detail}
		}
		if err != nil {
			return err
		}
	}
	if archive.Size+1 < first {
		return &BehindError{Archive: archive, First: first}
	}
	return s.catchUp(ctx, store)
}

// catchUp appends the store's entries up to the given head.
func (s *Sequencer) catchUp(ctx context.Context, store Head) error {
	for head := s.archive.Head(); head.Size < store.Size; head = s.archive.Head() {
		batch, err := s.entries(ctx, head.Size+1, batchSize, store)
		if left := new(RemovedError); errors.As(err, &left) {
			return &BehindError{Archive: head, First: left.First}
		}
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
// store turn out to have different logs, and a [*BehindError] if nothing can complete the archive. It also returns an error
// of the store with a method EndsServer that returns true: the store must not be used by this process any more. Call it once.
func (s *Sequencer) Run(ctx context.Context) error {
	defer close(s.stopped)
	for {
		err := s.round(ctx)
		var mismatch *MismatchError
		var other *EpochError
		var behind *BehindError
		var ends interface {
			error
			EndsServer() bool
		}
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.As(err, &mismatch), errors.As(err, &other), errors.As(err, &behind), errors.As(err, &ends) && ends.EndsServer():
			return err
		}
		s.report(ctx)
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

// round archives everything that was committed before it started. If another server leads, later rounds may complete it.
func (s *Sequencer) round(ctx context.Context) error {
	s.mu.Lock()
	s.started++
	number := s.started
	s.mu.Unlock()

	done, err := s.advance(ctx, number)

	s.mu.Lock()
	defer s.mu.Unlock()
	s.failure = err
	if err == nil {
		s.complete = done
	}
	if err == nil || errors.Is(err, ErrUnsequenced) {
		close(s.advanced)
		s.advanced = make(chan struct{})
	}
	return err
}

// ErrUnsequenced means that this server has archived what is sequenced, but that the leader has not yet sequenced all.
var ErrUnsequenced = errors.New("the server that leads has not yet sequenced all entries")

// advance sequences the waiting entries, then archives them. If another server leads, it archives what that has sequenced. It
// returns the number of the newest round that has succeeded, which is the current one or an earlier one.
func (s *Sequencer) advance(ctx context.Context, round uint64) (done uint64, err error) {
	if !s.compared { // otherwise an index that the archive already has could be assigned again
		if err := s.archiving.try(ctx, s.archiveNew); err != nil {
			return 0, err
		}
	}
	leads := true
	sequenced := s.sequencing.try(ctx, func(ctx context.Context) error {
		err := s.sequence(ctx)
		if leads = !errors.Is(err, pki.ErrNotLeader); !leads {
			return nil
		}
		return err
	})
	if leads {
		s.goal = goal{}
		return round, cmp.Or(s.archiving.try(ctx, s.archiveNew), sequenced)
	}
	return s.follow(ctx, round)
}

// follow archives what the leader has sequenced.
func (s *Sequencer) follow(ctx context.Context, round uint64) (done uint64, err error) {
	err = s.archiving.try(ctx, func(ctx context.Context) error {
		if s.goal == (goal{}) {
			written, err := s.records.Written(ctx)
			if err != nil {
				return fmt.Errorf("count the entries: %w", err)
			}
			s.goal = goal{round, written}
		}
		return s.archiveNew(ctx)
	})
	if err != nil {
		return 0, err
	}
	if s.archive.Head().Size < s.goal.written {
		return 0, ErrUnsequenced
	}
	done, s.goal = s.goal.round, goal{}
	return done, nil
}

// sequence assigns indexes to all unsequenced entries.
func (s *Sequencer) sequence(ctx context.Context) error {
	for {
		batch, err := s.records.Sequence(ctx, batchSize)
		if errors.Is(err, pki.ErrNotLeader) {
			return err
		}
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

// archiveNew archives the store's entries that are new.
func (s *Sequencer) archiveNew(ctx context.Context) error {
	if !s.behind { // another process may have sequenced entries
		head, err := s.records.Head(ctx)
		if err != nil {
			return fmt.Errorf("read the store's end of the log: %w", err)
		}
		if head == s.archive.Head() {
			return nil
		}
	}
	if err := s.reconcile(ctx); err != nil {
		return err
	}
	s.behind, s.compared = false, true
	return nil
}

// report tells the store from time to time up to which index the archive has the log.
func (s *Sequencer) report(ctx context.Context) {
	if now := time.Now(); now.After(s.reportAt) && s.compared {
		size := s.archive.Head().Size
		if s.copy != nil {
			size = min(size, s.copy.Size())
		}
		err := s.reporting.try(ctx, func(ctx context.Context) error { return s.records.Archived(ctx, size) })
		if err == nil {
			s.reportAt = now.Add(reportEvery)
		}
	}
}

// Kick makes Run look for entries immediately instead of after its interval. It never blocks.
func (s *Sequencer) Kick() {
	select {
	case s.kick <- struct{}{}:
	default: // already requested
	}
}

// Advanced returns a channel that is closed after the next round that archived all sequenced entries, and another one that
// is closed when Run has returned.
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
