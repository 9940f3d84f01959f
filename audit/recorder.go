package audit

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/brevet-pki/brevet/pki"
)

// Store writes refusals to the log. It is safe for concurrent use.
type Store interface {
	// Refused writes a log entry about a refusal. The caller is authenticated, has named an identity or token, or has
	// presented evidence. The entry is durable when Refused returns nil.
	Refused(ctx context.Context, r Refusal) error
}

// Refusal is a refused request.
type Refusal struct {
	By       pki.Actor
	Identity pki.SPIFFEID // zero if it is not known
	Evidence pki.EvidenceRecord
	Why      *pki.Refusal
	At       time.Time
}

// kinds returns the names of the kinds of evidence.
func (r Refusal) kinds() string {
	var names []string
	for _, p := range r.Evidence.Pieces {
		names = append(names, p.Kind.String())
	}
	return strings.Join(names, " ")
}

// isAttributed reports whether the audit log has entries about the refusal.
func (r Refusal) isAttributed() bool { return !r.Identity.IsZero() || len(r.Evidence.Pieces) > 0 }

// attributes returns the attributes of a message in the operational log.
func (r Refusal) attributes() []any {
	all := []any{"identity", r.Identity.String(), "by", r.By.String(), "rule", string(r.Why.Rule)}
	if kinds := r.kinds(); kinds != "" {
		all = append(all, "evidence", kinds)
	}
	return all
}

// loggedDetail returns the detail for the audit log, which is kept forever. It is empty if the detail could repeat
// personal data in the evidence, such as the subject of a certificate, or text of a caller without an identity.
func (r Refusal) loggedDetail() string {
	if r.Identity.IsZero() && len(r.Evidence.Pieces) > 0 || strings.HasPrefix(string(r.Why.Rule), evidenceRules) {
		return ""
	}
	return r.Why.Detail
}

// evidenceRules begins the names of the rules about what evidence contains.
const evidenceRules = "evidence."

// with returns the refusal as the audit log records it, with a detail.
func (r Refusal) with(detail string, at time.Time) Refusal {
	why := *r.Why
	why.Detail, r.At = detail, at
	r.Why = &why
	return r
}

// Limits on the entries in the log that one source of refused requests can cause.
const (
	refusalWindow = time.Minute
	refusalsEach  = 10 // entries of one source per refusalWindow; one more entry has the count of its other refusals

	// When a source has caused refusalsPerDay entries in a refusalDay, its other refusals of that day are only counted,
	// with one entry per refusedWindow.
	refusalDay     = 24 * time.Hour
	refusalsPerDay = 100
	refusedWindow  = time.Hour

	maxSources = 10_000 // sources that have a window of their own; all others share one window
	maxDays    = 50_000 // sources whose entries per day are counted; sources with few entries are dropped first
)

// writeTimeout is the timeout for writing one entry. It replaces the deadline of the refused request, because the entry
// is written even if the client has given up.
const writeTimeout = 10 * time.Second

// Recorder writes refusals to the log, and limits the entries of each source. It is safe for concurrent use.
type Recorder struct {
	store Store
	clock func() time.Time
	log   *slog.Logger

	mu      sync.Mutex
	sources map[sourceKey]*source
	days    map[sourceKey]*day

	once recent // certificates with a recent call of RecordOnce
}

// day counts the entries of a source in the refusalDay that starts at begun.
type day struct {
	begun   time.Time
	entries int
}

// sourceKey identifies a source: an identity, and the rule that refused it. Because the rule is part of the key,
// refusals by one rule do not suppress those by another. All callers whose identity is not known, and who presented
// evidence of the same kinds, are one source: what else tells them apart, they can choose. The zero sourceKey stands
// for all sources beyond maxSources together.
type sourceKey struct {
	id    pki.SPIFFEID
	kinds string // of evidence, if the identity is not known
	rule  pki.Rule
}

func sourceOf(r Refusal) sourceKey {
	key := sourceKey{id: r.Identity, rule: r.Why.Rule}
	if r.Identity.IsZero() {
		key.kinds = r.kinds()
	}
	return key
}

// source counts the refusals of one source in a window, which starts at the first of them.
type source struct {
	written    int
	suppressed int
	window     time.Duration
	last       Refusal
	close      *time.Timer
}

// New returns a Recorder. The caller must close it.
func New(store Store, clock func() time.Time, log *slog.Logger) *Recorder {
	return &Recorder{store: store, clock: clock, log: log, sources: map[sourceKey]*source{}, days: map[sourceKey]*day{}}
}

// recorded wraps an error that a Recorder has recorded.
type recorded struct{ error }

func (r recorded) Unwrap() error { return r.error }

// Record writes a refusal to the operational log and, if the caller is known, to the audit log. It returns the error
// with a mark: if Record gets the marked error again, it does nothing.
//
// Record ignores errors that are not refusals. It also ignores server.overloaded and refusals of the class Unavailable,
// which say nothing about the caller, and whose entries would add load to a server that has trouble. Record writes even if ctx has ended, because the client may
// have given up.
func (r *Recorder) Record(ctx context.Context, by pki.Actor, id pki.SPIFFEID, err error) error {
	return r.RecordEvidence(ctx, by, id, pki.EvidenceRecord{}, err)
}

