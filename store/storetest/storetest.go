// Package storetest is what every store has to pass: the contracts of ca.Journal, ca.Installations, ra.Records, audit.Store, retention.Store,
// revocation.Records, crl.Store, responder.Feed and translog.Records, sentence by sentence, against a real store. It refuses to
// know which engine that is; what only one engine has is tested beside that engine.
package storetest

import (
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

// Store is the views of one store, and what the tests do to it.
type Store struct {
	Journal       ca.Journal
	Installations ca.Installations
	RA            ra.Store
	Audit         audit.Store
	Retention     retention.Store
	Revocation    revocation.Store
	CRLs          crl.Store
	Feed          responder.Feed
	Log           translog.Store

	// Reopen closes the store and opens it again, as a new process would. The receiver is of no use afterwards.
	Reopen func(t *testing.T) Store
	// LoseCommit makes the next commit of a change answer with a Temporary error: after it has applied, or instead.
	LoseCommit func(applies bool)
}

// Run runs the suite. Each call of open returns a new, empty store, which the test's end closes.
func Run(t *testing.T, open func(t *testing.T) Store) {
	for name, test := range map[string]func(t *testing.T, open func(t *testing.T) Store){
		"journal": testJournal, "guards": testGuards, "ambiguity": testAmbiguity, "races": testRaces,
		"installations": testInstallations, "generations": testGenerations, "identities": testIdentities, "tokens": testTokens, "token revocations": testTokenRevocations,
		"certificates": testCertificates, "orders": testOrders, "identity orders": testIdentityOrders,
		"crls": testCRLs, "feed": testFeed, "replay": testReplay, "log": testLog,
		"callers":   testCallers,
		"retention": testRetention, "sets": testSets, "orders about many": testMany, "sets beside all else": testSetModel,
	} {
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
		t.Run(name, func(t *testing.T) { test(t, newWorld(t, open(t))) })
	}
}
