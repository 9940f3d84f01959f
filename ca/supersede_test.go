package ca_test

import (
	"sync/atomic"
	"testing"

	"github.com/brevet-pki/brevet/pki"
)

// The transaction that records a certificate also revokes the predecessor that it supersedes. The observer is notified
// of both before the caller gets the certificate, even if the commit returned an error.
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
		observed := w.observed.status(old.Ref)
		observed.RevokedAt = observed.RevokedAt.UTC() // as in the store
		if observed != rec.Status || observed.State != pki.Revoked || observed.Reason != pki.Superseded || observed.Version != 2 {
			t.Errorf("the predecessor is %+v, but the observer has %+v", rec.Status, observed)
		}
		if observed := w.observed.status(c.Ref); observed.State != pki.Good {
			t.Errorf("the observer has the certificate as %+v", observed)
		}
		old = c
	}
}
