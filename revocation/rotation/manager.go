package rotation

import (
	"context"
	"errors"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/revocation/responder"
)

// Statuses holds the statuses of all certificates in memory, with eight marks for each. Its methods are safe for
// concurrent use.
type Statuses interface {
	// Record returns what is known about a certificate, or false if it is unknown.
	Record(ref pki.CertRef) (responder.Record, bool)
	// Mark adds marks to certificates, and returns those that are unknown.
	Mark(marks uint8, refs []pki.CertRef) (unknown []pki.CertRef)
	// Unmark removes marks from all certificates.
	Unmark(marks uint8)
	// CurrentAt returns when the statuses were last known to be complete, and zero before they were read.
	CurrentAt() time.Time
}

// Config holds the dependencies of a Manager.
type Config struct {
	Store    Store
	Statuses Statuses
	Clock    func() time.Time // nil is time.Now
	Log      *slog.Logger     // nil is slog.Default()
}

// Manager starts and stops rotations, and computes when a certificate should be renewed. It is safe for concurrent use.
type Manager struct {
	store    Store
	statuses Statuses
	clock    func() time.Time
	log      *slog.Logger
	wanted   chan struct{}                   // holds one element if Run must read the open rotations
	periods  [MaxOpen]atomic.Pointer[period] // of the rotations whose certificates have the mark 1 << index
	loads    [MaxOpen]atomic.Pointer[Load]   // of the same rotations, when Run has read them last
}

// period is the period of an open rotation.
type period struct {
	start time.Time
	over  time.Duration
}

// Load counts open rotations, and their certificates as of the last check, which Run makes every ten seconds or less often. A
// certificate counts once for each open rotation that affects it.
type Load struct {
	Open, Renewed, Due int
	Gone               int // neither renewed nor due: expired or revoked
}

// Load returns the sum of all open rotations.
func (m *Manager) Load() Load {
	var sum Load
	for i := range m.loads {
		if l := m.loads[i].Load(); l != nil {
			sum = Load{sum.Open + l.Open, sum.Renewed + l.Renewed, sum.Due + l.Due, sum.Gone + l.Gone}
		}
	}
	return sum
}

// actor ends rotations of which no certificate is due.
var actor = pki.ActorSystem("rotations")

// New returns a Manager.
func New(c Config) (*Manager, error) {
	if c.Store == nil || c.Statuses == nil {
		return nil, errors.New("a manager of rotations needs a store and statuses")
	}
	m := &Manager{store: c.Store, statuses: c.Statuses, clock: c.Clock, log: c.Log, wanted: make(chan struct{}, 1)}
	if m.clock == nil {
		m.clock = time.Now
	}
	if m.log == nil {
		m.log = slog.Default()
	}
	return m, nil
}

// now returns the current time truncated to seconds.
func (m *Manager) now() time.Time { return m.clock().UTC().Truncate(time.Second) }

// want wakes Run.
func (m *Manager) want() {
	select {
	case m.wanted <- struct{}{}:
	default:
	}
}

// normalize sets the time of a request, and truncates its period to milliseconds. It returns a refusal if the request is
// invalid.
func (m *Manager) normalize(r Request) (Request, error) {
	r.At = m.now()
	err := r.check()
	r.Over = r.Over.Truncate(time.Millisecond)
	return r, err
}

// Count counts the certificates that a rotation would affect at this time. It changes nothing.
func (m *Manager) Count(ctx context.Context, r Request) (Counts, error) {
	r, err := m.normalize(r)
	if err != nil {
		return Counts{}, err
	}
	return m.store.CountRotation(ctx, r)
}

// Start starts a rotation now. If the error is nil, the rotation is durable, and Run activates it within seconds.
func (m *Manager) Start(ctx context.Context, r Request) (Rotation, error) {
	r, err := m.normalize(r)
	if err != nil {
		return Rotation{}, err
	}
	defer m.want() // after an error, the rotation may be durable nevertheless
	return m.store.StartRotation(ctx, r)
}

// Stop stops a rotation. If it has ended, Stop changes nothing.
func (m *Manager) Stop(ctx context.Context, id int64, by pki.Actor) (Rotation, error) {
	r, p, err := m.Rotation(ctx, id)
	if err != nil || r.State() != Open {
		return r, err
	}
	defer m.want()
	return m.store.EndRotation(ctx, End{ID: id, Stopped: true, Final: p, Actor: by, At: m.now()})
}

// Rotation returns a rotation and its progress.
func (m *Manager) Rotation(ctx context.Context, id int64) (Rotation, Progress, error) {
	r, err := m.store.Rotation(ctx, id)
	if err != nil || r.State() != Open {
		return r, r.Final, err
	}
	p, err := m.store.RotationProgress(ctx, id, m.now())
	return r, p, err
}

// Rotations returns a page of rotations; see [Reader].
func (m *Manager) Rotations(ctx context.Context, after int64, limit int) ([]Rotation, int64, error) {
	return m.store.Rotations(ctx, after, limit)
}
