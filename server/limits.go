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

// Limits are the rate limits of callers.
type Limits struct {
	Identity admission.Rate // of each identity, by the key of its certificate
	Address  admission.Rate // of each address, for callers without a valid certificate
}

// DefaultLimits returns rates far above those of well-behaved machines.
func DefaultLimits() Limits {
	return Limits{Identity: admission.Rate{PerSecond: 100, Burst: 1000}, Address: admission.Rate{PerSecond: 100, Burst: 1000}}
}

func (l Limits) check() error {
	for _, r := range []admission.Rate{l.Identity, l.Address} {
		if err := errors.Join(r.CheckPerSecond(), r.CheckBurst()); err != nil {
			return fmt.Errorf("limits: %w", err)
		}
	}
	return nil
}

// SetLimits changes the rate limits while the server runs.
func (s *Server) SetLimits(l Limits) error {
	if err := l.check(); err != nil {
		return err
	}
	s.admissions.identities.Set(l.Identity)
	s.admissions.addresses.Set(l.Address)
	return nil
}

// work is a kind of work. Each kind has its own queue, so that no kind can use the capacity of another.
type work string

const (
	enrollments   work = "enrollments"   // open to all callers, so there may be a flood
	renewals      work = "renewals"      // keep the fleet working
	revocations   work = "revocations"   // must not wait for any other work
	compromises   work = "compromises"   // reports of compromised keys, open to all callers
	registrations work = "registrations" // of identities and tokens
	streams       work = "streams"       // of issue requests, which have limits of their own
	readings      work = "readings"      // of records, and of pages of the log
	logs          work = "logs"          // streams of the log, its head, and reflection: they wait for the archive and for clients
	followers     work = "followers"     // streams that follow the log, without a time limit; each of them is one of logs too
	watches       work = "watches"       // of health, open to all callers, without a time limit
	handshakes    work = "handshakes"    // of TLS
)

// sizes returns the sizes of the queues, for a given number of concurrent signatures in the HSM.
//
// More certificates in flight than the HSM and the journal's transactions can process would only wait in queues that
// are not fair between sources. One renewal of an identity works at a time, because package ra serializes them.
// Enrollments have half of the slots of renewals, so that a flood of them leaves most of the HSM to the fleet. One
// address occupies at most half of the HSM's sessions, so that others are served as usual. All admitted certificates
// fit into the issuing pipeline of package ca.
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
		followers:     {Slots: 32, Each: 4},
		watches:       {Slots: 512, Each: 64, Queue: 64},
		handshakes:    {Slots: computing, Each: computing / 2, Queue: maxConnections},
	}
}

// works maps each operation to its kind of work, and so to its queue. Operations about health are not in it and use no
// queue. A test fails for any other operation that is missing.
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

	authz.ListEntries: logs, // each page also counts as a reading
	authz.GetHead:     logs,

	authz.ReflectServices: logs,

	authz.WatchHealth: watches,
}

// admissions decides which calls work, wait or are rejected. It implements grpcapi.Admission.
type admissions struct {
	queues                map[work]*admission.Queue
	identities, addresses *admission.Rates
}

func newAdmissions(c Config) *admissions {
	a := &admissions{
		queues:     map[work]*admission.Queue{},
		identities: admission.NewRates("rate_limits.identity", c.Limits.Identity),
		addresses:  admission.NewRates("rate_limits.address", c.Limits.Address),
	}
	for w, size := range sizes(c.sessions()) {
		a.queues[w] = admission.NewQueue(string(w), size)
	}
	return a
}

// Admit implements grpcapi.Admission. A refused call counts against its source's rate like an admitted one, so that a
// source that repeats it is rate-limited.
func (a *admissions) Admit(op authz.Operation, from admission.Source, refused error) error {
	if refused == nil && works[op] == revocations { // revocations by operators have no rate limit
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
	queue := a.queues[works[op]]
	if queue == nil {
		return func() {}, nil
	}
	if works[op] == logs { // an operator with several certificates gets no more streams
		from = from.OfAllKeys()
	}
	if leave, err = queue.Acquire(ctx, from); err != nil {
		return func() {}, err
	}
	return leave, nil
}

// byName returns the queues by their names in metrics.
func (a *admissions) byName() map[string]*admission.Queue {
	named := map[string]*admission.Queue{}
	for w, queue := range a.queues {
		named[string(w)] = queue
	}
	return named
}
