package memory

import (
	"context"
	"slices"
	"time"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/revocation/rotation"
	"github.com/brevet-pki/brevet/store/rules"
)

// CountRotation implements [rotation.Recorder].
func (st *Store) CountRotation(ctx context.Context, r rotation.Request) (rotation.Counts, error) {
	var n rotation.Counts
	err := st.read(ctx, func(s *state) (err error) {
		n, err = s.countRotation(&rules.RecordedRotation{Rotation: rotation.Rotation{Request: r}, Mark: int64(len(s.certs))})
		return err
	})
	return n, err
}

func (s *state) countRotation(r *rules.RecordedRotation) (rotation.Counts, error) {
	var n rotation.Counts
	members, err := s.members(r)
	n.Affected = len(members)
	for i := range s.certs {
		if c := &s.certs[i]; c.Status.State != pki.Revoked && !c.NotAfter.Before(r.At) {
			n.Living++
		}
	}
	return n, err
}

// members returns the indexes of the certificates of a rotation that were not renewed.
func (s *state) members(r *rules.RecordedRotation) ([]int, error) {
	selects, err := s.selector(r.Selection)
	if err != nil {
		return nil, err
	}
	var found []int
	for i := range int(r.Mark) {
		c := &s.certs[i]
		revoked := c.Status.State == pki.Revoked && c.Status.RevokedAt.Before(r.At)
		if c.Delivered && c.Successor.IsZero() && !c.NotAfter.Before(r.At) && !revoked && selects(&c.Certificate) {
			found = append(found, i)
		}
	}
	return found, nil
}

// StartRotation implements [rotation.Recorder].
func (st *Store) StartRotation(ctx context.Context, r rotation.Request) (rotation.Rotation, error) {
	var started rules.RecordedRotation
	err := st.writeOnce(ctx, r.Actor, pki.MayRevoke, r.At, func(s *state) (rules.Outcome, error) {
		started = rules.RecordedRotation{Rotation: rotation.Rotation{ID: int64(len(s.rotations)) + 1, Request: r}, Mark: int64(len(s.certs))}
		n, err := s.countRotation(&started)
		if err == nil {
			err = rotation.CheckOpen(len(s.openRotations()))
		}
		if err == nil {
			err = n.Check(r.Confirm)
		}
		if err != nil {
			return rules.Outcome{}, err
		}
		started.Affected, started.Confirm = n.Affected, 0
		err = s.append(rules.RotationEntry(started))
		started.Actor = r.Actor.Named()
		s.rotations = append(s.rotations, started)
		return rules.Outcome{Rotation: started.ID}, err
	}, func(s *state, have *rules.RecordedRequest) error {
		started = s.rotations[have.Outcome.Rotation-1]
		return nil
	})
	return started.Rotation, err
}

// EndRotation implements [rotation.Recorder].
func (st *Store) EndRotation(ctx context.Context, e rotation.End) (rotation.Rotation, error) {
	var ended rotation.Rotation
	err := st.writeOnce(ctx, e.Actor, pki.MayRevoke, e.At, func(s *state) (rules.Outcome, error) {
		r, err := s.rotation(e.ID)
		if err != nil {
			return rules.Outcome{}, err
		}
		if r.State() == rotation.Open {
			s.endRotation(e)
			err = s.append(rules.RotationEndEntry(r.Rotation, e))
		}
		ended = s.rotations[e.ID-1].Rotation
		return rules.Outcome{Rotation: e.ID}, err
	}, func(s *state, have *rules.RecordedRequest) error {
		ended = s.rotations[have.Outcome.Rotation-1].Rotation
		return nil
	})
	return ended, err
}

func (s *state) endRotation(e rotation.End) {
	r := &s.rotations[e.ID-1]
	r.EndedAt, r.Stopped, r.Final = stored(e.At), e.Stopped, e.Final
}

// rotation returns a rotation, or a refusal if it is not on record.
func (s *state) rotation(id int64) (rules.RecordedRotation, error) {
	if id < 1 || id > int64(len(s.rotations)) {
		return rules.RecordedRotation{}, rules.NoRotation(id)
	}
	return s.rotations[id-1], nil
}

func (s *state) openRotations() (open []rotation.Rotation) {
	for _, r := range s.rotations {
		if r.State() == rotation.Open {
			open = append(open, r.Rotation)
		}
	}
	return open
}

// Rotation implements [rotation.Reader].
func (st *Store) Rotation(ctx context.Context, id int64) (rotation.Rotation, error) {
	var r rules.RecordedRotation
	err := st.read(ctx, func(s *state) (err error) {
		r, err = s.rotation(id)
		return err
	})
	return r.Rotation, err
}

// Rotations implements [rotation.Reader].
func (st *Store) Rotations(ctx context.Context, after int64, limit int) (page []rotation.Rotation, next int64, err error) {
	if err := rules.CheckLimit(limit); err != nil {
		return nil, 0, err
	}
	err = st.read(ctx, func(s *state) error {
		for _, r := range slices.Backward(s.rotations) {
			if after != 0 && r.ID >= after {
				continue
			}
			if len(page) == limit {
				next = page[limit-1].ID
				break
			}
			page = append(page, r.Rotation)
		}
		return nil
	})
	return page, next, err
}

// OpenRotations implements [rotation.Reader].
func (st *Store) OpenRotations(ctx context.Context) ([]rotation.Rotation, error) {
	var open []rotation.Rotation
	err := st.read(ctx, func(s *state) error {
		open = s.openRotations()
		return nil
	})
	return open, err
}

// RotationMembers implements [rotation.Members]. It visits all certificates at once.
func (st *Store) RotationMembers(ctx context.Context, id int64, visit func([]pki.CertRef) error) error {
	var refs []pki.CertRef
	err := st.read(ctx, func(s *state) error {
		r, err := s.rotation(id)
		if err != nil {
			return err
		}
		members, err := s.members(&r)
		for _, i := range members {
			refs = append(refs, s.certs[i].Ref)
		}
		return err
	})
	if err != nil || len(refs) == 0 {
		return err
	}
	return visit(refs)
}

// RotationProgress implements [rotation.Members].
func (st *Store) RotationProgress(ctx context.Context, id int64, at time.Time) (rotation.Progress, error) {
	var p rotation.Progress
	err := st.read(ctx, func(s *state) error {
		r, err := s.rotation(id)
		if err != nil {
			return err
		}
		members, err := s.members(&r)
		p.Renewed = r.Affected
		for _, i := range members {
			c := &s.certs[i]
			if slices.ContainsFunc(s.certs[r.Mark:], func(n cert) bool { return n.Identity == c.Identity && !n.NotAfter.Before(r.At) }) {
				continue
			}
			p.Renewed--
			if c.Status.State != pki.Revoked && !c.NotAfter.Before(at) {
				p.Due++
			}
		}
		return err
	})
	return p, err
}
