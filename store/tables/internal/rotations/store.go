package rotations

import (
	"context"
	"time"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/revocation/rotation"
	"github.com/brevet-pki/brevet/store/engine"
	"github.com/brevet-pki/brevet/store/rules"
	"github.com/brevet-pki/brevet/store/tables/internal/logtable"
)

// WriteOnce runs do in a write transaction that first authorizes the actor. The function do returns the ID of the rotation
// that it changed. If the actor repeats a request, WriteOnce calls again instead, with the ID of the first request.
type WriteOnce func(ctx context.Context, what string, by pki.Actor, at time.Time,
	do func(context.Context, *engine.Tx) (int64, error), again func(context.Context, *engine.Tx, int64) error) error

// Store implements rotation.Store.
type Store struct {
	file  engine.DB
	leads func(context.Context, engine.Querier) error
	write WriteOnce
}

// New returns a Store. The function leads returns an error unless this server leads.
func New(file engine.DB, leads func(context.Context, engine.Querier) error, write WriteOnce) *Store {
	return &Store{file, leads, write}
}

// CountRotation implements [rotation.Recorder].
func (s *Store) CountRotation(ctx context.Context, r rotation.Request) (rotation.Counts, error) {
	row := rules.RecordedRotation{Rotation: rotation.Rotation{Request: r}}
	return s.count(ctx, &row)
}

func (s *Store) count(ctx context.Context, row *rules.RecordedRotation) (rotation.Counts, error) {
	var n rotation.Counts
	err := s.file.ReadMany(ctx, "count the certificates of a rotation", func(ctx context.Context, tx engine.Querier) (err error) {
		n, err = count(ctx, tx, row)
		return err
	})
	return n, err
}

// StartRotation implements [rotation.Recorder]. It counts on a reading connection, and the rotation affects exactly the
// certificates that were counted.
func (s *Store) StartRotation(ctx context.Context, r rotation.Request) (rotation.Rotation, error) {
	row := rules.RecordedRotation{Rotation: rotation.Rotation{Request: r}}
	row.Confirm = 0
	n, err := s.count(ctx, &row)
	if err != nil {
		return rotation.Rotation{}, err
	}
	row.Affected = n.Affected
	err = s.write(ctx, "start a rotation", r.Actor, r.At, func(ctx context.Context, tx *engine.Tx) (int64, error) {
		row.ID = 0
		var open int
		if err := tx.QueryRow(ctx, `SELECT count(*) FROM rotations WHERE ended_at IS NULL`).Scan(&open); err != nil {
			return 0, err
		}
		if err := rotation.CheckOpen(open); err != nil {
			return 0, err
		}
		if err := n.Check(r.Confirm); err != nil {
			return 0, err
		}
		if err := Insert(ctx, tx, &row); err != nil {
			return 0, err
		}
		return row.ID, logtable.Append(ctx, tx, rules.RotationEntry(row))
	}, s.reread(&row))
	row.Actor = row.Actor.Named()
	return row.Rotation, err
}

// reread returns a function that reads the rotation of an earlier request.
func (*Store) reread(row *rules.RecordedRotation) func(context.Context, *engine.Tx, int64) error {
	return func(ctx context.Context, tx *engine.Tx, id int64) (err error) {
		*row, err = read(ctx, tx, id)
		return err
	}
}

// EndRotation implements [rotation.Recorder].
func (s *Store) EndRotation(ctx context.Context, e rotation.End) (rotation.Rotation, error) {
	var row rules.RecordedRotation
	err := s.write(ctx, "end a rotation", e.Actor, e.At, func(ctx context.Context, tx *engine.Tx) (int64, error) {
		var err error
		if row, err = read(ctx, tx, e.ID); err != nil || row.State() != rotation.Open {
			return e.ID, err
		}
		if !e.Stopped {
			if err := s.leads(ctx, tx); err != nil {
				return 0, err
			}
		}
		if err := SetEnd(ctx, tx, e); err != nil {
			return 0, err
		}
		if err := logtable.Append(ctx, tx, rules.RotationEndEntry(row.Rotation, e)); err != nil {
			return 0, err
		}
		row, err = read(ctx, tx, e.ID)
		return e.ID, err
	}, s.reread(&row))
	return row.Rotation, err
}

// Rotation implements [rotation.Reader].
func (s *Store) Rotation(ctx context.Context, id int64) (rotation.Rotation, error) {
	var row rules.RecordedRotation
	err := s.file.Read(ctx, "read a rotation", func(ctx context.Context, tx engine.Querier) (err error) {
		row, err = read(ctx, tx, id)
		return err
	})
	return row.Rotation, err
}

// Rotations implements [rotation.Reader].
func (s *Store) Rotations(ctx context.Context, after int64, limit int) ([]rotation.Rotation, int64, error) {
	if err := rules.CheckLimit(limit); err != nil {
		return nil, 0, err
	}
	if after == 0 {
		after = 1<<63 - 1
	}
	page, err := s.list(ctx, "list rotations", `WHERE r.id < ? ORDER BY r.id DESC LIMIT ?`, after, limit+1)
	if err != nil || len(page) <= limit {
		return page, 0, err
	}
	return page[:limit], page[limit-1].ID, nil
}

// OpenRotations implements [rotation.Reader].
func (s *Store) OpenRotations(ctx context.Context) ([]rotation.Rotation, error) {
	return s.list(ctx, "read the open rotations", `WHERE r.ended_at IS NULL ORDER BY r.id`)
}

func (s *Store) list(ctx context.Context, what, where string, args ...any) ([]rotation.Rotation, error) {
	var all []rotation.Rotation
	err := s.file.Read(ctx, what, func(ctx context.Context, tx engine.Querier) error {
		rows, err := query(ctx, tx, where, args...)
		for _, r := range rows {
			all = append(all, r.Rotation)
		}
		return err
	})
	return all, err
}

// RotationMembers implements [rotation.Members].
func (s *Store) RotationMembers(ctx context.Context, id int64, visit func([]pki.CertRef) error) error {
	return s.file.ReadMany(ctx, "read the certificates of a rotation", func(ctx context.Context, tx engine.Querier) error {
		row, err := read(ctx, tx, id)
		if err != nil {
			return err
		}
		return members(ctx, tx, &row, visit)
	})
}

// RotationProgress implements [rotation.Members].
func (s *Store) RotationProgress(ctx context.Context, id int64, at time.Time) (rotation.Progress, error) {
	var p rotation.Progress
	err := s.file.ReadMany(ctx, "count the certificates of a rotation", func(ctx context.Context, tx engine.Querier) error {
		row, err := read(ctx, tx, id)
		if err != nil {
			return err
		}
		p, err = progress(ctx, tx, &row, at)
		return err
	})
	return p, err
}
