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

// observer remembers what it was told of.
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

// status is what it was told last of a certificate.
func (o *observer) status(ref pki.CertRef) pki.Status {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.known[ref]
}

// fault is what happens to one call: an error, and whether the call took effect all the same.
type fault struct {
	applied bool
	err     error
}

var errInjected = errors.New("injected fault")

// faultyJournal is a real journal whose calls fail as a plan says. It takes down which serial each digest was announced for.
type faultyJournal struct {
	ca.Journal
	write func(settle, announce int) *fault // nil for none
	state func() error

	mu        sync.Mutex
	announced map[string]pki.CertRef // digest to certificate, of intents that became durable
	pending   map[string]ca.BatchID
	epoch     ca.Epoch
}

func (j *faultyJournal) Write(ctx context.Context, epoch ca.Epoch, settle []ca.BatchCommit, announce []ca.Intent) ([]ca.Results, error) {
	var f *fault
	if j.write != nil {
		f = j.write(len(settle), len(announce))
	}
	if f != nil && !f.applied {
		return make([]ca.Results, len(settle)), f.err
	}
	verdicts, err := j.Journal.Write(ctx, epoch, settle, announce)
	if err != nil {
		return verdicts, err
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	j.epoch = epoch
	if j.announced == nil {
		j.announced, j.pending = map[string]pki.CertRef{}, map[string]ca.BatchID{}
	}
	for _, intent := range announce {
		for _, i := range intent.Items {
			j.announced[hex.EncodeToString(i.Digest)] = i.Ref
			j.pending[hex.EncodeToString(i.Digest)] = intent.Batch
		}
	}
	if f != nil {
		return verdicts, f.err
	}
	return verdicts, nil
}

func (j *faultyJournal) State(ctx context.Context, epoch ca.Epoch, batches []ca.BatchID) ([]ca.BatchState, error) {
	if j.state != nil {
		if err := j.state(); err != nil {
			return nil, err
		}
	}
	return j.Journal.State(ctx, epoch, batches)
}

// durable fails unless the intent for a digest is in the store right now.
func (j *faultyJournal) durable(digest []byte) error {
	j.mu.Lock()
	batch, ok := j.pending[hex.EncodeToString(digest)]
	epoch := j.epoch
	j.mu.Unlock()
	if !ok {
		return errors.New("asked to sign what was never announced")
	}
	states, err := j.Journal.State(context.Background(), epoch, []ca.BatchID{batch})
	if err != nil {
		return err
	}
	if states[0] != ca.BatchPending {
		return errors.New("asked to sign without a pending intent")
	}
	return nil
}

func (j *faultyJournal) refOf(digest string) (pki.CertRef, bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	ref, ok := j.announced[digest]
	return ref, ok
}

// account checks that every signature the key made is on record, as a released certificate or as one that was never
// released and is revoked, and that what callers got is released and known to the observer.
func (w *world) account(t testing.TB, j *faultyJournal, got []ca.Certificate) {
	t.Helper()
	ctx := context.Background()
	released := map[pki.CertRef]bool{}
	for _, digest := range w.signer.signed.list() {
		ref, ok := j.refOf(digest)
		if !ok {
			t.Errorf("the key signed %s, which was never announced", digest)
			continue
		}
		rec, err := w.store.RA().Certificate(ctx, ref)
		if err != nil {
			t.Errorf("the key signed for %s, which is not on record: %v", ref.Serial, err)
			continue
		}
		if !rec.Delivered && rec.Status.State != pki.Revoked {
			t.Errorf("%s was never released and is %s", ref.Serial, rec.Status.State)
		}
		released[ref] = rec.Delivered
	}
	for _, c := range got {
		if !released[c.Ref] {
			t.Errorf("a caller holds %s, which is not on record as released", c.Ref.Serial)
		}
		if !w.observed.knows(c.Ref) {
			t.Errorf("a caller holds %s, of which the observer was not told", c.Ref.Serial)
		}
	}
}
