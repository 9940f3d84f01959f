package telemetry

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra/acme"
	"github.com/brevet-pki/brevet/revocation/responder"
)

// metrics holds the counters since the start. The gauges that are computed at scrape time are in gauges.go.
type metrics struct {
	registry    *prometheus.Registry
	calls       *prometheus.HistogramVec
	failures    prometheus.Counter
	refusals    *prometheus.CounterVec
	issued      *prometheus.CounterVec
	signing     *prometheus.CounterVec
	writes      *prometheus.CounterVec
	writing     prometheus.Histogram
	requests    *prometheus.HistogramVec
	validations *prometheus.HistogramVec
	handshakes  *prometheus.CounterVec
	open        *prometheus.GaugeVec
	closed      *prometheus.CounterVec
	steps       map[ca.Step]stepMetrics
	answers     map[responder.Outcome]prometheus.Counter
}

// stepMetrics holds the metrics of one step of issuing. They are looked up in advance, because every certificate passes
// through every step.
type stepMetrics struct {
	took    prometheus.Observer
	ongoing prometheus.Gauge
}

// Values of the label "result".
const (
	resultOK     = "ok"
	resultFailed = "failed"
)

// Values of the label "port".
const (
	PortGRPC       = "grpc"
	PortHTTP       = "http"
	PortHTTPS      = "https"
	PortOperations = "operations"
)

// latencies are the histogram buckets, from 0.5 ms (a signature in software) to 8 s (an HSM that hangs).
var latencies = prometheus.ExponentialBuckets(0.0005, 2, 15)

func newMetrics() *metrics {
	m := &metrics{
		registry: prometheus.NewRegistry(),
		calls:    histograms("brevet_rpc_duration_seconds", "Duration of RPCs, by RPC and status code.", "rpc", "code"),
		failures: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "brevet_rpc_internal_errors_total", Help: "RPCs that failed because of the server.",
		}),
		refusals: counters("brevet_refusals_total", "Refused RPCs, by rule.", "rule"),
		issued:   counters("brevet_certificates_issued_total", "Recorded certificates, by profile.", "profile"),
		signing:  counters("brevet_certificate_signatures_total", "Certificate signatures of HSMs, by result: ok or failed.", "result"),
		writes:   counters("brevet_journal_writes_total", "Transactions of the issuing pipeline, by result: ok or failed.", "result"),
		requests: histograms("brevet_http_request_duration_seconds", "Duration of HTTP requests, by handler and status code.", "handler", "code"),
		validations: histograms("brevet_acme_validation_duration_seconds",
			"Duration of validations of ACME challenges, by type of challenge, and by result: ok, or the rule that they broke.", "challenge", "result"),
		handshakes: counters("brevet_tls_handshakes_total", "TLS handshakes on the ports for gRPC and HTTPS, by result: ok or failed.", "result"),
		open: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "brevet_connections_open", Help: "Open connections, by port: grpc, http, https or operations.",
		}, []string{"port"}),
		closed: counters("brevet_connections_refused_total", "Connections that were closed at once because of the limit, by port: grpc, http, https or operations.", "port"),
		writing: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "brevet_journal_write_duration_seconds", Help: "Duration of the issuing pipeline's transactions.", Buckets: latencies,
		}),
		steps: map[ca.Step]stepMetrics{}, answers: map[responder.Outcome]prometheus.Counter{},
	}
	steps := histograms("brevet_issuance_step_duration_seconds", "Duration of the steps of issuing a certificate: intent, sign, record.", "step")
	ongoing := prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "brevet_issuance_step_certificates", Help: "Certificates in a step of issuing: intent, sign, record.",
	}, []string{"step"})
	for _, s := range ca.Steps() {
		m.steps[s] = stepMetrics{steps.WithLabelValues(string(s)), ongoing.WithLabelValues(string(s))}
	}
	answers := counters("brevet_ocsp_responses_total", "OCSP responses, by outcome.", "outcome")
	for _, o := range responder.Outcomes() {
		m.answers[o] = answers.WithLabelValues(string(o))
	}
	m.fromZero()
	m.registry.MustRegister(m.calls, m.failures, m.refusals, m.issued, m.signing, m.writes, m.writing, m.requests, m.validations, m.handshakes, m.open, m.closed,
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

// fromZero creates series with the value 0 before their first event, because rate() in Prometheus ignores the first
// value of a series.
func (m *metrics) fromZero() {
	for _, result := range []string{resultOK, resultFailed} {
		m.signing.WithLabelValues(result)
		m.writes.WithLabelValues(result)
		m.handshakes.WithLabelValues(result)
	}
	for _, t := range acme.ChallengeTypes() {
		m.validations.WithLabelValues(string(t), resultOK)
	}
	for _, rule := range pki.Rules() {
		m.refusals.WithLabelValues(string(rule))
	}
	for _, port := range []string{PortGRPC, PortHTTP, PortHTTPS, PortOperations} {
		m.open.WithLabelValues(port)
		m.closed.WithLabelValues(port)
	}
}

func resultOf(err error) string {
	if err != nil {
		return resultFailed
	}
	return resultOK
}
