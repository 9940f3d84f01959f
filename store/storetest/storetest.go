// Package storetest is what every store has to pass: the contracts of ca.Journal, ca.Installations, ra.Records,
// audit.Store, retention.Store, revocation.Records, crl.Store, responder.Feed and translog.Records, sentence by sentence, against a real
// store. It does not know which engine that is; what only one engine has is tested beside that engine. A store with the
// interfaces of the registration authority alone runs [RunRegistration], which is a part of [Run].
package storetest

import (
	"context"
	"testing"

	"github.com/brevet-pki/brevet/audit"
	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/ra"
	"github.com/brevet-pki/brevet/revocation"
	"github.com/brevet-pki/brevet/revocation/crl"
	"github.com/brevet-pki/brevet/revocation/responder"
	"github.com/brevet-pki/brevet/store/retention"
	"github.com/brevet-pki/brevet/translog"
)

// Store is the views of one store, and what the tests do to it. For RunRegistration, Installations, Retention, Revocation
// and LoseCommit may be nil: a test that needs one of them is skipped.
type Store struct {
	Journal       ca.Journal
	Installations ca.Installations
	RA            ra.Store
	Audit         audit.Store
	Retention     retention.Store
	Orders        Orders
	Revocation    revocation.Store
	Counts        Counts
	CRLs          crl.Store
	Feed          responder.Feed
	Log           translog.Store

	// Reopen closes the store and opens it again, as a new process would. The receiver is of no use afterwards.
	Reopen func(t *testing.T) Store
	// Second opens another handle on the store, as a second process would, or is nil if the engine allows one handle.
	Second func(t *testing.T) Store
	// Rebuild replays a whole log into a new store of the engine. It returns all rows of both as text, by table: those of
	// the receiver and those of the new store. It leaves out what the log does not hold.
	Rebuild func(t *testing.T, log []translog.Sequenced) (original, rebuilt map[string][]string)
	// LoseCommit makes the next commit of a change answer with a Temporary error: after it has applied, or instead.
	LoseCommit func(applies bool)
}

// Orders carries out orders: revocation.StatusRecords without what CRLs need.
type Orders interface {
	Apply(ctx context.Context, o revocation.Change) (revocation.ChangeResult, error)
}

// Counts counts what a bulk revocation would change: a part of revocation.BulkCreator.
type Counts interface {
	CountBulk(ctx context.Context, o revocation.BulkRequest) (revocation.Affected, error)
}

// suite is tests by name, each of which opens its own stores.
type suite map[string]func(t *testing.T, open func(t *testing.T) Store)

// registration is the tests of what the registration authority and the issuing pipeline need.
var registration = suite{
	"journal": testJournal, "guards": testGuards, "races": testRaces, "identities": testIdentities, "tokens": testTokens,
	"token revocations": testTokenRevocations, "certificates": testCertificates, "orders": testOrders,
	"identity orders": testIdentityOrders, "log": testLog, "rebuilding": testRebuild, "two handles": testTwoHandles, "lists": testLists, "requests": testRequests,
}

// rest is the other tests.
var rest = suite{
	"ambiguity": testAmbiguity, "installations": testInstallations, "generations": testGenerations, "crls": testCRLs,
	"feed": testFeed, "replay": testReplay, "callers": testCallers, "retention": testRetention, "sets": testSets,
	"orders about many": testMany, "sets beside all else": testSetModel,
}

// Run runs the suite. Each call of open returns a new, empty store, which the test's end closes.
func Run(t *testing.T, open func(t *testing.T) Store) {
	registration.run(t, open)
	rest.run(t, open)
}

// RunRegistration runs the part of the suite for a store with the interfaces of the registration authority.
func RunRegistration(t *testing.T, open func(t *testing.T) Store) { registration.run(t, open) }

func (s suite) run(t *testing.T, open func(t *testing.T) Store) {
	for name, test := range s {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, open)
		})
	}
}

// each runs tests that share nothing, each on a store of its own.
func each(t *testing.T, open func(t *testing.T) Store, tests map[string]func(t *testing.T, w *world)) {
	t.Helper()
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, open(t))
			test(t, w)
			w.mustRebuild(t)
		})
	}
}
