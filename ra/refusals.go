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
	refusalsEach  = 10     // entries of one source in a window; further refusals become one entry with their count
	maxSources    = 10_000 // that are counted apart; further ones count as one
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
	last       pki.Refusal
	by         pki.Actor
	close      *time.Timer
}

func newRefusals(records RefusalRecords, clock func() time.Time, log *slog.Logger) *refusals {
	return &refusals{records: records, clock: clock, log: log, sources: map[sourceKey]*source{}}
}

// write logs a refusal, on standard error and there, or counts it. Nobody known has no entries.
func (r *refusals) write(ctx context.Context, by pki.Actor, id pki.SPIFFEID, why *pki.Refusal) error {
	if !r.admit(by, id, why) {
		return nil
	}
	r.log.WarnContext(ctx, "refused", "identity", id.String(), "by", by.String(), "rule", string(why.Rule), "detail", why.Detail)
	if id.IsZero() {
		return nil
	}
	return r.records.Refused(ctx, by, id, why, r.clock())
}

// admit reports whether a refusal gets an entry of its own.
func (r *refusals) admit(by pki.Actor, id pki.SPIFFEID, why *pki.Refusal) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	key := sourceKey{id, why.Rule}
	s := r.sources[key]
	if s == nil && len(r.sources) >= maxSources {
		key = sourceKey{}
		s = r.sources[key]
	}
	if s == nil {
		s = &source{}
		s.close = time.AfterFunc(refusalWindow, func() {
			ctx, cancel := context.WithTimeout(context.Background(), flushPatience)
			defer cancel()
			r.end(ctx, key)
		})
		r.sources[key] = s
	}
	if s.written < refusalsEach {
		s.written++
		return true
	}
	s.suppressed++
	s.last, s.by = *why, by
	return false
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
	why.Detail = fmt.Sprintf("%d more refusals within %s; the last: %s", s.suppressed, refusalWindow, why.Detail)
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
