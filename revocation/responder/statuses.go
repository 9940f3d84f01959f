package responder

import (
	"sync"
	"time"

	"github.com/brevet-pki/brevet/pki"
)

const (
	// expiredGrace is how long the status of an expired certificate is kept. Relying parties whose clocks are behind
	// still request it.
	expiredGrace = time.Hour
	// stepSize is the number of entries that are processed before the lock is released for other goroutines.
	stepSize = 1024
)

// statuses holds the statuses of one CA's certificates. Almost all certificates are good and have always been good.
// These are in a table, which needs a quarter of the memory of a map. The others are in a map.
type statuses struct {
	mu     sync.RWMutex
	good   table // statuses with version 1
	others map[pki.Serial]statusRecord
}

// A statusRecord is a pki.Status and the expiry of its certificate. It contains no pointers that the garbage collector
// must follow. Times are in seconds since 1970. A revokedAt of 0 means that there is none.
type statusRecord struct {
	version   uint64
	notAfter  int64
	revokedAt int64
	state     pki.State
	reason    pki.Reason
	marks     uint8 // see Responder.Mark
}

func newStatuses() statuses {
	return statuses{good: newTable(newHash()), others: map[pki.Serial]statusRecord{}}
}

// apply stores the statuses that are newer than the known ones. If a certificate is unknown and expired before
// forgotten, apply ignores its status, because a newer one may have been removed.
func (s *statuses) apply(changes []pki.StatusChange, forgotten time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range changes {
		version := s.versionLocked(c.Ref.Serial)
		if version > 0 && c.Status.Version <= version || version == 0 && c.NotAfter.Before(forgotten) {
			continue
		}
		end := c.NotAfter.Unix()
		if c.Status == (pki.Status{State: pki.Good, Version: 1}) && fitsTable(end) && !c.Ref.Serial.IsZero() {
			s.good.put(c.Ref.Serial, uint32(end)) //nolint:gosec // fitsTable has checked the range
			continue
		}
		e := statusRecord{version: c.Status.Version, notAfter: end, state: c.Status.State, reason: c.Status.Reason}
		if !c.Status.RevokedAt.IsZero() {
			e.revokedAt = c.Status.RevokedAt.Unix()
		}
		if _, e.marks, _ = s.good.get(c.Ref.Serial); e.marks == 0 {
			e.marks = s.others[c.Ref.Serial].marks
		}
		s.good.remove(c.Ref.Serial)
		s.others[c.Ref.Serial] = e
	}
}

// get returns the status of a certificate, or false if it is unknown.
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
	return e.status(), true
}

func (e statusRecord) status() pki.Status {
	status := pki.Status{State: e.state, Reason: e.reason, Version: e.version}
	if e.revokedAt != 0 {
		status.RevokedAt = time.Unix(e.revokedAt, 0).UTC()
	}
	return status
}

// version returns the version of a certificate's status, or 0 if the status is unknown.
func (s *statuses) version(serial pki.Serial) uint64 {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.versionLocked(serial)
}

// versionLocked does the same as version. The caller holds the lock.
func (s *statuses) versionLocked(serial pki.Serial) uint64 {
	if s.good.has(serial) {
		return 1
	}
	return s.others[serial].version
}

// sweep removes the statuses of certificates that expired before forgotten. It releases the lock after every step. That
// is safe, because a map may change between two iterations of a range, and because sweep handles one part of the table
// at a time.
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
