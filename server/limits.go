package server

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"time"

	"github.com/brevet-pki/brevet/server/admission"
	"github.com/brevet-pki/brevet/server/authz"
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
	s.admissions.identities.Set(l.Identity)
	s.admissions.addresses.Set(l.Address)
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

// works says what kind of work an operation is, and so which lane it waits in. Operations that are not in it, those about
// health, wait in no lane. A test fails for another one that is missing.
var works = map[authz.Operation]work{
	authz.Enroll:          enrollments,
	authz.CreateChallenge: enrollments,
	authz.Renew:           renewals,

	authz.IssueCertificates: streams,

	authz.SuspendIdentity:      revocations,
	authz.ResumeIdentity:       revocations,
	authz.RetireIdentity:       revocations,
	authz.RevokeToken:          revocations,
	authz.RevokeCertificate:    revocations,
	authz.HoldCertificate:      revocations,
	authz.UnholdCertificate:    revocations,
	authz.CreateBulkRevocation: revocations,
	authz.ImportCRL:            revocations,

	authz.RevokeCompromisedKey: compromises,

	authz.CreateIdentity: registrations,
	authz.UpdateIdentity: registrations,
	authz.CreateToken:    registrations,

	authz.GetTrustBundle:      readings,
	authz.GetCertificateChain: readings,
	authz.GetIdentity:         readings,
	authz.ListIdentities:      readings,
	authz.ListTokens:          readings,
	authz.GetCertificate:      readings,
	authz.ListCertificates:    readings,
	authz.GetBulkRevocation:   readings,
	authz.ListBulkRevocations: readings,
	authz.ListCRLs:            readings,
	authz.GetStats:            readings,

	authz.ListEntries: logs, // and each page is a reading
	authz.GetHead:     logs,

	authz.ReflectServices: logs,

	authz.WatchHealth: watches,
}

// admissions has calls work, wait, or come back later. It implements grpcapi.Admission.
type admissions struct {
	lanes                 map[work]*admission.Queue
	identities, addresses *admission.Rates
}

func newAdmissions(c Config) *admissions {
	a := &admissions{
		lanes:      map[work]*admission.Queue{},
		identities: admission.NewRates("rate_limits.identity", c.Limits.Identity),
		addresses:  admission.NewRates("rate_limits.address", c.Limits.Address),
	}
	for w, size := range sizes(c.sessions()) {
		a.lanes[w] = admission.NewQueue(string(w), size)
	}
	return a
}

// Admit implements grpcapi.Admission. A refused call costs its source as much as an admitted one, so a source that repeats
// it is told to stay away.
func (a *admissions) Admit(op authz.Operation, from admission.Source, refused error) error {
	if refused == nil && works[op] == revocations { // an operator may always revoke
		return nil
	}
	rates := a.addresses
	if from.IsIdentity() {
		rates = a.identities
	}
	if err := rates.Allow(from, time.Now()); err != nil {
		return err
	}
	return refused
}

// Enter implements grpcapi.Admission.
func (a *admissions) Enter(ctx context.Context, op authz.Operation, from admission.Source) (leave func(), err error) {
	lane := a.lanes[works[op]]
	if lane == nil {
		return func() {}, nil
	}
	if leave, err = lane.Acquire(ctx, from); err != nil {
		return func() {}, err
	}
	return leave, nil
}

// byName returns the lanes as metrics name them.
func (a *admissions) byName() map[string]*admission.Queue {
	named := map[string]*admission.Queue{}
	for w, lane := range a.lanes {
		named[string(w)] = lane
	}
	return named
}
