package torture

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra"
	"github.com/brevet-pki/brevet/revocation"
	"github.com/brevet-pki/brevet/revocation/responder"
	"github.com/brevet-pki/brevet/server"
)

// The bugs that can be seeded into a server. Clients observe the first three only if a process is killed.
const (
	signBeforeIntent    = "sign before the intent is durable"
	deliverBeforeCommit = "deliver before the record is durable"
	ignoreIntents       = "ignore the intents of the last process"
	confirmBeforeChange = "confirm a revocation before it is durable"
	silentChanges       = "do not notify the responder of changes"
	keepPredecessors    = "do not revoke predecessors"
	silentBulks         = "do not notify the responder of bulk revocations"
	startWithoutBulks   = "start without open bulk revocations"
	issueAgain          = "issue again for a repeated request"
	diskLosesCRLs       = "disk ignores flushes of CRLs"
	diskIgnoresFlush    = "disk ignores flushes"
)

// seedBug wraps a server's stores so that the server has a bug.
func seedBug(name string, s server.Stores) (server.Stores, error) {
	switch name {
	case "", diskIgnoresFlush, diskLosesCRLs:
	case signBeforeIntent:
		s.CA = &lateIntentJournal{Journal: s.CA}
	case deliverBeforeCommit:
		s.CA = &lateCommitJournal{Journal: s.CA}
	case ignoreIntents:
		s.CA = intentlessJournal{s.CA}
	case keepPredecessors:
		s.CA = nonRevokingJournal{s.CA}
	case silentBulks:
		s.Revocation = silentBulkStore{s.Revocation}
	case startWithoutBulks:
		s.Feed, s.Revocation = &bulklessFeed{s.Feed, s.Revocation}, silentBulkStore{s.Revocation}
	case issueAgain:
		s.RA = forgetfulStore{s.RA}
	case confirmBeforeChange:
		s.Revocation = &lateChangeStore{Store: s.Revocation}
	case silentChanges:
		s.Revocation = silentStore{s.Revocation}
	default:
		if !seedACMEBug(name, &s) && !seedReplicaBug(name, &s) {
			return s, fmt.Errorf("unknown bug %q", name)
		}
	}
	return s, nil
}

// lateIntentJournal writes an intent only together with its commit.
type lateIntentJournal struct {
	ca.Journal
	mu      sync.Mutex
	waiting []ca.Intent
}

func (j *lateIntentJournal) Write(ctx context.Context, e ca.Epoch, commits []ca.BatchCommit, intents []ca.Intent) ([]ca.Results, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	var due []ca.Intent
	j.waiting = slices.DeleteFunc(append(j.waiting, intents...), func(i ca.Intent) bool {
		committed := slices.ContainsFunc(commits, func(s ca.BatchCommit) bool { return s.Intent.Batch == i.Batch })
		if committed {
			due = append(due, i)
		}
		return committed
	})
	if len(due) > 0 {
		if _, err := j.Journal.Write(ctx, e, nil, due); err != nil {
			return nil, err
		}
	}
	if len(commits) == 0 {
		return nil, nil
	}
	return j.Journal.Write(ctx, e, commits, nil)
}

// lateCommitJournal reports success for a commit at once, and writes it with the next call.
type lateCommitJournal struct {
	ca.Journal
	mu      sync.Mutex
	waiting []ca.BatchCommit
}

func (j *lateCommitJournal) Write(ctx context.Context, e ca.Epoch, commits []ca.BatchCommit, intents []ca.Intent) ([]ca.Results, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	due := j.waiting
	j.waiting = commits
	if _, err := j.Journal.Write(ctx, e, due, intents); err != nil {
		return nil, err
	}
	results := make([]ca.Results, len(commits))
	for i, s := range commits {
		results[i] = make(ca.Results, len(s.Records))
	}
	return results, nil
}

// intentlessJournal hides the pending intents of earlier processes.
type intentlessJournal struct{ ca.Journal }

func (j intentlessJournal) Begin(ctx context.Context) (ca.Epoch, []ca.Intent, error) {
	epoch, _, err := j.Journal.Begin(ctx)
	return epoch, nil, err
}

// lateChangeStore reports success for a status change at once, and writes it with the next call.
type lateChangeStore struct {
	revocation.Store
	mu      sync.Mutex
	waiting []revocation.Change
}

func (r *lateChangeStore) Apply(ctx context.Context, change revocation.Change) (revocation.ChangeResult, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, due := range r.waiting {
		if _, err := r.Store.Apply(ctx, due); err != nil {
			return revocation.ChangeResult{}, err
		}
	}
	r.waiting = []revocation.Change{change}
	return revocation.ChangeResult{}, nil
}

// silentStore applies changes without notifying the responder, which reads them from the log later.
type silentStore struct{ revocation.Store }

func (r silentStore) Apply(ctx context.Context, change revocation.Change) (revocation.ChangeResult, error) {
	_, err := r.Store.Apply(ctx, change)
	return revocation.ChangeResult{}, err
}

// nonRevokingJournal records renewals as if no profile had renewal_revokes.
type nonRevokingJournal struct{ ca.Journal }

