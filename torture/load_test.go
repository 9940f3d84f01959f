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

// device is a client that enrolls, renews, and asks again for what it was given.
type device struct {
	w        *world
	random   *rand.Rand
	identity string
	once     bool // its profile has renewal_revokes
	enrolled bool
	current  *holder  // nil before it is enrolled
	last     *request // that was answered
	begun    *request // a renewal that was refused, and may have been carried out before
}

// fleet is the devices of a world and their operator, who work until they are told to finish.
type fleet struct {
	w       *world
	random  *rand.Rand
	devices []*device
	factory *factory

	finish chan struct{}
	cancel context.CancelFunc
	busy   sync.WaitGroup
}

func (w *world) fleet(t *testing.T, random *rand.Rand, size int) *fleet {
	t.Helper()
	f := &fleet{w: w, random: random, factory: &factory{w: w, random: child(random)}}
	for i := range size {
		d := &device{w: w, random: child(random), once: i%2 == 1}
		req := &brevetv1.CreateIdentityRequest{Id: fmt.Sprintf("device/%d", i), Spec: &brevetv1.IdentitySpec{Kind: brevetv1.IdentityKind_IDENTITY_KIND_DEVICE, Labels: labelled(i)}}
		if d.once {
			req.Spec.Profile = onceProfile
		}
		var err error
		d.identity, err = w.clients.registerAs(t.Context(), req)
		must(t, err)
		w.book.registered(d.identity, req.GetSpec().GetLabels()[batchLabel])
		f.devices = append(f.devices, d)
	}
	return f
}

// child is another sequence that follows from the same seed.
func child(r *rand.Rand) *rand.Rand { return rand.New(rand.NewPCG(r.Uint64(), r.Uint64())) }

// work puts load on the server until end.
func (f *fleet) work(ctx context.Context) {
	f.finish = make(chan struct{})
	ctx, f.cancel = context.WithCancel(ctx)
	for _, d := range f.devices {
		f.repeat(func() { d.step(ctx) })
	}
	f.repeat(func() { f.order(ctx) })
	f.repeat(func() { f.factory.job(ctx) })
}

func (f *fleet) repeat(step func()) {
	f.busy.Go(func() {
		for {
			select {
			case <-f.finish:
				return
			default:
				step()
			}
		}
	})
}

// end has everybody finish what they have begun. It needs a server.
func (f *fleet) end() {
	close(f.finish)
	f.busy.Wait()
	f.cancel()
}

// giveUp ends without one.
func (f *fleet) giveUp() {
	f.cancel()
	f.end()
}

func (d *device) step(ctx context.Context) {
	switch n := d.random.IntN(100); {
	case d.current == nil || n < 10:
		d.enroll(ctx)
	case n < 25 && d.last != nil:
		d.make(ctx, d.last) // the same again
	case n < 28 && d.once && d.last != nil && d.last.renews != nil:
		d.copied(ctx, d.last.renews)
	case n == 28:
		d.compromise(ctx)
	default:
		d.renew(ctx)
	}
}

// enroll spends a token, sometimes in a race with another key for the same token.
func (d *device) enroll(ctx context.Context) {
	had := d.w.book.of(d.identity)
	token, err := d.w.clients.makeToken(ctx, d.identity, d.enrolled)
	if err != nil {
		d.w.blame("make a token", err)
		return
	}
	racers := []*request{newRequest(token, newKey())}
	if d.random.IntN(3) == 0 {
		racers = append(racers, newRequest(token, newKey()))
	}
	won := make([]*holder, len(racers))
	var busy sync.WaitGroup
	for i, r := range racers {
		busy.Go(func() { won[i] = d.make(ctx, r) })
	}
	busy.Wait()
	for i, h := range won {
		if h == nil {
			continue
		}
		if d.enrolled {
			d.w.book.promised(had...) // the token was made to replace them
		}
		d.enrolled, d.current, d.last, d.begun = true, h, racers[i], nil
	}
}

func (d *device) renew(ctx context.Context) {
	r := d.begun
	if r == nil {
		r = newRenewal(d.current, newKey())
	}
	d.begun = r
	if h := d.make(ctx, r); h != nil {
		d.current, d.last, d.begun = h, r, nil
	} else if d.random.IntN(2) == 0 {
		d.enroll(ctx) // as its certificate may be revoked
	}
}

// make makes a request until it is answered, and returns what a yes gave.
func (d *device) make(ctx context.Context, r *request) *holder {
	der, err := d.w.clients.obtain(ctx, r)
	if err != nil {
		d.w.blame("ask for a certificate", err)
		switch servertest.RuleOf(err) {
		case pki.RuleRenewalKeyConflict, pki.RuleRequestIDReused, pki.RuleRenewalUnknown: // what a client that lost nothing never hears
			d.w.book.faultf("%s is refused: %v", d.identity, err)
		}
		return nil
	}
	h := &holder{key: r.key}
	if h.certificate, err = parseCertificate(der); err != nil {
		d.w.book.faultf("%s got no certificate: %v", d.identity, err)
		return nil
	}
	d.w.book.answered(r, h.certificate)
	if d.once && r.renews != nil {
		d.w.book.promised(r.renews.serial())
	}
	return h
}

// blame takes down an error that is no refusal, unless the torture is over.
func (w *world) blame(what string, err error) {
	if err := unexpected(what, err); err != nil {
		w.book.faultf("%v", err)
	}
}

// order is what the one operator does: suspend, perhaps resume, or revoke.
func (f *fleet) order(ctx context.Context) {
	d := f.devices[f.random.IntN(len(f.devices))]
	if f.random.IntN(8) == 0 {
		f.orderSet(ctx)
		return
	}
	if f.random.IntN(2) == 0 {
		if err := f.w.clients.suspend(ctx, d.identity); err != nil {
			f.w.blame("suspend", err)
			return
		}
		f.w.book.stands(d.identity, "suspended")
		if f.random.IntN(8) == 0 {
			return
		}
		// Where the first try was carried out and its answer lost, the next one hears that nothing is suspended.
		if err := f.w.clients.resume(ctx, d.identity); err != nil && servertest.RuleOf(err) != pki.RuleIdentityState {
			f.w.blame("resume", err)
			return
		}
		f.w.book.stands(d.identity, "resumed")
		return
	}
	serials := f.w.book.of(d.identity)
	if len(serials) == 0 {
		return
	}
	serial := serials[f.random.IntN(len(serials))]
	if err := f.w.clients.revoke(ctx, serial); err != nil {
		f.w.blame("revoke", err)
		return
	}
	f.w.book.promised(serial)
}
