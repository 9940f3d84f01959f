package ra

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/brevet-pki/brevet/pki"
)

// Bounds on how much of the log one source of refused requests can fill.
const (
	refusalWindow = time.Minute
	refusalsEach  = 10 // entries of one source in a window; further refusals become one entry with their count

	// A source that has had refusalsPerDay entries within a day from its first one has only counts for the rest of that day,
	// each of refusedWindow.
	refusalDay     = 24 * time.Hour
	refusalsPerDay = 100
	refusedWindow  = time.Hour

	maxSources = 10_000 // with a window that is open; further ones count as one
	maxDays    = 50_000 // sources whose entries of a day are remembered; those with few are forgotten first
)

// flushPatience bounds the writing of a count, which no caller waits for.
const flushPatience = 10 * time.Second

// refusals writes refusals to the log, and keeps a source that repeats itself from filling it. It is safe for
// concurrent use.
type refusals struct {
	records RefusalRecords
	clock   func() time.Time
	log     *slog.Logger

	mu      sync.Mutex
	sources map[sourceKey]*source
	days    map[sourceKey]*day
}

// day is what a source has had of the log since a time.
type day struct {
	begun   time.Time
	entries int
}

// sourceKey tells sources apart: an identity, or nobody known, and the rule it meets, so that no rule hides behind the noise
// of another. Without a rule it is of those who are not counted apart.
type sourceKey struct {
	id   pki.SPIFFEID
	rule pki.Rule
}

// source is the refusals of one key in the window that the first of them opened.
type source struct {
	written    int
	suppressed int
	window     time.Duration
	last       pki.Refusal
	by         pki.Actor
	close      *time.Timer
}

func newRefusals(records RefusalRecords, clock func() time.Time, log *slog.Logger) *refusals {
	return &refusals{records: records, clock: clock, log: log, sources: map[sourceKey]*source{}, days: map[sourceKey]*day{}}
}

// write logs a refusal, on standard error and there, or counts it. Nobody known has no entries.
func (r *refusals) write(ctx context.Context, by pki.Actor, id pki.SPIFFEID, why *pki.Refusal) error {
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
	return r.records.Refused(ctx, by, id, why, r.clock())
}

// admit reports whether a refusal gets an entry of its own, and whether that is the last one of the source's day.
func (r *refusals) admit(by pki.Actor, id pki.SPIFFEID, why *pki.Refusal) (admitted, last bool) {
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

// open opens a source's window: a long one where its entries of the day are spent.
func (r *refusals) open(key sourceKey, spent bool) *source {
	s := &source{window: refusalWindow}
	if spent {
		s.window = refusedWindow
	}
	s.close = time.AfterFunc(s.window, func() {
		ctx, cancel := context.WithTimeout(context.Background(), flushPatience)
		defer cancel()
		r.end(ctx, key)
	})
	r.sources[key] = s
	return s
}

// day returns the day of a source that is under way, or begins one.
func (r *refusals) day(key sourceKey) *day {
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

// forget makes room for days: of those that are over, and of sources that have had less than one window's entries. Where that
// is not half of all, it forgets any, which gives so many sources no more than a second day's entries.
func (r *refusals) forget(now time.Time) {
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

// end closes a source's window and logs the count of what was not logged in it.
func (r *refusals) end(ctx context.Context, key sourceKey) {
	r.mu.Lock()
	s := r.sources[key]
	delete(r.sources, key)
	r.mu.Unlock()
	if s == nil || s.suppressed == 0 {
		return
	}
	why := s.last
	r.log.Warn("refused, and counted", "identity", key.id.String(), "by", s.by.String(), "rule", string(why.Rule), "count", s.suppressed)
	if key.id.IsZero() && key != (sourceKey{}) {
		return
	}
	why.Detail = fmt.Sprintf("%d more refusals within %s; the last: %s", s.suppressed, s.window, why.Detail)
	if err := r.records.Refused(ctx, s.by, key.id, &why, r.clock()); err != nil {
		r.log.Error("a count of refusals is not in the log", "identity", key.id.String(), "count", s.suppressed, "error", err)
	}
}

// flush logs every count, due or not.
func (r *refusals) flush(ctx context.Context) {
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
