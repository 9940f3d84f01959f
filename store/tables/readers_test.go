package tables_test

import (
	"context"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra"
	"github.com/brevet-pki/brevet/revocation/crl"
)

// TestFewRowsWaitForNoManyRows keeps the maximum number of long reads open (CRLs, snapshots and counts). Meanwhile the short
// reads of requests and of the feed must not wait.
func TestFewRowsWaitForNoManyRows(t *testing.T) {
	m := newMill(t, filepath.Join(t.TempDir(), "brevet.db"))
	id := m.identity(1)
	r := m.issue([]pki.SPIFFEID{id}, nil)[0]
	var reading sync.WaitGroup
	release := make(chan struct{})
	defer reading.Wait()
	defer close(release)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	for waits := false; !waits; {
		begun := make(chan struct{})
		reading.Go(func() {
			_ = m.db.Revocation().View(ctx, issuer, func(crl.View) error {
				close(begun)
				<-release
				return nil
			})
		})
		select {
		case <-begun:
		case <-time.After(250 * time.Millisecond): // the read waits for a free connection
			waits = true
		}
	}
	ctx, end := context.WithTimeout(t.Context(), time.Minute)
	defer end()
	if st, err := m.db.RA().IssuanceState(ctx, ra.IssuanceQuery{Identity: id, Predecessor: r.Ref, Key: r.KeyHash}); err != nil || st.Identity.ID != id {
		t.Errorf("a request stands like %v, %v", st.Identity.ID, err)
	}
	if _, err := m.db.Revocation().Changes(ctx, 0, 1, func([]pki.StatusChange) {}); err != nil {
		t.Errorf("the feed of statuses: %v", err)
	}
	if _, err := m.db.Log().Sequence(ctx, 10); err != nil {
		t.Errorf("the log is not sequenced: %v", err)
	}
}
