package ca_test

import (
	"context"
	"encoding/hex"
	"errors"
	"sync"
	"testing"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/pki"
)

// digests is a set of digests, safe for concurrent use.
type digests struct {
	mu  sync.Mutex
	all map[string]bool
}

func (d *digests) add(digest []byte) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.all == nil {
		d.all = map[string]bool{}
	}
	d.all[hex.EncodeToString(digest)] = true
}

func (d *digests) list() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	var out []string
	for k := range d.all {
		out = append(out, k)
	}
	return out
}

// observer records the latest status of each certificate.
type observer struct {
	mu    sync.Mutex
	known map[pki.CertRef]pki.Status
}

func (o *observer) Apply(changes ...pki.StatusChange) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.known == nil {
		o.known = map[pki.CertRef]pki.Status{}
	}
	for _, c := range changes {
		o.known[c.Ref] = c.Status
	}
}

func (o *observer) knows(ref pki.CertRef) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	_, ok := o.known[ref]
	return ok
}

// status returns the latest status of a certificate.
func (o *observer) status(ref pki.CertRef) pki.Status {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.known[ref]
}

// fault is the failure of one method call: its error, and whether the call takes effect nevertheless.
type fault struct {
	applied bool
	err     error
}

var errInjected = errors.New("injected fault")

// faultyJournal is a real journal whose methods fail as configured. It records to which certificate each digest
// belongs.
type faultyJournal struct {
	ca.Journal
	write    func(commits, intents int) *fault // nil for none
	readBack func() error                      // the error of Applied; nil for none
	renew    func(context.Context) bool        // the result of Renew; nil for that of the journal

	mu       sync.Mutex
	intended map[string]pki.CertRef // by digest, from durable intents
	pending  map[pki.CertRef]bool   // items of durable intents that no durable commit accounts for
}

func (j *faultyJournal) Write(ctx context.Context, epoch ca.Epoch, commits []ca.BatchCommit, intents []ca.Intent) ([]ca.Results, error) {
	var f *fault
	if j.write != nil {
		f = j.write(len(commits), len(intents))
	}
	if f != nil && !f.applied {
		return make([]ca.Results, len(commits)), f.err
	}
	results, err := j.Journal.Write(ctx, epoch, commits, intents)
	if err != nil {
		return results, err
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.intended == nil {
		j.intended, j.pending = map[string]pki.CertRef{}, map[pki.CertRef]bool{}
	}
	for _, s := range commits {
		for _, i := range s.Intent.Items {
			delete(j.pending, i.Ref)
		}
	}
	for _, intent := range intents {
		for _, i := range intent.Items {
			j.intended[hex.EncodeToString(i.Digest)] = i.Ref
			j.pending[i.Ref] = true
		}
	}
	if f != nil {
		return results, f.err
	}
	return results, nil
}

func (j *faultyJournal) Renew(ctx context.Context, epoch ca.Epoch) (bool, error) {
	if j.renew == nil {
		return j.Journal.Renew(ctx, epoch)
	}
	return j.renew(ctx), nil
}

func (j *faultyJournal) Applied(ctx context.Context, epoch ca.Epoch, batch ca.BatchID) (bool, error) {
	if j.readBack != nil {
		if err := j.readBack(); err != nil {
			return false, err
		}
	}
	return j.Journal.Applied(ctx, epoch, batch)
}

// durable returns an error unless a durable intent contains the digest and is still pending.
func (j *faultyJournal) durable(digest []byte) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	ref, ok := j.intended[hex.EncodeToString(digest)]
	if !ok {
		return errors.New("signing a digest that is in no intent")
	}
	if !j.pending[ref] {
		return errors.New("signing a digest without a pending intent")
	}
	return nil
}

func (j *faultyJournal) refOf(digest string) (pki.CertRef, bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	ref, ok := j.intended[digest]
	return ref, ok
}

// checkAccounted checks that every signature is on record: delivered, or never delivered and revoked. Certificates that
// callers got must be delivered and known to the observer.
func (w *world) checkAccounted(t testing.TB, j *faultyJournal, got []ca.Certificate) {
	t.Helper()
	ctx := context.Background()
	delivered := map[pki.CertRef]bool{}
	for _, digest := range w.signer.signed.list() {
		ref, ok := j.refOf(digest)
		if !ok {
			t.Errorf("the key signed %s, which is in no intent", digest)
			continue
		}
		rec, err := w.store.RA().Certificate(ctx, ref)
		if err != nil {
			t.Errorf("the key signed for %s, which is not on record: %v", ref.Serial, err)
			continue
		}
		if !rec.Delivered && rec.Status.State != pki.Revoked {
			t.Errorf("%s was never delivered and is %s", ref.Serial, rec.Status.State)
		}
		delivered[ref] = rec.Delivered
	}
	for _, c := range got {
		if !delivered[c.Ref] {
			t.Errorf("a caller has %s, which is not on record as delivered", c.Ref.Serial)
		}
		if !w.observed.knows(c.Ref) {
			t.Errorf("a caller has %s, which the observer does not know", c.Ref.Serial)
		}
	}
}
