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

// statuses holds what is known of one CA's certificates. Almost all of them are good and never were anything else: those
// are rows of a table, which takes a quarter of what a map would. The others are in a map.
type statuses struct {
	mu     sync.RWMutex
	good   table // those of version 1
	others map[pki.Serial]entry
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

func newStatuses() statuses {
	return statuses{good: newTable(newHash()), others: map[pki.Serial]entry{}}
}

// apply keeps the newest statuses. What ended before forgotten is not taken up again: its newer status may be gone.
func (s *statuses) apply(changes []pki.StatusChange, forgotten time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range changes {
		version := s.versionOf(c.Ref.Serial)
		if version > 0 && c.Status.Version <= version || version == 0 && c.NotAfter.Before(forgotten) {
			continue
		}
		end := c.NotAfter.Unix()
		if c.Status == (pki.Status{State: pki.Good, Version: 1}) && fitsTable(end) && !c.Ref.Serial.IsZero() {
			s.good.put(c.Ref.Serial, uint32(end)) //nolint:gosec // it fits
			continue
		}
		e := entry{version: c.Status.Version, notAfter: end, state: c.Status.State, reason: c.Status.Reason}
		if !c.Status.RevokedAt.IsZero() {
			e.revokedAt = c.Status.RevokedAt.Unix()
		}
		s.good.remove(c.Ref.Serial)
		s.others[c.Ref.Serial] = e
	}
}

// get returns the status of a certificate, if it is known.
func (s *statuses) get(serial pki.Serial) (pki.Status, bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.good.has(serial) {
		return pki.Status{State: pki.Good, Version: 1}, true
	}
	e, ok := s.others[serial]
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
	return s.versionOf(serial)
}

// versionOf is version for who holds the lock.
func (s *statuses) versionOf(serial pki.Serial) uint64 {
	if s.good.has(serial) {
		return 1
	}
	return s.others[serial].version
}

// sweep forgets what ended before the given time. It lets others in after every step; a map may change under a range
// as long as not at the same moment, and a table is swept one part after the other.
func (s *statuses) sweep(forgotten time.Time) {
	limit, steps := forgotten.Unix(), 0
	s.mu.Lock()
	defer s.mu.Unlock()
	for part := range s.good.parts {
		s.good.parts[part].sweep(limit)
		s.mu.Unlock()
		s.mu.Lock()
	}
	for serial, e := range s.others {
		if e.notAfter < limit {
			delete(s.others, serial)
		}
		if steps++; steps%stepSize == 0 {
			s.mu.Unlock()
			s.mu.Lock()
		}
	}
}