func (j nonRevokingJournal) Write(ctx context.Context, e ca.Epoch, commits []ca.BatchCommit, intents []ca.Intent) ([]ca.Results, error) {
	commits = slices.Clone(commits)
	for i, s := range commits {
		commits[i].Records = slices.Clone(s.Records)
		for n := range s.Records {
			commits[i].Records[n].Guard.Supersedes = false
		}
	}
	return j.Journal.Write(ctx, e, commits, intents)
}

// forgetfulStore returns no certificate of an earlier request with the same ID.
type forgetfulStore struct{ ra.Store }

func (r forgetfulStore) IssuanceState(ctx context.Context, q ra.IssuanceQuery) (ra.IssuanceState, error) {
	s, err := r.Store.IssuanceState(ctx, q)
	s.Prior = nil
	return s, err
}

// silentBulkStore does not notify the responder of bulk revocations. The responder reads them from the log once the
// records of their members are updated.
type silentBulkStore struct{ revocation.Store }

func (r silentBulkStore) NotifyBulk(ctx context.Context, id int64, _ pki.StatusObserver) (revocation.BulkRevocation, error) {
	return r.Store.NotifyBulk(ctx, id, pki.StatusObservers(nil))
}

// bulklessFeed returns a snapshot that ignores open bulk revocations: their members have the status of their records.
type bulklessFeed struct {
	responder.Feed
	bulks revocation.Store
}

func (f *bulklessFeed) Snapshot(ctx context.Context, at time.Time, visit func(pki.StatusChange) error) (uint64, error) {
	open, err := f.bulks.OpenBulk(ctx)
	if err != nil {
		return 0, err
	}
	revoked := map[pki.CertRef]bool{}
	for _, s := range open {
		_, err := f.bulks.NotifyBulk(ctx, s.ID, pki.StatusObserverFunc(func(changes []pki.StatusChange) {
			for _, c := range changes {
				revoked[c.Ref] = c.Status.Version == 2 // good before the bulk revocation
			}
		}))
		if err != nil {
			return 0, err
		}
	}
	return f.Feed.Snapshot(ctx, at, func(c pki.StatusChange) error {
		if revoked[c.Ref] {
			c.Status = pki.Status{State: pki.Good, Version: 1}
		}
		return visit(c)
	})
}

// seededBugsAreFound runs servers with known bugs. The checks must find a fault of each, or a pass without faults would
// prove nothing.
func seededBugsAreFound(t *testing.T, g *testCA, random *rand.Rand) {
	for _, c := range []struct {
		bug   string
		kill  killPoint
		finds string // a part of the expected fault, or two alternatives separated by a bar
	}{
		{signBeforeIntent, killPoint{Step: after(stepSign), N: 3}, "neither a certificate nor a revoked record"},
		{deliverBeforeCommit, killPoint{Step: after(stepRespond), N: 150}, "which is not on record"},
		{ignoreIntents, killPoint{Step: after(stepSign), N: 3}, "neither a certificate nor a revoked record"},
		{confirmBeforeChange, killPoint{Step: after(stepRespond), N: 300}, "is in state"},
		{keepPredecessors, killPoint{Step: after(stepRespond), N: 150}, "was revoked, but is in state"},
		{silentBulks, killPoint{Step: after(stepApplyBulk), N: 30}, "right after its bulk revocation"},
		{startWithoutBulks, killPoint{Step: after(stepApplyBulk), N: 2}, "right after the start"},
		{issueAgain, killPoint{Step: after(stepRespond), N: 150}, "was refused in bulk"},
		{keepAccounts, killPoint{Step: after(stepRespondHTTPS), N: 300}, "is valid|that was given up"},
		{unboundAccounts, killPoint{Step: after(stepRespondHTTPS), N: 100}, "have the same external key, or none"},
		{idleRotations, killPoint{Step: after(stepStartRotation), N: 2}, "but it is outside its rotation"},
		{keepRotations, killPoint{Step: after(stepEndRotation), N: 1}, "was stopped, but is open"},
		{diskLosesCRLs, killPoint{Step: after(stepPutCRL), N: 2}, "is torn after the server's end"},
		{diskIgnoresFlush, killPoint{Step: after(stepRespond), N: 150}, "is not on record|the server does not start"},
	} {
		random := childRand(random)
		t.Run(c.bug, func(t *testing.T) {
			t.Parallel()
			var r *recorder
			if c.bug == diskIgnoresFlush || c.bug == diskLosesCRLs {
				r = &recorder{}
			}
			tt := newCrashTest(t, g, random, c.bug, r, mixedLoad)
			tt.idleTimeout = 300 * time.Millisecond // with some bugs the server never becomes idle
			for n := range 20 {
				faults := tt.round(t, round{kill: c.kill, wait: time.Second})
				one, other, _ := strings.Cut(c.finds, "|")
				if slices.ContainsFunc(faults, func(f string) bool { return strings.Contains(f, one) || other != "" && strings.Contains(f, other) }) {
					t.Logf("round %d: %s", n, report(faults))
					return
				}
				if len(faults) > 0 {
					t.Logf("round %d finds other faults: %s", n, report(faults))
				}
			}
			t.Error("the seeded bug was not found in 20 rounds")
		})
	}
}
