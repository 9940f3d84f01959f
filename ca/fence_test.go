package ca_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/pki"
)

// TestFencedServerBeginsAgain fences the Authority between a signature and its record, as another server does with one that
// stood still.
func TestFencedServerBeginsAgain(t *testing.T) {
	w := newWorld(t)
	j := &faultyJournal{Journal: w.store.CA()}
	var once atomic.Bool
	j.write = func(commits, _ int) *fault {
		if commits > 0 && once.CompareAndSwap(false, true) {
			return &fault{applied: false, err: ca.ErrFenced}
		}
		return nil
	}
	a := w.open(t, j)
	req := w.request(t)
	if _, err := issue(t.Context(), a, req); !pki.IsTemporary(err) || !errors.Is(err, ca.ErrFenced) {
		t.Errorf("a certificate that was signed, but not recorded before the fence: %v, want a temporary error", err)
	}
	if a.Fenced() {
		t.Error("the server stays fenced, although no other process has its name")
	}
	c, err := issue(t.Context(), a, req)
	if err != nil {
		t.Fatalf("the retry with the same request ID: %v", err)
	}
	closeAuthority(t, a)
	if n := len(w.signer.signed.list()); n != 2 {
		t.Errorf("%d signatures were made, want 2", n)
	}
	w.checkAccounted(t, j, []ca.Certificate{c})
}

// TestSignatureOutlastsAFence fences the Authority while a certificate is being signed. When the signature arrives, the next
// epoch has accounted for it.
func TestSignatureOutlastsAFence(t *testing.T) {
	w := newWorld(t)
	j := &faultyJournal{Journal: w.store.CA()}
	var fences, began atomic.Bool
	signing, release := make(chan struct{}), make(chan struct{})
	j.write = func(commits, _ int) *fault {
		if fences.CompareAndSwap(true, false) {
			return &fault{applied: false, err: ca.ErrFenced}
		}
		return nil
	}
	w.signer.before = func([]byte) error {
		if began.CompareAndSwap(false, true) {
			close(signing)
			<-release
		}
		return nil
	}
	a := w.open(t, j)
	late := make(chan error, 1)
	go func() {
		_, err := issue(context.Background(), a, w.request(t))
		late <- err
	}()
	<-signing
	fences.Store(true)
	if _, err := issue(t.Context(), a, w.request(t)); !pki.IsTemporary(err) {
		t.Errorf("a certificate whose intent was fenced: %v, want a temporary error", err)
	}
	c, err := issue(t.Context(), a, w.request(t)) // in the next epoch
	if err != nil {
		t.Fatal(err)
	}
	close(release)
	if err := <-late; !pki.IsTemporary(err) {
		t.Errorf("a certificate that was signed in an earlier epoch: %v, want a temporary error", err)
	}
	d, err := issue(t.Context(), a, w.request(t))
	if err != nil {
		t.Fatalf("a certificate after that: %v", err)
	}
	closeAuthority(t, a)
	w.checkAccounted(t, j, []ca.Certificate{c, d})
}

// TestOlderProcessStops has a process learn only that it is fenced, while a newer process has its name. The older one must not
// replace the newer one.
func TestOlderProcessStops(t *testing.T) {
	w := newWorld(t)
	j := &faultyJournal{Journal: w.store.CA()}
	j.write = func(_, _ int) *fault { return &fault{err: ca.ErrFenced} }
	a := w.open(t, j)
	newer, _, err := w.store.CA().Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for !a.Fenced() {
		if _, err := issue(t.Context(), a, w.request(t)); err == nil {
			t.Fatal("the older process has issued a certificate")
		}
	}
	if _, err := issue(t.Context(), a, w.request(t)); !errors.Is(err, ca.ErrReplaced) {
		t.Errorf("the error of the older process is %v", err)
	}
	if _, err := w.store.CA().Write(t.Context(), newer, nil, nil); err != nil {
		t.Errorf("the newer process cannot write: %v", err)
	}
	closeAuthority(t, a)
}
