package revisions

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra"
	"github.com/brevet-pki/brevet/ra/jwt"
	"github.com/brevet-pki/brevet/ra/policy"
)

// Config configures Revisions. All fields are required.
type Config struct {
	Compiler Compiler
	Store    ra.PolicyStore
	// First is the document of the first revision.
	First []byte
	Clock func() time.Time
	Log   *slog.Logger
}

// Revisions serves the newest revision of the policy. It is safe for concurrent use.
type Revisions struct {
	config  Config
	current atomic.Pointer[served]

	applying sync.Mutex // serializes changes
}

// served is a revision that decides about requests.
type served struct {
	Compiled
	record ra.PolicyRevision
}

// New returns the Revisions of a store. If the store has no revision yet, New records the first document.
func New(ctx context.Context, c Config) (*Revisions, error) {
	r := &Revisions{config: c}
	newest, err := c.Store.Policy(ctx, 0)
	if refusal, ok := pki.AsRefusal(err); ok && refusal.Rule.Class() == pki.NotFound {
		if err := r.begin(ctx); err != nil {
			return nil, err
		}
		return r, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the policy: %w", err)
	}
	compiled, err := c.Compiler.Compile(newest.Document, newest.Revision)
	if err != nil {
		return nil, fmt.Errorf("revision %d of the policy cannot serve with this configuration: %w", newest.Revision, err)
	}
	r.serve(compiled, newest)
	return r, nil
}

// begin records the first document, if the store has no revision. A store that was recreated from the log has revisions
// without documents. Then the first document must be that of the newest revision.
func (r *Revisions) begin(ctx context.Context) error {
	first := ra.PolicyChange{Document: r.config.First, By: pki.ActorSystem("policy"), At: r.config.Clock(), Comment: "the first policy of this CA"}
	known, _, err := r.config.Store.Policies(ctx, 0, 1)
	if err != nil {
		return fmt.Errorf("read the policy: %w", err)
	}
	if len(known) > 0 {
		newest := known[0]
		if sha256.Sum256(first.Document) != newest.SHA256 {
			return fmt.Errorf("revision %d of the policy has no document, because the store was recreated from the log: "+
				"set policy in the configuration to the document with the SHA-256 %x", newest.Revision, newest.SHA256)
		}
		first.Based = newest.Revision
	}
	if _, err := r.Apply(ctx, first); err != nil {
		return fmt.Errorf("record the first policy: %w", err)
	}
	return nil
}

// serve makes a revision the newest one. The sources of JWTs keep the keys that they have fetched.
func (r *Revisions) serve(c Compiled, record ra.PolicyRevision) {
	before := r.current.Load()
	var fetched *jwt.Authenticator
	if before != nil {
		fetched = before.jwts()
	}
	if next := c.jwts(); next != nil {
		next.Start(fetched)
	}
	r.current.Store(&served{c, record})
	if fetched != nil {
		fetched.Close() // it still verifies tokens of requests in progress, with the keys that it has
	}
}

// reloadInterval is the interval at which Run reads the files of trust sources again.
const reloadInterval = time.Minute

// Run reads the files of trust sources again at intervals, until ctx ends.
func (r *Revisions) Run(ctx context.Context) error {
	tick := time.NewTicker(reloadInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			r.config.Compiler.Files.Reload()
		}
	}
}

// Close ends the fetching of keys.
func (r *Revisions) Close() {
	r.applying.Lock()
	defer r.applying.Unlock()
	if a := r.current.Load().jwts(); a != nil {
		a.Close()
	}
}

// Current returns the newest revision.
func (r *Revisions) Current() ra.Revision { return r.current.Load().Revision }

// Grace returns how long after its expiry a certificate can recover its identity, with the newest revision.
func (r *Revisions) Grace() time.Duration { return r.current.Load().Grace() }

// Newest returns the record of the newest revision, with its document.
func (r *Revisions) Newest() ra.PolicyRevision { return r.current.Load().record }

// Apply checks a document and records it as the newest revision. Requests that begin after Apply has returned are decided
// with it. If the document has faults, the error is a [policy.Faults], which wraps a refusal.
func (r *Revisions) Apply(ctx context.Context, c ra.PolicyChange) (ra.PolicyRevision, error) {
	r.applying.Lock()
	defer r.applying.Unlock()
	compiled, err := r.config.Compiler.Compile(c.Document, c.Based+1)
	if err != nil {
		return ra.PolicyRevision{}, err
	}
	recorded, err := r.config.Store.ApplyPolicy(ctx, c)
	if err != nil {
		return ra.PolicyRevision{}, err
	}
	if now := r.current.Load(); now != nil && now.record.Revision == recorded.Revision && bytes.Equal(now.record.Document, c.Document) {
		return recorded, nil // the same document again
	}
	if recorded.Revision != c.Based+1 { // a store that was recreated from the log has it already
		if compiled, err = r.config.Compiler.Compile(c.Document, recorded.Revision); err != nil {
			return ra.PolicyRevision{}, err
		}
	}
	recorded.Document = c.Document
	r.serve(compiled, recorded)
	r.config.Log.Info("policy applied", "revision", recorded.Revision, "rules", len(compiled.Rules.Rules()), "by", recorded.AppliedBy.String())
	return recorded, nil
}

// Explanation is what the rules of a revision decide about facts.
type Explanation struct {
	Revision uint64
	Trials   []policy.Trial
}

// Explain returns what the newest revision decides about facts in YAML, and why. See [policy.Policy.ReadClaims] for the
// format.
func (r *Revisions) Explain(facts []byte) (Explanation, error) {
	now := r.current.Load()
	claims, err := now.Rules.ReadClaims(facts)
	if err != nil {
		return Explanation{}, err
	}
	return Explanation{now.record.Revision, now.Rules.Explain(claims)}, nil
}
