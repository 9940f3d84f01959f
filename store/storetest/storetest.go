// Package storetest is the conformance suite of the store engines. It tests the contracts of ca.Journal, ca.Installations,
// ra.Store, audit.Store, retention.Store, revocation.Store, crl.Store, responder.Feed and translog.Store against a real store.
//
// The suite does not depend on the engine. Tests of one engine are in its package. A store that implements only the interfaces
// of the registration authority runs [RunRegistration], which is a part of [Run].
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

// Store holds the views of one store, and functions that the tests need. For RunRegistration, Installations, Retention,
// Revocation and LoseCommit may be nil. Tests that need a missing field are skipped.
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

	// Reopen closes the store and opens it again, like a new process. The receiver must not be used afterwards.
	Reopen func(t *testing.T) Store
	// Second opens another handle on the store, like a second process. It is nil if the engine allows only one handle.
	Second func(t *testing.T) Store
	// Rebuild replays a whole log into a new store of the engine. It returns the rows of the receiver and of the new store as
	// text, by table. It leaves out the data that the log does not contain.
	Rebuild func(t *testing.T, log []translog.Sequenced) (original, rebuilt map[string][]string)
	// LoseCommit makes the next commit of a change fail with a Temporary error, after the commit was applied or without
	// applying it.
	LoseCommit func(applies bool)
}

// Orders applies changes of statuses. It is a part of revocation.StatusStore.
type Orders interface {
	Apply(ctx context.Context, o revocation.Change) (revocation.ChangeResult, error)
}

// Counts counts the certificates that a bulk revocation would change. It is a part of revocation.BulkCreator.
type Counts interface {
	CountBulk(ctx context.Context, o revocation.BulkRequest) (revocation.Affected, error)
}

// suite maps names to tests. Each test opens its own stores.
type suite map[string]func(t *testing.T, open func(t *testing.T) Store)

// registration returns the tests of the interfaces of the registration authority and the issuing pipeline.
var registration = suite{
	"journal": testJournal, "guards": testGuards, "races": testRaces, "identities": testIdentities, "tokens": testTokens,
	"token revocations": testTokenRevocations, "certificates": testCertificates, "orders": testOrders,
	"identity orders": testIdentityOrders, "log": testLog, "rebuilding": testRebuild, "two handles": testTwoHandles, "lists": testLists, "requests": testRequests,
}

// rest returns the other tests.
var rest = suite{
	"ambiguity": testAmbiguity, "installations": testInstallations, "generations": testGenerations, "crls": testCRLs,
	"feed": testFeed, "replay": testReplay, "callers": testCallers, "retention": testRetention, "sets": testSets,
	"orders about many": testMany, "sets beside all else": testSetModel,
}

// Run runs the suite. Each call of open must return a new, empty store, which is closed when the test ends.
func Run(t *testing.T, open func(t *testing.T) Store) {
	registration.run(t, open)
	rest.run(t, open)
}

// RunRegistration runs the part of the suite for the interfaces of the registration authority.
func RunRegistration(t *testing.T, open func(t *testing.T) Store) { registration.run(t, open) }

func (s suite) run(t *testing.T, open func(t *testing.T) Store) {
	for name, test := range s {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, open)
		})
	}
}

// each runs independent tests, each on its own store.
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
