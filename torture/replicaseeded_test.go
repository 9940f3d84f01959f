package torture

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/revocation/responder"
	"github.com/brevet-pki/brevet/server"
)

// The bugs that only several servers, or PostgreSQL, bring to light.
const (
	deliverFenced    = "deliver what another server has revoked"
	trustLostCommits = "deliver when the outcome of a COMMIT is unknown"
	deafResponder    = "do not read the revocations of other servers"
)

// seedReplicaBug wraps a server's stores so that the server has a bug. It reports whether it knows the bug.
func seedReplicaBug(name string, s *server.Stores) bool {
	switch name {
	case deliverFenced:
		s.CA = trustingJournal{s.CA, func(err error) bool { return errors.Is(err, ca.ErrFenced) }}
	case trustLostCommits:
		s.CA = trustingJournal{s.CA, pki.IsTemporary}
	case deafResponder:
		s.Feed = deafFeed{s.Feed}
	default:
		return false
	}
	return true
}

// trustingJournal reports success for a Write that failed with certain errors.
type trustingJournal struct {
	ca.Journal
	trusts func(error) bool
}

func (j trustingJournal) Write(ctx context.Context, e ca.Epoch, commits []ca.BatchCommit, intents []ca.Intent) ([]ca.Results, error) {
	results, err := j.Journal.Write(ctx, e, commits, intents)
	if err == nil || len(commits) == 0 || !j.trusts(err) {
		return results, err
	}
	results = make([]ca.Results, len(commits))
	for i, c := range commits {
		results[i] = make(ca.Results, len(c.Records))
	}
	return results, nil
}

// deafFeed has no revocations. The responder knows those of its own server without it.
type deafFeed struct{ responder.Feed }

func (f deafFeed) Changes(ctx context.Context, after uint64, limit int, apply func([]pki.StatusChange)) (uint64, error) {
	return f.Feed.Changes(ctx, after, limit, func(changes []pki.StatusChange) {
		apply(slices.DeleteFunc(changes, func(c pki.StatusChange) bool { return c.Status.State == pki.Revoked }))
	})
}

// seededReplicaBugsAreFound runs several servers with known bugs. The checks must find a fault of each.
func seededReplicaBugsAreFound(t *testing.T, g *testCA, random *rand.Rand) {
	for _, c := range []struct {
		bug   string
		fault replicaFault
		finds string
	}{
		{deliverFenced, replicaFault{"a server stands still before a commit", false, func(_ *testing.T, rt *replicaTest) error {
			return rt.pauseAt(killPoint{Step: before(stepCommit), N: 3}.random(rt.random), lease+2*time.Second)
		}}, "which is not on record"},
		{trustLostCommits, networkFaults[0], "which is not on record"},
		{deafResponder, replicaFault{"nothing fails", false, func(*testing.T, *replicaTest) error { time.Sleep(maxStaleness + time.Second); return nil }}, "after its revocation was confirmed"},
	} {
		random := childRand(random)
		t.Run(c.bug, func(t *testing.T) {
			t.Parallel()
			rt := newReplicaTest(t, g, random, c.bug, 2)
			rt.clients.timeout = callTimeout                                  // the client of a server that stood still waits for the response
			rt.idleTimeout, rt.clients.retries = 3*time.Second, 3*time.Second // with some bugs the servers never recover
			for n := range 12 {
				faults := rt.round(t, c.fault)
				if slices.ContainsFunc(faults, func(f string) bool { return strings.Contains(f, c.finds) }) {
					t.Logf("round %d: %s", n, report(faults))
					return
				}
				if len(faults) > 0 {
					t.Logf("round %d finds other faults: %s", n, report(faults))
				}
			}
			t.Error("the seeded bug was not found in 12 rounds")
		})
	}
}
