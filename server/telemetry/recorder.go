package telemetry

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/stats"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/revocation/responder"
)

// Config holds the configuration of a Recorder. All fields are required.
type Config struct {
	// HSMs hold the keys of the issuing CAs. Issuer is the current issuing CA.
	HSMs   []IssuingHSM
	Issuer pki.IssuerID
	Traces Traces
	Clock  func() time.Time
	Log    *slog.Logger
}

// A Recorder counts and traces events in a server. It also records whether the HSMs and the store worked when
// they were last used. It implements [ca.Meter], [responder.Meter], grpcapi.Meter, frontdoor.Meter and acme.Meter. It is safe
// for concurrent use.
type Recorder struct {
	metrics *metrics
	traces  *tracing
	hsms    []*watchedHSM
	issuing *watchedHSM // the HSM with the key of the current issuing CA
	store   storeState
	clock   func() time.Time
	log     *slog.Logger
}

// NewRecorder returns a Recorder. If a trace endpoint is configured, the caller must close the Recorder.
func NewRecorder(ctx context.Context, c Config) (*Recorder, error) {
	r := &Recorder{metrics: newMetrics(), clock: c.Clock, log: c.Log}
	for _, t := range c.HSMs {
		r.hsms = append(r.hsms, &watchedHSM{IssuingHSM: t})
	}
	r.issuing = r.hsmOf(c.Issuer)
	var err error
	r.traces, err = newTracing(ctx, c.Traces, c.Log)
	return r, err
}

// Close sends the remaining traces, with a timeout.
func (r *Recorder) Close(ctx context.Context) { r.traces.close(ctx, r.log) }

// Register adds a collector to the metrics.
func (r *Recorder) Register(c prometheus.Collector) { r.metrics.registry.MustRegister(c) }

// StatsHandler returns a handler that traces the calls for which traced returns true, or nil if there is no trace
// endpoint.
func (r *Recorder) StatsHandler(traced func(method string) bool) stats.Handler {
	return r.traces.statsHandler(traced)
}

// Begin implements ca.Meter.
func (r *Recorder) Begin(ctx context.Context, step ca.Step, issuer pki.IssuerID) (end func(error)) {
	begun, m := time.Now(), r.metrics.steps[step]
	m.ongoing.Inc()
	traced := r.traces.step(ctx, step)
	return func(err error) {
		traced(err)
		m.ongoing.Dec()
		m.took.Observe(time.Since(begun).Seconds())
		if step == ca.StepSign {
			r.metrics.signing.WithLabelValues(resultOf(err)).Inc()
			r.noteHSM(r.hsmOf(issuer), err)
		}
	}
}

// AddProfiles creates the series of profiles with the value 0, like those of fromZero.
func (r *Recorder) AddProfiles(names []string) {
	for _, name := range names {
		r.metrics.issued.WithLabelValues(name)
	}
}

// Issued implements ca.Meter.
func (r *Recorder) Issued(profile string) { r.metrics.issued.WithLabelValues(profile).Inc() }

// Answered implements responder.Meter.
func (r *Recorder) Answered(o responder.Outcome) {
	if c := r.metrics.answers[o]; c != nil {
		c.Inc()
	}
}

// Handshake implements grpcapi.Meter and frontdoor.Meter.
func (r *Recorder) Handshake(err error) { r.metrics.handshakes.WithLabelValues(resultOf(err)).Inc() }

// Call implements grpcapi.Meter.
func (r *Recorder) Call(ctx context.Context, rpc string, code codes.Code, took time.Duration, err error) {
	r.metrics.calls.WithLabelValues(rpc, code.String()).Observe(took.Seconds())
	if refusal, ok := pki.AsRefusal(err); ok {
		r.metrics.refusals.WithLabelValues(string(refusal.Rule)).Inc()
		traceRefusal(ctx, refusal.Rule)
	}
}

// Start implements frontdoor.Meter.
func (r *Recorder) Start(q *http.Request, handler string) (traced *http.Request, end func()) {
	return r.traces.request(q, handler)
}

// Request implements frontdoor.Meter.
func (r *Recorder) Request(ctx context.Context, handler string, status int, took time.Duration, err error) {
	r.metrics.requests.WithLabelValues(handler, strconv.Itoa(status)).Observe(took.Seconds())
	if refusal, ok := pki.AsRefusal(err); ok {
		r.metrics.refusals.WithLabelValues(string(refusal.Rule)).Inc()
		traceRefusal(ctx, refusal.Rule)
	}
	traceStatus(ctx, status)
}

// Validated implements acme.Meter.
func (r *Recorder) Validated(challenge string, failure *pki.Refusal, took time.Duration) {
	result := resultOK
	if failure != nil {
		result = string(failure.Rule)
	}
	r.metrics.validations.WithLabelValues(challenge, result).Observe(took.Seconds())
}

// Failure implements grpcapi.Meter and frontdoor.Meter. It attributes a temporary failure to the store, unless the last
// signature of the HSM failed.
func (r *Recorder) Failure(err error) {
	r.metrics.failures.Inc()
	if pki.IsTemporary(err) && !r.issuing.failed.Load() && !errors.Is(err, ca.ErrFenced) {
		// An error of another origin, such as the end of a request that waited, says nothing about the cause.
		passing, known := isPassing(err)
		r.store.fail(err, known && !passing, r.clock())
	}
}

// isPassing reports whether the cause of an error of the store has passed when the lease is renewed. known is false if the
// error does not say that.
func isPassing(err error) (passing, known bool) {
	var own interface{ IsPassing() bool }
	if !errors.As(err, &own) {
		return false, false
	}
	return own.IsPassing(), true
}

// Connections returns the metrics for the connections of a port: those open, and those refused.
func (r *Recorder) Connections(port string) (open prometheus.Gauge, refused prometheus.Counter) {
	return r.metrics.open.WithLabelValues(port), r.metrics.closed.WithLabelValues(port)
}

// Journal returns a journal that writes to j. It counts transactions, and records whether the last one succeeded.
func (r *Recorder) Journal(j ca.Journal) ca.Journal { return journal{j, r} }

type journal struct {
	ca.Journal
	recorder *Recorder
}

// Write implements ca.Journal.
func (j journal) Write(ctx context.Context, e ca.Epoch, commits []ca.BatchCommit, intents []ca.Intent) ([]ca.Results, error) {
	started := time.Now()
	results, err := j.Journal.Write(ctx, e, commits, intents)
	j.recorder.metrics.writing.Observe(time.Since(started).Seconds())
	j.recorder.metrics.writes.WithLabelValues(resultOf(err)).Inc()
	switch {
	case err == nil:
		j.recorder.store.succeed(j.recorder.clock())
	case !errors.Is(err, ca.ErrFenced): // an epoch that was fenced is not a failure of the store
		passing, _ := isPassing(err)
		j.recorder.store.fail(err, !passing, j.recorder.clock())
	}
	return results, err
}

// Renew implements ca.Journal. If the connection to a database was lost, a renewed lease shows that it is back. A server that
// is not ready may get no requests, and so has no other transactions. A failure during the renewal may be later than what the
// renewal shows, so only the next one ends its effect.
func (j journal) Renew(ctx context.Context, e ca.Epoch) (hasEnded bool, err error) {
	before := j.recorder.store.failures()
	hasEnded, err = j.Journal.Renew(ctx, e)
	if err == nil {
		j.recorder.store.renewed(before, j.recorder.clock())
	}
	return hasEnded, err
}
