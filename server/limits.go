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
	Identity admission.Rate // for each key of an identity
	Address  admission.Rate // for each address from which callers without a valid certificate call
}

// DefaultLimits returns rate limits far above the rates of clients that work as intended.
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
	enrollments   work = "enrollments"      // any caller may send them, so there may be a flood
	renewals      work = "renewals"         // without them, the fleet's certificates expire
	revocations   work = "revocations"      // must not wait for any other work
	compromises   work = "compromises"      // reports of compromised keys, which any caller may send
	registrations work = "registrations"    // new identities and tokens, and updates of identities
	streams       work = "streams"          // streams of issue requests; package grpcapi limits the requests on them
	readings      work = "readings"         // reads of records, and of pages of the log
	logs          work = "logs"             // log streams, GetHead and reflection, which wait for the archive or a client
	followers     work = "followers"        // log streams that follow, without a time limit; each takes a slot of logs too
	watches       work = "watches"          // watches of health, without a time limit, which any caller may open
	handshakes    work = "handshakes"       // TLS handshakes
	acmeReports   work = "acme_revocations" // revocations by ACME clients, which any caller may send
	acmeRequests  work = "acme"             // ACME requests that read or change accounts and orders, which any caller may send
)

// sizes returns the sizes of the queues, for a given number of concurrent signatures in the HSM.
//
// The slots for issuing match what the HSM and the journal's transactions can process at a time. More certificates
// would only wait inside package ca, in queues that are not fair between sources. All admitted certificates fit into
// the issuing pipeline of package ca.
//
// One renewal of an identity runs at a time, because package ra serializes them anyway. Enrollments have half as many
// slots as renewals, so that a flood of them leaves most of the HSM to the fleet. The enrollments of one address occupy
// at most half of the HSM's sessions.
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
		acmeReports:   {Slots: 4, Each: 1, Queue: 64},
		acmeRequests:  {Slots: 32, Each: 8, Queue: 512},
		handshakes:    {Slots: computing, Each: computing / 2, Queue: maxConnections},
	}
}

// works maps each operation to its kind of work, which determines its queue. CheckHealth, ListHealth, GetRenewalInfo,
// ACMEDirectory and ACMERenewalInfo are missing, because they read only memory. A test fails for any other operation that
// is missing.
var works = map[authz.Operation]work{
	authz.Enroll:          enrollments,
	authz.CreateChallenge: enrollments,
	// Any caller may send these, and clients of EST send them before they enroll.
	authz.GetESTCACertificates: enrollments,
	authz.GetESTAttributes:     enrollments,
	authz.RefuseESTOperation:   enrollments,
	authz.Renew:                renewals,

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
	authz.RevokeExternalKey:    revocations,
	authz.RevokeAccount:        revocations,
	authz.StartRotation:        revocations,
	authz.StopRotation:         revocations,

	authz.RevokeCompromisedKey: compromises,

	authz.CreateIdentity: registrations,
	authz.UpdateIdentity: registrations,
	authz.CreateToken:    registrations,
	authz.ApplyPolicy:    registrations,

	authz.CreateExternalKey: registrations,

	authz.GetTrustBundle:      readings,
	authz.GetCertificateChain: readings,
	authz.GetIdentity:         readings,
	authz.ListIdentities:      readings,
	authz.ListTokens:          readings,
	authz.GetCertificate:      readings,
	authz.ListCertificates:    readings,
	authz.GetBulkRevocation:   readings,
	authz.ListBulkRevocations: readings,
	authz.GetRotation:         readings,
	authz.ListRotations:       readings,
	authz.ListCRLs:            readings,
	authz.GetPolicy:           readings,
	authz.ListPolicies:        readings,
	authz.ExplainPolicy:       readings,
	authz.GetStats:            readings,
	authz.ListExternalKeys:    readings,
	authz.ListAccounts:        readings,

	authz.ListEntries: logs, // while it reads a page, it also takes a slot of readings
	authz.GetHead:     logs,

	authz.ReflectServices: logs,

	authz.WatchHealth: watches,

	authz.ACMEAccount:     acmeRequests,
	authz.ACMEOrder:       acmeRequests,
	authz.ACMECertificate: acmeRequests,
	authz.ACMEFinalize:    enrollments,
	authz.ACMERevoke:      acmeReports,
}

// admissions decides which calls run, wait or are rejected. It implements grpcapi.Admission.
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

// Admit implements grpcapi.Admission. A call that is already refused counts like any other call, so that the rate limit
// also applies to a source that repeats refused calls.
func (a *admissions) Admit(op authz.Operation, from admission.Source, refused error) error {
	if refused == nil && (works[op] == revocations || op == authz.CreateToken) { // a factory creates thousands of tokens
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
func (a *admissions) Enter(ctx context.Context, op authz.Operation, from admission.Source, until time.Time) (leave func(), err error) {
	queue := a.queues[works[op]]
	if queue == nil {
		return func() {}, nil
	}
	if works[op] != renewals {
		until = time.Time{} // only renewals must come in time
	}
	if works[op] == logs { // several certificates do not give an operator more streams
		from = from.OfAllKeys()
	}
	if leave, err = queue.AcquireUntil(ctx, from, until); err != nil {
		return func() {}, err
	}
	return leave, nil
}

// byName returns the queues, keyed by their names in metrics.
func (a *admissions) byName() map[string]*admission.Queue {
	named := map[string]*admission.Queue{}
	for w, queue := range a.queues {
		named[string(w)] = queue
	}
	return named
}
