package responder

import (
	"time"

	"github.com/brevet-pki/brevet/pki"
)

// Record is what a Responder knows about one certificate.
type Record struct {
	Status   pki.Status
	NotAfter time.Time // in whole seconds
	Marks    uint8     // see Responder.Mark
}

// Record returns what the Responder knows about a certificate. It returns false in the same cases as Status.
func (r *Responder) Record(ref pki.CertRef) (Record, bool) {
	i := r.known(ref.Issuer)
	if i == nil {
		return Record{}, false
	}
	return i.statuses.record(ref.Serial)
}

// Mark adds marks to certificates. The marks of a certificate are eight bits, whose meaning is up to the caller. They are
// kept in memory only, stay when the status changes, and have no effect on responses. Mark returns the certificates that
// the Responder does not know.
func (r *Responder) Mark(marks uint8, refs []pki.CertRef) (unknown []pki.CertRef) {
	for len(refs) > 0 {
		id, n := refs[0].Issuer, 1
		for n < len(refs) && n < stepSize && refs[n].Issuer == id {
			n++
		}
		unknown = append(unknown, r.issuer(id).statuses.mark(marks, refs[:n])...)
		refs = refs[n:]
	}
	return unknown
}

// Unmark removes marks from all certificates.
func (r *Responder) Unmark(marks uint8) {
	for _, i := range r.allIssuers() {
		i.statuses.unmark(marks)
	}
}

// record returns what is known about a certificate, or false if it is unknown.
func (s *statuses) record(serial pki.Serial) (Record, bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if end, marks, found := s.good.get(serial); found {
		return Record{pki.Status{State: pki.Good, Version: 1}, time.Unix(int64(end), 0).UTC(), marks}, true
	}
	e, found := s.others[serial]
	return Record{e.status(), time.Unix(e.notAfter, 0).UTC(), e.marks}, found
}

// mark adds marks to the certificates of one CA. It returns those that are unknown.
func (s *statuses) mark(marks uint8, refs []pki.CertRef) (unknown []pki.CertRef) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, ref := range refs {
		if s.good.mark(ref.Serial, marks) {
			continue
		}
		e, found := s.others[ref.Serial]
		if !found {
			unknown = append(unknown, ref)
			continue
		}
		e.marks |= marks
		s.others[ref.Serial] = e
	}
	return unknown
}

// unmark removes marks from all certificates. Like sweep, it releases the lock after every step.
func (s *statuses) unmark(marks uint8) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for part := range s.good.parts {
		s.good.parts[part].unmark(marks)
		s.mu.Unlock()
		s.mu.Lock()
	}
	steps := 0
	for serial, e := range s.others {
		if e.marks&marks != 0 {
			e.marks &^= marks
			s.others[serial] = e
		}
		if steps++; steps%stepSize == 0 {
			s.mu.Unlock()
			s.mu.Lock()
		}
	}
}
