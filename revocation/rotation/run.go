package rotation

import (
	"context"
	"errors"
	"time"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/revocation/internal/retry"
)

const (
	// pollEvery is the interval at which Run reads the open rotations, which another server may have started or ended.
	pollEvery = time.Second
	// checkEvery is the minimum interval at which Run checks whether a certificate of a rotation is due. Between two checks,
	// it waits checkPause times the duration of a check.
	checkEvery = 10 * time.Second
	checkPause = 100
	// forgetAfter is how long Run tries to mark a certificate that the statuses do not have yet.
	forgetAfter = time.Minute
)

// activeRotation is an open rotation whose certificates are marked. Only the goroutine in Run uses it.
type activeRotation struct {
	Rotation
	unknown []pki.CertRef // certificates that the statuses did not have
	since   time.Time     // when they were read
	check   time.Time     // when to check whether a certificate is due
}

// Run activates the open rotations until ctx ends, and ends those of which no certificate is due. If several servers share the
// store, each activates them, and the leader ends them. If the store fails,
// Run logs the error and retries, with growing delays of at most 15 s. Run returns nil.
func (m *Manager) Run(ctx context.Context) error {
	var open [MaxOpen]*activeRotation
	waits := retry.NewBackOff()
	for ctx.Err() == nil {
		wait := pollEvery
		err := m.step(ctx, &open)
		switch {
		case err == nil:
			waits.Reset()
		case ctx.Err() == nil:
			wait = waits.NextBackOff()
			m.log.Error("activating rotations failed, retrying", "wait", wait, "error", err)
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
		case <-m.wanted:
		case <-timer.C:
		}
		timer.Stop()
	}
	return nil
}

// step compares the active rotations with those that are open, and activates or deactivates them.
func (m *Manager) step(ctx context.Context, open *[MaxOpen]*activeRotation) error {
	if m.statuses.CurrentAt().IsZero() {
		return nil // the certificates are not in memory yet
	}
	rotations, err := m.store.OpenRotations(ctx)
	if err != nil {
		return err
	}
	for i, a := range open {
		if a != nil && !contains(rotations, a.ID) {
			open[i] = nil
			m.deactivate(i)
		}
	}
	for _, r := range rotations {
		if err := m.activate(ctx, open, r); err != nil {
			return err
		}
	}
	for i, a := range open {
		if a == nil {
			continue
		}
		a.unknown = m.statuses.Mark(1<<i, a.unknown)
		if m.clock().Sub(a.since) > forgetAfter {
			a.unknown = nil
		}
		if err := m.complete(ctx, i, a); err != nil {
			return err
		}
	}
	return nil
}

func contains(rotations []Rotation, id int64) bool {
	for _, r := range rotations {
		if r.ID == id {
			return true
		}
	}
	return false
}

// activate marks the certificates of a rotation, unless they are marked already.
func (m *Manager) activate(ctx context.Context, open *[MaxOpen]*activeRotation, r Rotation) error {
	free := -1
	for i, a := range open {
		if a == nil {
			free = i
		} else if a.ID == r.ID {
			return nil
		}
	}
	if free < 0 {
		return nil // the store allows no more open rotations than there are marks
	}
	a := &activeRotation{Rotation: r, since: m.clock(), check: m.clock()}
	err := m.store.RotationMembers(ctx, r.ID, func(refs []pki.CertRef) error {
		a.unknown = append(a.unknown, m.statuses.Mark(1<<free, refs)...)
		return nil
	})
	if err != nil {
		m.deactivate(free)
		return err
	}
	open[free] = a
	m.periods[free].Store(&period{r.At, r.Over})
	m.log.Info("rotation active", "id", r.ID, "certificates", r.Affected, "start", r.At, "over", r.Over)
	return nil
}

// deactivate frees a mark. The period goes first, so that no certificate has the window of another rotation.
func (m *Manager) deactivate(i int) {
	m.periods[i].Store(nil)
	m.loads[i].Store(nil)
	m.statuses.Unmark(1 << i)
}

// complete ends the rotation with the mark 1 << i if none of its certificates is due. It checks this from time to time.
func (m *Manager) complete(ctx context.Context, i int, a *activeRotation) error {
	if m.clock().Before(a.check) {
		return nil
	}
	began := time.Now()
	p, err := m.store.RotationProgress(ctx, a.ID, m.now())
	if err != nil {
		return err
	}
	a.check = m.clock().Add(max(checkEvery, checkPause*time.Since(began)))
	m.loads[i].Store(&Load{Open: 1, Renewed: p.Renewed, Due: p.Due, Gone: a.Gone(p)})
	if p.Due > 0 {
		return nil
	}
	_, err = m.store.EndRotation(ctx, End{ID: a.ID, Final: p, Actor: actor, At: m.now()})
	if errors.Is(err, pki.ErrNotLeader) {
		return nil // the leader ends it
	}
	if err != nil {
		return err
	}
	m.want() // deactivates it
	m.log.Info("rotation completed", "id", a.ID, "renewed", p.Renewed)
	return nil
}
