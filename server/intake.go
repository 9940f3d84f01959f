package server

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"time"

	"google.golang.org/grpc/peer"

	"github.com/brevet-pki/brevet/server/admission"
)

// Limits say how often callers may call.
type Limits struct {
	Identity admission.Rate // each identity, by the key that it calls with
	Address  admission.Rate // all callers from one address, without one
}

// DefaultLimits are far above what machines do that are well.
func DefaultLimits() Limits {
	return Limits{Identity: admission.Rate{PerSecond: 100, Burst: 1000}, Address: admission.Rate{PerSecond: 100, Burst: 1000}}
}

func (l Limits) check() error {
	for _, r := range []admission.Rate{l.Identity, l.Address} {
		if err := errors.Join(r.CheckPerSecond(), r.CheckBurst()); err != nil {
			return fmt.Errorf("server: limits: %w", err)
		}
	}
	return nil
}

// SetLimits changes how often callers may call, while the server runs.
func (s *Server) SetLimits(l Limits) error {
	if err := l.check(); err != nil {
		return err
	}
	s.intake.identities.Set(l.Identity)
	s.intake.addresses.Set(l.Address)
	return nil
}

// work is a kind of work, which has a lane of its own: none can take what another needs.
type work string

const (
	enrollments   work = "enrollments"   // by anybody, who may be a flood
	renewals      work = "renewals"      // what keeps the fleet going
	revocations   work = "revocations"   // what has to pass whatever else goes on
	compromises   work = "compromises"   // of keys, by anybody who can prove it, or cannot
	registrations work = "registrations" // of identities and tokens
	streams       work = "streams"       // of orders, which have bounds of their own
	readings      work = "readings"      // of records, and of pages of the log
	logs          work = "logs"          // streams of the log, its end, and reflection: they wait for the archive and for their clients
	watches       work = "watches"       // of health, by anybody, for as long as they like
	handshakes    work = "handshakes"    // of TLS
)

// sizes are those of the lanes, where so many signatures can be in the token at once.
//
// More certificates under way than the token and the journal's transactions are busy with gain nothing, and wait in queues
// that are fair to nobody. Of an identity one renewal is at work, for they take turns (package ra). Enrollments have half
// of the places that renewals have, so a flood of them leaves most of the token to the fleet, and one address keeps half of
// the token's sessions busy at most, so the others find it as they are used to. All certificates that are let in fit into
// the issuing pipeline (package ca).
func sizes(sessions int) map[work]admission.Size {
	issuing := 128 + 2*sessions
	computing := 4 * runtime.GOMAXPROCS(0)
	return map[work]admission.Size{
		enrollments:   {Slots: issuing / 2, Each: (sessions + 1) / 2, Queue: 1024},
		renewals:      {Slots: issuing, Each: 1, Queue: 1024},
		revocations:   {Slots: 16, Each: 8, Queue: 256},
		compromises:   {Slots: 4, Each: 1, Queue: 64},
		registrations: {Slots: 16, Each: 8, Queue: 256},
		streams:       {Slots: 128, Each: 64, Queue: 64},
		readings:      {Slots: 8, Each: 4, Queue: 128},
		logs:          {Slots: 64, Each: 8, Queue: 64},
		watches:       {Slots: 512, Each: 64, Queue: 64},
		handshakes:    {Slots: computing, Each: computing / 2, Queue: maxConnections},
	}
}

// intake lets calls go to work, or has them wait, or turns them away.
type intake struct {
	lanes                 map[work]*admission.Queue
	identities, addresses *admission.Rates
}

func newIntake(c Config, t Token) *intake {
	in := &intake{
		lanes:      map[work]*admission.Queue{},
		identities: admission.NewRates("limits.identity", c.Limits.Identity),
		addresses:  admission.NewRates("limits.address", c.Limits.Address),
	}
	_, sessions := t.Calls()
	for w, size := range sizes(sessions) {
		in.lanes[w] = admission.NewQueue(string(w), size)
	}
	return in
}

// source returns whom a call counts for, and the rates that apply. A certificate that is over or superseded counts for the
// address: its holder must not spend what the identity's good certificate needs.
func (in *intake) source(ctx context.Context) (admission.Source, *admission.Rates) {
	if c := callerOf(ctx); !c.id.IsZero() && !c.past {
		return admission.Identity(c.id, c.key), in.identities
	}
	if p, ok := peer.FromContext(ctx); ok {
		return admission.Address(p.Addr), in.addresses
	}
	return admission.Source{}, in.identities
}

// admit counts a call that the gate has let in or refused, and refuses it where its caller calls too often. A refusal of
// the gate costs its caller as much as a call: whoever repeats it is told to stay away.
func (in *intake) admit(ctx context.Context, method string, refused error) error {
	if refused == nil && works[method] == revocations { // an operator may always take back
		return nil
	}
	from, rates := in.source(ctx)
	if err := rates.Allow(from, time.Now()); err != nil {
		return err
	}
	return refused
}

// enter has a call wait for its turn in its lane, and returns what to call when it is over.
func (in *intake) enter(ctx context.Context, method string) (leave func(), err error) {
	return in.enterLane(ctx, works[method])
}

// enterLane has the caller of ctx wait for its turn in a lane.
func (in *intake) enterLane(ctx context.Context, w work) (leave func(), err error) {
	lane := in.lanes[w]
	if lane == nil {
		return func() {}, nil
	}
	from, _ := in.source(ctx)
	if leave, err = lane.Acquire(ctx, from); err != nil {
		return func() {}, err
	}
	return leave, nil
}
