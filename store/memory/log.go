package memory

import (
	"context"
	"crypto/rand"
	"time"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/store/rules"
	"github.com/brevet-pki/brevet/translog"
)

// Sequence implements translog.Store.
func (st *Store) Sequence(ctx context.Context, limit int) ([]translog.Sequenced, error) {
	if err := rules.CheckLimit(limit); err != nil {
		return nil, err
	}
	page := translog.NewPage(limit)
	err := st.write(ctx, func(s *state) error {
		for len(s.sequenced) < len(s.log) && !page.IsFull() {
			head := s.head()
			entry := s.log[head.Size]
			s.sequenced = append(s.sequenced[:head.Size:head.Size], translog.Chain(head.Chain, entry))
			page.Add(s.entry(head.Size + 1))
		}
		return nil
	})
	return page.Entries, err
}

func (s *state) head() translog.Head {
	if len(s.sequenced) == 0 {
		return translog.Head{}
	}
	return translog.Head{Size: uint64(len(s.sequenced)), Chain: s.sequenced[len(s.sequenced)-1]}
}

func (s *state) entry(index uint64) translog.Sequenced {
	return translog.Sequenced{Index: index, Entry: s.log[index-1], Chain: s.sequenced[index-1]}
}

// Head implements translog.Store.
func (st *Store) Head(ctx context.Context) (translog.Head, error) {
	var head translog.Head
	err := st.read(ctx, func(s *state) error {
		head = s.head()
		return nil
	})
	return head, err
}

// Epoch implements translog.Store.
func (st *Store) Epoch(ctx context.Context) (translog.Epoch, error) {
	var epoch translog.Epoch
	err := st.write(ctx, func(s *state) error {
		if s.logEpoch == (translog.Epoch{}) {
			_, _ = rand.Read(s.logEpoch[:]) // never fails: crypto/rand ends the process if it cannot read random bytes
		}
		epoch = s.logEpoch
		return nil
	})
	return epoch, err
}

// Written implements translog.Store.
func (st *Store) Written(ctx context.Context) (uint64, error) {
	var n uint64
	err := st.read(ctx, func(s *state) error {
		n = uint64(len(s.log))
		return nil
	})
	return n, err
}

// Entries implements translog.Store.
func (st *Store) Entries(ctx context.Context, from uint64, limit int) ([]translog.Sequenced, error) {
	if err := rules.CheckLimit(limit); err != nil {
		return nil, err
	}
	page := translog.NewPage(limit)
	err := st.read(ctx, func(s *state) error {
		if err := s.checkRemoved(from); err != nil {
			return err
		}
		for index := max(from, 1); index <= s.head().Size && !page.IsFull(); index++ {
			page.Add(s.entry(index))
		}
		return nil
	})
	return page.Entries, err
}

// checkRemoved returns an error if an entry has left the store.
func (s *state) checkRemoved(index uint64) error {
	if index = max(index, 1); index <= s.removed {
		return &translog.RemovedError{Index: index, First: s.removed + 1}
	}
	return nil
}

// Remove implements translog.Removable.
func (st *Store) Remove(ctx context.Context, from uint64, to translog.Head) (removed bool, err error) {
	err = st.write(ctx, func(s *state) error {
		if removed = to.Size < s.head().Size && to.Size <= s.archived && from == s.removed+1; removed {
			s.removed = to.Size
		}
		return nil
	})
	return removed && err == nil, err
}

// Archived implements translog.Store.
func (st *Store) Archived(ctx context.Context, index uint64) error {
	return st.write(ctx, func(s *state) error {
		s.archived = index
		return nil
	})
}

// Checkpoint implements translog.Reader.
func (st *Store) Checkpoint(ctx context.Context, index uint64) (head translog.Head, err error) {
	err = st.read(ctx, func(s *state) error {
		if index = min(index, s.head().Size); index < s.removed {
			index -= index % translog.SkipEvery
		}
		if index > 0 {
			head = translog.Head{Size: index, Chain: s.sequenced[index-1]}
		}
		return nil
	})
	return head, err
}

// Snapshot implements responder.Feed.
func (st *Store) Snapshot(ctx context.Context, at time.Time, visit func(pki.StatusChange) error) (uint64, error) {
	var index uint64
	var all []pki.StatusChange
	err := st.read(ctx, func(s *state) error {
		index = s.head().Size
		for i := range s.certs {
			if c := &s.certs[i]; !c.NotAfter.Before(at) {
				all = append(all, s.subject(c).Unchanged())
			}
		}
		return nil
	})
	for i := 0; i < len(all) && err == nil; i++ {
		err = visit(all[i])
	}
	if err != nil {
		return 0, err
	}
	return index, nil
}

// Changes implements responder.Feed.
func (st *Store) Changes(ctx context.Context, after uint64, limit int, apply func([]pki.StatusChange)) (uint64, error) {
	if err := rules.CheckLimit(limit); err != nil {
		return after, err
	}
	var changes []pki.StatusChange
	last := after
	err := st.read(ctx, func(s *state) error {
		if err := s.checkRemoved(last + 1); err != nil {
			return err
		}
		for n := 0; n < limit && last < s.head().Size; n++ {
			e, err := translog.ParseEntry(s.entry(last + 1).Entry)
			if err != nil {
				return err
			}
			changes, last = append(changes, e.Changes...), last+1
		}
		return nil
	})
	if err != nil {
		return after, err
	}
	apply(changes)
	return last, nil
}
