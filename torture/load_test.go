package torture

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/brevet-pki/brevet/pki"
	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
	"github.com/brevet-pki/brevet/server/servertest"
)

// A device is a client that enrolls, renews, and repeats requests that already have a response.
type device struct {
	w              *instance
	random         *rand.Rand
	identity       string
	renewalRevokes bool // whether its profile has renewal_revokes
	enrolled       bool
	current        *credential // nil before the enrollment
	last           *request    // the last request that got a response
	pending        *request    // a renewal that was refused, but that an earlier try may have carried out
}

// A fleet is the devices, the operator and the factory of an instance. They send RPCs until stop is called.
type fleet struct {
	w       *instance
	random  *rand.Rand
	devices []*device
	factory *factory

	stopping chan struct{}
	cancel   context.CancelFunc
	busy     sync.WaitGroup
}

func (w *instance) newFleet(t *testing.T, random *rand.Rand, l load) *fleet {
	t.Helper()
	f := &fleet{w: w, random: random, factory: &factory{w: w, random: childRand(random)}}
	for i := range l.devices {
		d := &device{w: w, random: childRand(random), renewalRevokes: i%2 == 1}
		req := &brevetv1.CreateIdentityRequest{Id: fmt.Sprintf("device/%d", i), Spec: &brevetv1.IdentitySpec{Kind: brevetv1.IdentityKind_IDENTITY_KIND_DEVICE, Labels: labelled(i)}}
		if d.renewalRevokes {
			req.Spec.Profile = revokingProfile
		}
		var err error
		d.identity, err = w.clients.registerAs(t.Context(), req)
		must(t, err)
		w.observed.recordBatch(d.identity, req.GetSpec().GetLabels()[batchLabel])
		f.devices = append(f.devices, d)
	}
	w.acme.addClients(t, childRand(random), l.acmeClients)
	return f
}

// childRand returns a random sequence that is derived from another one.
func childRand(r *rand.Rand) *rand.Rand { return rand.New(rand.NewPCG(r.Uint64(), r.Uint64())) }

// start begins to put load on the server.
func (f *fleet) start(ctx context.Context) {
	f.stopping = make(chan struct{})
	ctx, f.cancel = context.WithCancel(ctx)
	for _, d := range f.devices {
		f.repeat(func() { d.step(ctx) })
	}
	f.repeat(func() { f.operatorStep(ctx) })
	f.repeat(func() { f.factory.job(ctx) })
	for _, c := range f.w.acme.clients {
		f.repeat(func() { c.step(ctx) })
	}
}

func (f *fleet) repeat(step func()) {
	f.busy.Go(func() {
		for {
			select {
			case <-f.stopping:
				return
			default:
				step()
			}
		}
	})
}

// stop waits until all clients have finished their RPCs, for which a server must run.
func (f *fleet) stop() {
	close(f.stopping)
	f.busy.Wait()
	f.cancel()
}

// abort cancels the RPCs of all clients, and waits for the clients.
func (f *fleet) abort() {
	f.cancel()
	f.stop()
}

func (d *device) step(ctx context.Context) {
	switch n := d.random.IntN(100); {
	case d.current == nil || n < 10:
		d.enroll(ctx)
	case n < 25 && d.last != nil:
		d.obtain(ctx, d.last) // repeat the request
	case n < 28 && d.renewalRevokes && d.last != nil && d.last.renews != nil:
		d.renewSuperseded(ctx, d.last.renews)
	case n == 28:
		d.compromise(ctx)
	default:
		d.renew(ctx)
	}
}

// enroll enrolls with a new token. In a third of the cases it races two keys for the same token.
func (d *device) enroll(ctx context.Context) {
	had := d.w.observed.serialsOf(d.identity)
	token, err := d.w.clients.createToken(ctx, d.identity, d.enrolled)
	if err != nil {
		d.w.recordUnexpected("create a token", err)
		return
	}
	racers := []*request{newRequest(token, newKey())}
	if d.random.IntN(3) == 0 {
		racers = append(racers, newRequest(token, newKey()))
	}
	won := make([]*credential, len(racers))
	var busy sync.WaitGroup
	for i, r := range racers {
		busy.Go(func() { won[i] = d.obtain(ctx, r) })
	}
	busy.Wait()
	for i, h := range won {
		if h == nil {
			continue
		}
		if d.enrolled {
			d.w.observed.recordRevoked(had...) // the token replaces them
		}
		d.enrolled, d.current, d.last, d.pending = true, h, racers[i], nil
	}
}

func (d *device) renew(ctx context.Context) {
	r := d.pending
	if r == nil {
		r = newRenewal(d.current, newKey())
	}
	d.pending = r
	if h := d.obtain(ctx, r); h != nil {
		d.current, d.last, d.pending = h, r, nil
	} else if d.random.IntN(2) == 0 {
		d.enroll(ctx) // its certificate may be revoked
	}
}

// obtain repeats a request until it has a response, and returns the credential, or nil if the request is refused.
func (d *device) obtain(ctx context.Context, r *request) *credential {
	der, err := d.w.clients.obtain(ctx, r)
	if err != nil {
		d.w.recordUnexpected("request a certificate", err)
		switch servertest.RuleOf(err) {
		case pki.RuleRenewalKeyConflict, pki.RuleRequestIDReused, pki.RuleRenewalUnknown: // must not happen to a client that keeps its requests
			d.w.observed.faultf("%s was refused: %v", d.identity, err)
		}
		return nil
	}
	h := &credential{key: r.key}
	if h.certificate, err = parseCertificate(der); err != nil {
		d.w.observed.faultf("%s got no valid certificate: %v", d.identity, err)
		return nil
	}
	d.w.observed.recordIssued(r, h.certificate)
	if d.renewalRevokes && r.renews != nil {
		d.w.observed.recordRevoked(r.renews.serial())
	}
	return h
}

// recordUnexpected records an error that is not a refusal.
func (w *instance) recordUnexpected(what string, err error) {
	if err := unexpected(what, err); err != nil {
		w.observed.faultf("%v", err)
	}
}

// operatorStep makes one change as the operator: suspend and perhaps resume, revoke, or revoke in bulk.
func (f *fleet) operatorStep(ctx context.Context) {
	d := f.devices[f.random.IntN(len(f.devices))]
	if f.random.IntN(8) == 0 {
		f.revokeBulk(ctx)
		return
	}
	if f.random.IntN(8) == 0 {
		f.rotate(ctx)
		return
	}
	if f.random.IntN(2) == 0 {
		if err := f.w.clients.suspend(ctx, d.identity); err != nil {
			f.w.recordUnexpected("suspend", err)
			return
		}
		f.w.observed.recordState(d.identity, "suspended")
		if f.random.IntN(8) == 0 {
			return
		}
		// If the response of the first try was lost, the next one is refused because the identity is no longer
		// suspended.
		if err := f.w.clients.resume(ctx, d.identity); err != nil && servertest.RuleOf(err) != pki.RuleIdentityState {
			f.w.recordUnexpected("resume", err)
			return
		}
		f.w.observed.recordState(d.identity, "resumed")
		return
	}
	serials := f.w.observed.serialsOf(d.identity)
	if len(serials) == 0 {
		return
	}
	serial := serials[f.random.IntN(len(serials))]
	if err := f.w.clients.revoke(ctx, serial); err != nil {
		f.w.recordUnexpected("revoke", err)
		return
	}
	f.w.observed.recordRevoked(serial)
}
