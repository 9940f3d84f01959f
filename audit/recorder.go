package audit

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/brevet-pki/brevet/pki"
)

// Store writes refusals to the log. It is safe for concurrent use.
type Store interface {
	// Refused writes a log entry about a refusal. The caller is authenticated, or has named an identity or token. The
	// entry is durable when Refused returns nil.
	Refused(ctx context.Context, by pki.Actor, identity pki.SPIFFEID, why *pki.Refusal, at time.Time) error
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

// sourceKey identifies a source: an identity, which is zero for an unknown caller, and the rule that refused it.
// Because the rule is part of the key, refusals by one rule do not suppress those by another. The zero sourceKey stands
// for all sources beyond maxSources together.
type sourceKey struct {
	id   pki.SPIFFEID
	rule pki.Rule
}

// source counts the refusals of one source in a window, which starts at the first of them.
type source struct {
	written    int
	suppressed int
	window     time.Duration
	last       pki.Refusal
	by         pki.Actor
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
// Record ignores errors that are not refusals. It also ignores server.overloaded, which says nothing about the caller,
// and whose entries would add load to an overloaded server. Record writes even if ctx has ended, because the client may
// have given up.
func (r *Recorder) Record(ctx context.Context, by pki.Actor, id pki.SPIFFEID, err error) error {
	why, ok := pki.AsRefusal(err)
	if !ok || why.Rule == pki.RuleOverloaded || errors.As(err, new(recorded)) {
		return err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), writeTimeout)
	defer cancel()
	if werr := r.write(ctx, by, id, why); werr != nil {
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
// callers to the operational log alone.
func (r *Recorder) write(ctx context.Context, by pki.Actor, id pki.SPIFFEID, why *pki.Refusal) error {
	admitted, last := r.admit(by, id, why)
	if !admitted {
		return nil
	}
	if last {
		counted := *why
		counted.Detail += fmt.Sprintf(" (entry %d within %s: further ones are only counted, by the hour)", refusalsPerDay, refusalDay)
		why = &counted
	}
	r.log.WarnContext(ctx, "refused", "identity", id.String(), "by", by.String(), "rule", string(why.Rule), "detail", why.Detail)
	if id.IsZero() {
		return nil
	}
	return r.store.Refused(ctx, by, id, why, r.clock())
}

// admit reports whether a refusal gets its own entry, and whether that is the source's last entry of the day.
func (r *Recorder) admit(by pki.Actor, id pki.SPIFFEID, why *pki.Refusal) (admitted, last bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	key := sourceKey{id, why.Rule}
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
	s.last, s.by = *why, by
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
	why := s.last
	r.log.Warn("more refusals counted", "identity", key.id.String(), "by", s.by.String(), "rule", string(why.Rule), "count", s.suppressed)
	if key.id.IsZero() && key != (sourceKey{}) {
		return
	}
	why.Detail = fmt.Sprintf("%d more refusals within %s; the last: %s", s.suppressed, s.window, why.Detail)
	if err := r.store.Refused(ctx, s.by, key.id, &why, r.clock()); err != nil {
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
