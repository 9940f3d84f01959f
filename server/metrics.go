package server

import (
	"context"
	"errors"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"google.golang.org/grpc/status"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/revocation/responder"
)

// metrics is what the operations port tells about what happened since the start. Labels come from closed sets: RPCs,
// status codes, rules, steps, profiles. Nothing a caller sends becomes one. What stands now is in gauges.go.
type metrics struct {
	registry   *prometheus.Registry
	calls      *prometheus.HistogramVec
	failures   prometheus.Counter
	refusals   *prometheus.CounterVec
	issued     *prometheus.CounterVec
	signing    *prometheus.CounterVec
	writes     *prometheus.CounterVec
	writing    prometheus.Histogram
	requests   *prometheus.HistogramVec
	handshakes *prometheus.CounterVec
	open       *prometheus.GaugeVec
	closed     *prometheus.CounterVec
	steps      map[ca.Step]stepMetrics
	answers    map[responder.Outcome]prometheus.Counter
}

// stepMetrics are those of one step, looked up once: every certificate takes each step.
type stepMetrics struct {
	took    prometheus.Observer
	ongoing prometheus.Gauge
}

// Labels that code gives to what it counts.
const (
	resultOK       = "ok"
	resultFailed   = "failed"
	portGRPC       = "grpc"
	portHTTP       = "http"
	portOperations = "operations"
)

// latencies reach from a signature in software to a token that hangs, in seconds.
var latencies = prometheus.ExponentialBuckets(0.0005, 2, 15)

func newMetrics(profiles map[string]*ca.Profile) *metrics {
	m := &metrics{
		registry: prometheus.NewRegistry(),
		calls:    histograms("brevet_rpc_duration_seconds", "Duration of gRPC calls, by RPC and status code.", "rpc", "code"),
		failures: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "brevet_rpc_internal_errors_total", Help: "Calls that failed through the server's own fault.",
		}),
		refusals:   counters("brevet_refusals_total", "Refused calls, by rule.", "rule"),
		issued:     counters("brevet_certificates_issued_total", "Certificates that are on record, by profile.", "profile"),
		signing:    counters("brevet_certificate_signatures_total", "Certificate signatures asked of the token, by result: ok or failed.", "result"),
		writes:     counters("brevet_journal_writes_total", "Transactions of the issuing pipeline, by result: ok or failed.", "result"),
		requests:   histograms("brevet_http_request_duration_seconds", "Duration of HTTP requests, by what was asked for and status code.", "for", "code"),
		handshakes: counters("brevet_tls_handshakes_total", "TLS handshakes on the gRPC port, by result: ok or failed.", "result"),
		open: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "brevet_connections_open", Help: "Connections that are open, by port: grpc, http or operations.",
		}, []string{"port"}),
		closed: counters("brevet_connections_refused_total", "Connections that were closed at once, for there were too many, by port: grpc, http or operations.", "port"),
		writing: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "brevet_journal_write_duration_seconds", Help: "Duration of the issuing pipeline's transactions.", Buckets: latencies,
		}),
		steps: map[ca.Step]stepMetrics{}, answers: map[responder.Outcome]prometheus.Counter{},
	}
	steps := histograms("brevet_issuance_step_duration_seconds", "Duration of the steps of issuing a certificate: intent, sign, record.", "step")
	ongoing := prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "brevet_issuance_step_certificates", Help: "Certificates that are in a step of issuing: intent, sign, record.",
	}, []string{"step"})
	for _, s := range ca.Steps() {
		m.steps[s] = stepMetrics{steps.WithLabelValues(string(s)), ongoing.WithLabelValues(string(s))}
	}
	answers := counters("brevet_ocsp_responses_total", "OCSP responses, by what they say.", "outcome")
	for _, o := range responder.Outcomes() {
		m.answers[o] = answers.WithLabelValues(string(o))
	}
	m.fromZero(profiles)
	m.registry.MustRegister(m.calls, m.failures, m.refusals, m.issued, m.signing, m.writes, m.writing, m.requests, m.handshakes, m.open, m.closed,
		steps, ongoing, answers,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

func histograms(name, help string, labels ...string) *prometheus.HistogramVec {
	return prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: name, Help: help, Buckets: latencies}, labels)
}

