package ca_test

import (
	"sync/atomic"
	"testing"

	"github.com/brevet-pki/brevet/pki"
)

// A certificate that supersedes its predecessor is recorded together with the revocation. The observer learns of both
// before the caller gets the certificate, even if the commit returned an error.
func TestSupersededCertificateIsRevoked(t *testing.T) {
	w := newWorld(t)
	var fails atomic.Bool
	j := &faultyJournal{Journal: w.store.CA()}
	j.write = func(commits, _ int) *fault {
		if commits > 0 && fails.CompareAndSwap(true, false) {
			return &fault{applied: true, err: errInjected}
		}
		return nil
	}
	a := w.open(t, j)
	defer closeAuthority(t, a)
	old, err := issue(t.Context(), a, w.request(t))
	if err != nil {
		t.Fatal(err)
	}
	for _, ambiguous := range []bool{false, true} {
		fails.Store(ambiguous)
		req := w.request(t)
		req.Guard.Predecessor, req.Guard.Supersedes = old.Ref, true
		c, err := issue(t.Context(), a, req)
		if err != nil {
			t.Fatal(err)
		}
		rec, err := w.store.RA().Certificate(t.Context(), old.Ref)
		if err != nil {
			t.Fatal(err)
		}
		told := w.observed.status(old.Ref)
		told.RevokedAt = told.RevokedAt.UTC() // as in the store
		if told != rec.Status || told.State != pki.Revoked || told.Reason != pki.Superseded || told.Version != 2 {
			t.Errorf("the predecessor is %+v, but the observer has %+v", rec.Status, told)
		}
		if told := w.observed.status(c.Ref); told.State != pki.Good {
			t.Errorf("the observer has the certificate as %+v", told)
		}
		old = c
	}
}
