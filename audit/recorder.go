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
	refusalsEach  = 10 // entries of one source per window; the rest become one entry with their count

	// After refusalsPerDay entries in a refusalDay, a source gets only counts for the rest of that day, one for each
	// refusedWindow.
	refusalDay     = 24 * time.Hour
	refusalsPerDay = 100
	refusedWindow  = time.Hour

	maxSources = 10_000 // sources with an open window; the rest share one
	maxDays    = 50_000 // sources whose entries per day are counted; those with few entries are dropped first
)

// writeTimeout limits the writing of an entry. It replaces the deadline of the caller, which may have given up.
const writeTimeout = 10 * time.Second

// Recorder writes refusals to the log, and limits the entries of each source. It is safe for concurrent use.
type Recorder struct {
	store Store
	clock func() time.Time
	log   *slog.Logger

	mu      sync.Mutex
	sources map[sourceKey]*source
	days    map[sourceKey]*day

	once recent // certificates of RecordOnce
}

// day counts the entries of a source since a time.
type day struct {
	begun   time.Time
	entries int
}

// sourceKey identifies a source: an identity, which is zero for an unknown caller, and the rule that refused it.
// Because the rule is part of the key, refusals by one rule do not suppress those by another. The zero sourceKey counts
// all sources beyond maxSources.
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

// recorded marks an error that has been recorded.
type recorded struct{ error }

func (r recorded) Unwrap() error { return r.error }

// Record writes a refusal to the operational log and, if the caller is known, to the audit log. It returns the error
// with a mark, so that recording it again has no effect. It ignores errors that are not refusals. It also ignores
// server.overloaded, which says nothing about the caller and would add load under overload. Record ignores the end of
// ctx, because a caller may have given up.
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

// RecordOnce records a refusal like Record, unless it was called recently for the same certificate. Then it only marks
// the error.
func (r *Recorder) RecordOnce(ctx context.Context, by pki.Actor, id pki.SPIFFEID, certificate pki.Serial, err error) error {
	if !r.once.add(certificate) {
		return recorded{err}
	}
	return r.Record(ctx, by, id, err)
}

// write logs a refusal, or counts it. Refusals of unknown callers are not in the audit log.
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

// open opens a source's window. It is a long one if the source has no entries left for the day.
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
// left, it removes arbitrary ones. Their sources may get the entries of a second day.
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

// end closes a source's window and logs the number of refusals that were not logged in it.
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

// Close logs all pending counts.
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
