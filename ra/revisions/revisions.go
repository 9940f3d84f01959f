package revisions

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra"
	"github.com/brevet-pki/brevet/ra/jwt"
	"github.com/brevet-pki/brevet/ra/policy"
)

// Config configures Revisions. All fields are required.
type Config struct {
	Compiler   Compiler
	Store      ra.PolicyStore
	Identities Identities
	// First is the document of the first revision.
	First []byte
	Clock func() time.Time
	Log   *slog.Logger
}

// Identities finds the identities that have a profile: an [ra.IdentityStore]. It is safe for concurrent use.
type Identities interface {
	Identities(ctx context.Context, f ra.IdentityFilter, at time.Time, after pki.SPIFFEID, limit int) ([]ra.Identity, pki.SPIFFEID, error)
}

// Revisions serves the newest revision of the policy. It is safe for concurrent use.
type Revisions struct {
	config  Config
	current atomic.Pointer[served]
	refused refusals

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
	if err := r.serve(ctx, compiled, newest); err != nil {
		return nil, err
	}
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
func (r *Revisions) serve(ctx context.Context, c Compiled, record ra.PolicyRevision) error {
	if issuer := r.config.Compiler.Issuer; issuer != nil {
		if err := issuer.Activate(ctx, c.Profiles); err != nil {
			return fmt.Errorf("revision %d of the policy is on record, but the one before stays in effect until it is applied again: %w", record.Revision, err)
		}
	}
	before := r.current.Load()
	var fetched *jwt.Authenticator
	if before != nil {
		fetched = before.jwts()
	}
	if next := c.jwts(); next != nil {
		next.Start(fetched)
	}
	c.Policy = remembering{c.Rules, &r.refused}
	r.current.Store(&served{c, record})
	if fetched != nil {
		fetched.Close() // it still verifies tokens of requests in progress, with the keys that it has
	}
	return nil
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
//
// A document without a profile that an identity has is refused. If an identity is registered with the profile while Apply
// checks this, the document is recorded, and requests of the identity are refused (rule profile.unknown).
func (r *Revisions) Apply(ctx context.Context, c ra.PolicyChange) (ra.PolicyRevision, error) {
	r.applying.Lock()
	defer r.applying.Unlock()
	now := r.current.Load()
	var profiles *ca.Profiles // those in effect
	if now != nil {
		profiles = now.Profiles
	}
	compiled, err := r.config.Compiler.compile(c.Document, c.Based+1, profiles)
	if err != nil {
		return ra.PolicyRevision{}, err
	}
	if err := r.checkRemoved(ctx, profiles, compiled.Profiles, c.At); err != nil {
		return ra.PolicyRevision{}, err
	}
	recorded, err := r.config.Store.ApplyPolicy(ctx, c)
	if err != nil {
		return ra.PolicyRevision{}, err
	}
	if now != nil && now.record.Revision == recorded.Revision && bytes.Equal(now.record.Document, c.Document) {
		return recorded, nil // the same document again
	}
	if recorded.Revision != c.Based+1 { // the store had it already, because it was recreated from the log or serve failed
		if compiled, err = r.config.Compiler.compile(c.Document, recorded.Revision, profiles); err != nil {
			return ra.PolicyRevision{}, err
		}
	}
	recorded.Document = c.Document
	if err := r.serve(ctx, compiled, recorded); err != nil {
		return ra.PolicyRevision{}, err
	}
	r.config.Log.Info("policy applied", "revision", recorded.Revision, "rules", len(compiled.Rules.Rules()), "by", recorded.AppliedBy.String())
	return recorded, nil
}

// checkRemoved refuses profiles without one of before that an identity has. before is nil for the first revision.
func (r *Revisions) checkRemoved(ctx context.Context, before, after *ca.Profiles, at time.Time) error {
	if before == nil {
		return nil
	}
	for _, name := range before.Names() {
		if slices.Contains(after.Names(), name) {
			continue
		}
		id, err := r.holder(ctx, name, at)
		if err != nil {
			return fmt.Errorf("look for identities with profile %s: %w", name, err)
		}
		if !id.IsZero() {
			return policy.Faults{{Key: "profiles", Problem: fmt.Sprintf("profile %s is missing, and %s has it: keep the profile, or give "+
				"its identities another one first (brevet identity list --profile %s)", name, id.Path(), name)}}
		}
	}
	return nil
}

// holder returns an identity that has a profile and is not retired, or the zero ID if there is none.
func (r *Revisions) holder(ctx context.Context, profile string, at time.Time) (pki.SPIFFEID, error) {
	f := ra.IdentityFilter{Profile: profile, States: []pki.IdentityState{pki.Registered, pki.Enrolled, pki.Suspended}}
	var after pki.SPIFFEID
	for {
		page, next, err := r.config.Identities.Identities(ctx, f, at, after, 1)
		switch {
		case err != nil:
			return pki.SPIFFEID{}, err
		case len(page) > 0:
			return page[0].ID, nil
		case next.IsZero():
			return pki.SPIFFEID{}, nil
		}
		after = next
	}
}

// Explanation is what the rules of a revision decide about facts.
type Explanation struct {
	Revision uint64
	Evidence []string // the names of the kinds of evidence
	Trials   []policy.Trial
	// RefusedBy is the revision that refused the request at RefusedAt. Both are zero if the facts are not from a request.
	RefusedBy uint64
	RefusedAt time.Time
}

// Explain returns what the newest revision decides about facts in YAML, and why. See [policy.Policy.ReadClaims] for the
// format.
func (r *Revisions) Explain(facts []byte) (Explanation, error) {
	now := r.current.Load()
	claims, label, err := now.Rules.ReadClaims(facts)
	if err != nil {
		return Explanation{}, err
	}
	return Explanation{Revision: now.record.Revision, Evidence: policy.EvidenceOf(claims), Trials: now.Rules.Explain(claims, label)}, nil
}

// ExplainRefused returns what the newest revision decides about a request that no rule has granted, and why. The request
// is named by its actor in the log, such as x5c:9c5f35ae5b1b4bd4, or by the SHA-256 of a piece of evidence in
// hexadecimal. Only the last requests since the start of this process are known.
func (r *Revisions) ExplainRefused(request string) (Explanation, error) {
	refused, ok := r.refused.find(request)
	if !ok {
		return Explanation{}, pki.Refuse(pki.RuleNotFound, "let the device repeat the request, or write its facts into a file",
			"this server does not know the facts of the request: it has started since, has refused %d others, or a rule of the "+
				"policy matched", maxRefusals)
	}
	now := r.current.Load()
	return Explanation{now.record.Revision, policy.EvidenceOf(refused.claims), now.Rules.Explain(refused.claims, refused.label), refused.revision, refused.at}, nil
}
