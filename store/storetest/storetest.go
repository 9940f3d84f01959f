// Package storetest is the conformance suite of the store engines. It tests the contracts of ca.Journal,
// ca.Installations, ca.CrossCertificates, ra.Store, ra.PolicyStore, acme.Store, audit.Store, retention.Store,
// revocation.Store, rotation.Store,
// crl.Store, responder.Feed and translog.Store against a real store.
//
// The suite does not depend on the engine. Tests of one engine are in its package. A store that implements only the
// interfaces of the registration authority runs [RunRegistration], which is a part of [Run].
package storetest

import (
	"context"
	"testing"

	"github.com/brevet-pki/brevet/audit"
	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/ra"
	"github.com/brevet-pki/brevet/ra/acme"
	"github.com/brevet-pki/brevet/revocation"
	"github.com/brevet-pki/brevet/revocation/crl"
	"github.com/brevet-pki/brevet/revocation/responder"
	"github.com/brevet-pki/brevet/revocation/rotation"
	"github.com/brevet-pki/brevet/store/retention"
	"github.com/brevet-pki/brevet/translog"
)

// Store holds the interfaces of one store, and functions that the tests need. For RunRegistration, Installations,
// Cross, Retention, Revocation and LoseCommit may be nil. The suite skips tests that need a field that is nil.
type Store struct {
	Journal       ca.Journal
	Installations ca.Installations
	Cross         ca.CrossCertificates
	RA            ra.Store
	Policies      ra.PolicyStore
	Keys          SealingKeys
	ACME          acme.Store
	Audit         audit.Store
	Retention     retention.Store
	Statuses      StatusChanger
	Revocation    revocation.Store
	Counts        BulkCounter
	Rotations     rotation.Store
	CRLs          crl.Store
	Exchange      crl.Exchange     // nil if the engine allows only one server
	Delegates     DelegateRequests // nil if the engine allows only one server
	Server        string           // the name of the server; empty if the engine allows only one
	Feed          responder.Feed
	Log           translog.Store

	// Reopen closes the store and opens it again, like a new process. The receiver must not be used afterwards.
	Reopen func(t *testing.T) Store
	// Close closes the store before the test ends, for a test that opens many. It may be nil.
	Close func(t testing.TB)
	// Second opens another handle on the store, like a second process. It is nil if the engine allows only one handle.
	Second func(t *testing.T) Store
	// Another opens the store as another server. It is nil if the engine allows only one server.
	Another func(t *testing.T) Store
	// Replay replays a whole log into a new store of the engine. It returns the rows of the receiver and of the new
	// store as text, by table. It omits the data that the log does not contain. If it is nil, replays are not tested.
	Replay func(t *testing.T, log []translog.Sequenced) (original, replayed map[string][]string)
	// LoseCommit makes the next commit of a change return a temporary error. The commit takes effect only if applies is
	// set.
	LoseCommit func(applies bool)
}

// SealingKeys returns the key of the store that seals challenges.
type SealingKeys interface {
	SealingKey(ctx context.Context) ([32]byte, error)
}

// StatusChanger applies changes of statuses. It is a part of revocation.StatusStore.
type StatusChanger interface {
	Apply(ctx context.Context, change revocation.Change) (revocation.ChangeResult, error)
}

// BulkCounter counts the certificates that a bulk revocation would change. It is a part of revocation.BulkCreator.
type BulkCounter interface {
	CountBulk(ctx context.Context, req revocation.BulkRequest) (revocation.Affected, error)
}

// suite maps names to tests. Each test opens its own stores.
type suite map[string]func(t *testing.T, open func(t *testing.T) Store)

// registration contains the tests of the interfaces of the registration authority and the issuing pipeline.
var registration = suite{
	"journal": testJournal, "guards": testGuards, "races": testRaces, "identities": testIdentities, "tokens": testTokens,
	"token revocations": testTokenRevocations, "certificates": testCertificates, "changes": testChanges,
	"identity changes": testIdentityChanges, "log": testLog, "log removal": testLogRemoval, "replay": testReplay, "evidence": testEvidence, "terms": testTerms, "roles": testRoles, "policies": testPolicies,
	"two handles": testTwoHandles, "lists": testLists, "requests": testRequests, "totals": testTotals, "token patterns": testPatterns, "acme": testACME, "recovery": testRecovery,
	"rotations": testRotations, "two servers": testTwoServers,
}

// rest contains the other tests.
var rest = suite{
	"lost commits": testLostCommits, "installations": testInstallations, "generations": testGenerations, "cross-certificates": testCross, "crls": testCRLs,
	"feed": testFeed, "feed model": testFeedModel, "callers": testCallers, "retention": testRetention, "bulk revocations": testBulk,
	"many certificates": testManyCertificates, "bulk model": testBulkModel, "texts": testTexts,
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

// each runs tests, each on its own store, and then checks a replay of the log.
func each(t *testing.T, open func(t *testing.T) Store, tests map[string]func(t *testing.T, w *world)) {
	t.Helper()
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, open(t))
			test(t, w)
			w.mustReplay(t)
		})
	}
}