// RecordEvidence records the refusal of a request with evidence like Record. It writes to the audit log even if the
// caller is not known.
func (r *Recorder) RecordEvidence(ctx context.Context, by pki.Actor, id pki.SPIFFEID, e pki.EvidenceRecord, err error) error {
	why, ok := pki.AsRefusal(err)
	if !ok || why.Rule == pki.RuleOverloaded || why.Rule.Class() == pki.Unavailable || errors.As(err, new(recorded)) {
		return err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), writeTimeout)
	defer cancel()
	if werr := r.write(ctx, Refusal{By: by, Identity: id, Evidence: e, Why: why}); werr != nil {
		r.log.ErrorContext(ctx, "writing a refusal to the audit log failed", "identity", id.String(), "rule", string(why.Rule), "error", werr)
	}
	return recorded{err}
}

// RecordOnce records a refusal like Record. If RecordOnce was called recently for the same certificate, it writes
// nothing and only marks the error.
func (r *Recorder) RecordOnce(ctx context.Context, by pki.Actor, id pki.SPIFFEID, certificate pki.Serial, err error) error {
	if !r.once.add(certificate) {
		return recorded{err}
	}
	return r.Record(ctx, by, id, err)
}

// write writes a refusal to the operational log and the audit log, or only counts it. It writes refusals of unknown
// callers without evidence to the operational log alone.
func (r *Recorder) write(ctx context.Context, q Refusal) error {
	admitted, last := r.admit(q)
	if !admitted {
		return nil
	}
	var note string
	if last {
		note = fmt.Sprintf(" (entry %d within %s: further ones are only counted, by the hour)", refusalsPerDay, refusalDay)
	}
	r.log.WarnContext(ctx, "refused", append(q.attributes(), "detail", q.Why.Detail+note)...)
	if !q.isAttributed() {
		return nil
	}
	return r.store.Refused(ctx, q.with(strings.TrimSpace(q.loggedDetail()+note), r.clock()))
}

// admit counts a refusal. It reports whether the refusal gets an entry of its own, and whether this entry is the
// source's last one of the day.
func (r *Recorder) admit(q Refusal) (admitted, last bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	key := sourceOf(q)
	s := r.sources[key]
	if s == nil && len(r.sources) >= maxSources {
		key = sourceKey{}
		s = r.sources[key]
	}
	d := r.day(key)
	spent := d.entries >= refusalsPerDay
	if s == nil {
		s = r.open(key, spent)
	}
	if s.written < refusalsEach && !spent {
		s.written++
		d.entries++
		return true, d.entries == refusalsPerDay
	}
	s.suppressed++
	s.last = q
	return false, false
}

// open starts a source's window. The window lasts refusalWindow, or refusedWindow if the source has used up its entries
// of the day (spent).
func (r *Recorder) open(key sourceKey, spent bool) *source {
	s := &source{window: refusalWindow}
	if spent {
		s.window = refusedWindow
	}
	s.close = time.AfterFunc(s.window, func() {
		ctx, cancel := context.WithTimeout(context.Background(), writeTimeout)
		defer cancel()
		r.end(ctx, key)
	})
	r.sources[key] = s
	return s
}

// day returns the current day of a source, or starts one.
func (r *Recorder) day(key sourceKey) *day {
	now := time.Now()
	if d := r.days[key]; d != nil && now.Sub(d.begun) < refusalDay {
		return d
	}
	if len(r.days) >= maxDays {
		r.forget(now)
	}
	d := &day{begun: now}
	r.days[key] = d
	return d
}

// forget removes the days that have ended, and the days of sources with few entries. If more than half of maxDays are
// left, it removes arbitrary days. The sources of those can then cause refusalsPerDay more entries on the same day.
func (r *Recorder) forget(now time.Time) {
	for key, d := range r.days {
		if now.Sub(d.begun) >= refusalDay || d.entries < refusalsEach {
			delete(r.days, key)
		}
	}
	for key := range r.days {
		if len(r.days) <= maxDays/2 {
			return
		}
		delete(r.days, key)
	}
}

// end closes a source's window, and logs how many of its refusals in the window have no entry of their own.
func (r *Recorder) end(ctx context.Context, key sourceKey) {
	r.mu.Lock()
	s := r.sources[key]
	delete(r.sources, key)
	r.mu.Unlock()
	if s == nil || s.suppressed == 0 {
		return
	}
	last := s.last
	r.log.Warn("more refusals counted", append(last.attributes(), "count", s.suppressed)...)
	if !last.isAttributed() && key != (sourceKey{}) {
		return
	}
	detail := fmt.Sprintf("%d more refusals within %s", s.suppressed, s.window)
	if of := last.loggedDetail(); of != "" {
		detail += "; the last: " + of
	}
	if key == (sourceKey{}) {
		last.Identity, last.Evidence = pki.SPIFFEID{}, pki.EvidenceRecord{} // the count is of several sources
	}
	if err := r.store.Refused(ctx, last.with(detail, r.clock())); err != nil {
		r.log.Error("writing a count of refusals to the audit log failed", "identity", key.id.String(), "count", s.suppressed, "error", err)
	}
}

// Close closes all windows and logs their counts.
func (r *Recorder) Close(ctx context.Context) {
	r.mu.Lock()
	var open []sourceKey
	for key, s := range r.sources {
		s.close.Stop()
		open = append(open, key)
	}
	r.mu.Unlock()
	for _, key := range open {
		r.end(ctx, key)
	}
}