func counters(name, help string, labels ...string) *prometheus.CounterVec {
	return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
}

// fromZero makes series before anything is counted in them: a rate does not see what a series begins with.
func (m *metrics) fromZero(profiles map[string]*ca.Profile) {
	for _, result := range []string{resultOK, resultFailed} {
		m.signing.WithLabelValues(result)
		m.writes.WithLabelValues(result)
		m.handshakes.WithLabelValues(result)
	}
	for name := range profiles {
		m.issued.WithLabelValues(name)
	}
	for _, rule := range pki.Rules() {
		m.refusals.WithLabelValues(string(rule))
	}
	for _, port := range []string{portGRPC, portHTTP, portOperations} {
		m.open.WithLabelValues(port)
		m.closed.WithLabelValues(port)
	}
}

// call counts one finished call.
func (m *metrics) call(method string, took time.Duration, why error, answered error) {
	if _, known := access[method]; !known {
		method = "unknown"
	}
	m.calls.WithLabelValues(method, status.Code(answered).String()).Observe(took.Seconds())
	if r, ok := pki.AsRefusal(why); ok {
		m.refusals.WithLabelValues(string(r.Rule)).Inc()
	}
}

func resultOf(err error) string {
	if err != nil {
		return resultFailed
	}
	return resultOK
}

// Answered implements responder.Meter.
func (m *metrics) Answered(o responder.Outcome) {
	if c := m.answers[o]; c != nil {
		c.Inc()
	}
}

// What the public port serves, by the beginning of the path.
var publicPaths = []struct{ prefix, what string }{{"/ocsp", "ocsp"}, {"/crl/", "crl"}, {"/ca/", "ca"}, {"", "other"}}

// public counts what a handler answers. It does so for every answer of the responder, which takes it little more than
// copying memory; so it looks nothing up for a success, and leaves nothing to collect.
func (m *metrics) public(next http.Handler) http.Handler {
	succeeded := make([]prometheus.Observer, len(publicPaths))
	for n, p := range publicPaths {
		succeeded[n] = m.requests.WithLabelValues(p.what, strconv.Itoa(http.StatusOK))
	}
	writers := sync.Pool{New: func() any { return new(codeWriter) }}
	return http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		n := slices.IndexFunc(publicPaths, func(p struct{ prefix, what string }) bool { return strings.HasPrefix(q.URL.Path, p.prefix) })
		begun, coded := time.Now(), writers.Get().(*codeWriter)
		coded.ResponseWriter, coded.code = w, http.StatusOK
		next.ServeHTTP(coded, q)
		took := succeeded[n]
		if coded.code != http.StatusOK {
			took = m.requests.WithLabelValues(publicPaths[n].what, strconv.Itoa(coded.code))
		}
		took.Observe(time.Since(begun).Seconds())
		coded.ResponseWriter = nil
		writers.Put(coded)
	})
}

// A codeWriter remembers the status code of a response.
type codeWriter struct {
	http.ResponseWriter
	code int
}

// WriteHeader implements http.ResponseWriter.
func (w *codeWriter) WriteHeader(code int) {
	w.code = code
	w.ResponseWriter.WriteHeader(code)
}

// WriteString implements io.StringWriter, as what it wraps does.
func (w *codeWriter) WriteString(text string) (int, error) {
	return io.WriteString(w.ResponseWriter, text)
}

// Unwrap is for http.ResponseController.
func (w *codeWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// journal counts what the issuing pipeline writes, and remembers when the store last took nothing.
type journal struct {
	ca.Journal
	server *Server
}

// Write implements ca.Journal.
func (j journal) Write(ctx context.Context, e ca.Epoch, settle []ca.BatchCommit, announce []ca.Intent) ([]ca.Results, error) {
	begun := time.Now()
	verdicts, err := j.Journal.Write(ctx, e, settle, announce)
	j.server.metrics.writing.Observe(time.Since(begun).Seconds())
	j.server.metrics.writes.WithLabelValues(resultOf(err)).Inc()
	if !errors.Is(err, ca.ErrFenced) { // which is not the store's failure
		j.server.store.note(err, j.server.config.Clock())
	}
	return verdicts, err
}
