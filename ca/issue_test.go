package ca_test

import (
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/brevet-pki/brevet/pki"
)

// TestPanicDoesNotBlockBatch lets one of many signatures panic. The others of its batch must be recorded.
func TestPanicDoesNotBlockBatch(t *testing.T) {
	w := newWorld(t)
	var signed atomic.Int64
	w.signer.before = func([]byte) error {
		if signed.Add(1) == 7 {
			panic("the signer panics")
		}
		return nil
	}
	a := w.open(t, w.store.CA())
	var wg sync.WaitGroup
	var issued, panicked atomic.Int64
	for range 32 {
		req := w.request(t)
		wg.Go(func() {
			defer func() {
				if recover() != nil { // as the server's handler does
					panicked.Add(1)
				}
			}()
			if _, err := issue(t.Context(), a, req); err == nil {
				issued.Add(1)
			}
		})
	}
	wg.Wait()
	closeAuthority(t, a)
	if issued.Load() != 31 || panicked.Load() != 1 {
		t.Errorf("of 32 requests %d were issued and %d panicked", issued.Load(), panicked.Load())
	}
	if _, left, err := w.store.CA().Begin(t.Context()); err != nil || len(left) != 0 {
		t.Errorf("%d batches remain, %v", len(left), err)
	}
}

// TestExpiredDraftIsNotSigned lets a certificate expire while it waits for its intent.
func TestExpiredDraftIsNotSigned(t *testing.T) {
	w := newWorld(t)
	var late atomic.Int64
	a := w.openAt(t, w.store.CA(), func() time.Time { return time.Now().Add(time.Duration(late.Load())) })
	defer closeAuthority(t, a)
	req := w.request(t)
	req.Lifetime = time.Minute
	d, err := a.Draft(req)
	if err != nil {
		t.Fatal(err)
	}
	late.Store(int64(2 * time.Minute))
	before := len(w.signer.signed.list())
	if _, err := a.Issue(t.Context(), d); !pki.IsTemporary(err) {
		t.Errorf("an expired certificate: %v, want a temporary error", err)
	}
	if n := len(w.signer.signed.list()) - before; n != 0 {
		t.Errorf("the key signed %d digests", n)
	}
}

// TestSlowSignatureDoesNotDelayOthers delays one signature until all other certificates are delivered, including those
// of its batch.
func TestSlowSignatureDoesNotDelayOthers(t *testing.T) {
	const all = 32
	w := newWorld(t)
	var others sync.WaitGroup
	others.Add(all - 1)
	var signed, late atomic.Int64
	w.signer.before = func([]byte) error {
		if signed.Add(1) > 1 {
			return nil
		}
		released := make(chan struct{})
		go func() { others.Wait(); close(released) }()
		select {
		case <-released:
		case <-time.After(10 * time.Second):
			late.Add(1)
		}
		return nil
	}
	a := w.open(t, w.store.CA())
	errs := make(chan error, all)
	for range all {
		req := w.request(t)
		go func() {
			_, err := issue(t.Context(), a, req)
			errs <- err
		}()
	}
	for i := range all {
		if err := <-errs; err != nil {
			t.Error(err)
		}
		if i < all-1 {
			others.Done()
		}
	}
	closeAuthority(t, a)
	if late.Load() != 0 {
		t.Error("other certificates waited for a slow signature")
	}
}
