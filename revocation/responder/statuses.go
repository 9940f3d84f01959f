package responder

import (
	"sync"
	"time"

	"github.com/brevet-pki/brevet/pki"
)

const (
	// expiredGrace is how long a certificate is known after its end, for relying parties whose clocks are slow.
	expiredGrace = time.Hour
	// stepSize is how many entries are worked on before others get the lock.
	stepSize = 1024
)

// statuses holds what is known of one CA's certificates.
type statuses struct {
	mu       sync.RWMutex
	bySerial map[pki.Serial]entry
}

// An entry is a pki.Status and its certificate's end, without pointers for the collector to follow. Times are in
// seconds since 1970; a revokedAt of 0 is none.
type entry struct {
	version   uint64
	notAfter  int64
	revokedAt int64
	state     pki.State
	reason    pki.Reason
}

// apply keeps the newest statuses. What ended before forgotten is not taken up again: its newer status may be gone.
func (s *statuses) apply(changes []pki.StatusChange, forgotten time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range changes {
		old, known := s.bySerial[c.Ref.Serial]
		if known && c.Status.Version <= old.version || !known && c.NotAfter.Before(forgotten) {
			continue
		}
		e := entry{version: c.Status.Version, notAfter: c.NotAfter.Unix(), state: c.Status.State, reason: c.Status.Reason}
		if !c.Status.RevokedAt.IsZero() {
			e.revokedAt = c.Status.RevokedAt.Unix()
		}
		s.bySerial[c.Ref.Serial] = e
	}
}

// get returns the status of a certificate, if it is known.
func (s *statuses) get(serial pki.Serial) (pki.Status, bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	e, ok := s.bySerial[serial]
	if !ok {
		return pki.Status{}, false
	}
	status := pki.Status{State: e.state, Reason: e.reason, Version: e.version}
	if e.revokedAt != 0 {
		status.RevokedAt = time.Unix(e.revokedAt, 0).UTC()
	}
	return status, true
}

// version returns the version of a certificate's status, 0 for one that is not known.
func (s *statuses) version(serial pki.Serial) uint64 {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.bySerial[serial].version
}

// sweep forgets what ended before the given time. It lets others in after every step; a map may change under a range
// as long as not at the same moment.
func (s *statuses) sweep(forgotten time.Time) {
	limit, steps := forgotten.Unix(), 0
	s.mu.Lock()
	defer s.mu.Unlock()
	for serial, e := range s.bySerial {
		if e.notAfter < limit {
			delete(s.bySerial, serial)
		}
		if steps++; steps%stepSize == 0 {
			s.mu.Unlock()
			s.mu.Lock()
		}
	}
}
