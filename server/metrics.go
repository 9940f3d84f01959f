package server

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"google.golang.org/grpc/status"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/pki"
)

// metrics is what the operations port tells about calls and issuance. Labels come from closed sets: RPCs, status codes,
// rules and steps. Nothing a caller sends becomes one.
type metrics struct {
	registry *prometheus.Registry
	calls    *prometheus.HistogramVec
	refusals *prometheus.CounterVec
	steps    *prometheus.HistogramVec
	signing  *prometheus.CounterVec
}

// latencies reach from a signature in software to a token that hangs, in seconds.
var latencies = prometheus.ExponentialBuckets(0.0005, 2, 15)

func newMetrics() *metrics {
	m := &metrics{
		registry: prometheus.NewRegistry(),
		calls: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "brevet_call_seconds", Help: "Duration of gRPC calls, by RPC and status code.", Buckets: latencies,
		}, []string{"rpc", "code"}),
		refusals: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "brevet_refusals_total", Help: "Refused calls, by rule.",
		}, []string{"rule"}),
		steps: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "brevet_issue_step_seconds", Help: "Duration of the steps of issuing a certificate: intent, sign, record.", Buckets: latencies,
		}, []string{"step"}),
		signing: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "brevet_signatures_total", Help: "Certificate signatures asked of the token, by result: ok or failed.",
		}, []string{"result"}),
	}
	for _, result := range []string{"ok", "failed"} {
		m.signing.WithLabelValues(result) // a rate needs a zero to start from
	}
	m.registry.MustRegister(m.calls, m.refusals, m.steps, m.signing,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// step counts one step of issuing.
func (m *metrics) step(step ca.Step, took time.Duration, err error) {
	m.steps.WithLabelValues(string(step)).Observe(took.Seconds())
	if step != ca.StepSign {
		return
	}
	result := "ok"
	if err != nil {
		result = "failed"
	}
	m.signing.WithLabelValues(result).Inc()
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

// Gauges that are read when somebody asks.
var (
	inFlightDesc = prometheus.NewDesc("brevet_certificates_in_flight", "Certificates between draft and release.", nil, nil)
	expiryDesc   = prometheus.NewDesc("brevet_expiry_timestamp_seconds",
		"When what the CA lives on ends, as Unix time: CA certificates, CRLs, the server's certificate, OCSP delegates.", []string{"kind", "name"}, nil)
	currentDesc = prometheus.NewDesc("brevet_statuses_current_timestamp_seconds",
		"When the responder last knew every status, as Unix time.", nil, nil)
	crlDesc  = prometheus.NewDesc("brevet_crl_this_update_timestamp_seconds", "When the published CRL was signed, as Unix time.", []string{"name"}, nil)
	logDesc  = prometheus.NewDesc("brevet_log_entries", "Entries of the log, by how far they have come: sequenced or archived.", []string{"in"}, nil)
	readDesc = prometheus.NewDesc("brevet_scrape_failures", "Parts of this answer that could not be read.", nil, nil)
)

// Describe implements prometheus.Collector.
func (s *Server) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{inFlightDesc, expiryDesc, currentDesc, crlDesc, logDesc, readDesc} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (s *Server) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	at := func(t time.Time) float64 { return float64(t.UnixMilli()) / 1000 }
	gauge(inFlightDesc, float64(s.authority.InFlight()))
	gauge(currentDesc, at(s.responder.CurrentAt()))
	names := map[pki.IssuerID]string{}
	for _, c := range s.config.Authorities {
		names[pki.IssuerOf(c)] = c.Subject.String()
		gauge(expiryDesc, at(c.NotAfter), "ca", c.Subject.String()+" "+pki.IssuerOf(c).Short())
	}
	for kind, certs := range s.ownCertificates() {
		for _, c := range certs {
			gauge(expiryDesc, at(c.NotAfter), kind, pathOf(c))
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), scrapePatience)
	defer cancel()
	failures := 0.0
	crls, err := s.config.Stores.Revocation.CRLs(ctx)
	if err != nil {
		failures++
	}
	for _, c := range crls {
		name := names[c.Issuer] + " " + c.Issuer.Short()
		gauge(expiryDesc, at(c.NextUpdate), "crl", name)
		gauge(crlDesc, at(c.ThisUpdate), name)
	}
	head, err := s.config.Stores.Log.Head(ctx)
	if err != nil {
		failures++
	} else {
		gauge(logDesc, float64(head.Size), "sequenced")
	}
	gauge(logDesc, float64(s.config.Archive.Head().Size), "archived")
	gauge(readDesc, failures)
}

// scrapePatience bounds what an answer on the operations port waits for the store.
const scrapePatience = 2 * time.Second

func (s *Server) ownCertificates() map[string][]*x509.Certificate {
	own := map[string][]*x509.Certificate{}
	if p := s.own.Pair(); p != nil {
		own["server"] = append(own["server"], p.Certificate)
	}
	for _, d := range s.delegates {
		if p := d.Pair(); p != nil {
			own["va"] = append(own["va"], p.Certificate)
		}
	}
	return own
}

func pathOf(c *x509.Certificate) string {
	if len(c.URIs) == 0 {
		return ""
	}
	return c.URIs[0].String()
}

// operations serves the operations port: metrics, liveness and readiness.
func (s *Server) operations() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(s.metrics.registry, promhttp.HandlerOpts{MaxRequestsInFlight: 4}))
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) { respond(w, s.alive()) })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, r *http.Request) { respond(w, s.readiness(r.Context())) })
	return mux
}

// alive returns what only a restart, or stopping the other process, mends.
func (s *Server) alive() error {
	if s.authority.Fenced() {
		return ca.ErrFenced
	}
	return nil
}

// readiness returns what keeps this process from doing its work now.
func (s *Server) readiness(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, scrapePatience)
	defer cancel()
	now := s.config.Clock()
	err := s.alive()
	if !s.serving.Load() {
		err = errors.Join(err, errors.New("not serving: starting or stopping"))
	}
	if age := now.Sub(s.responder.CurrentAt()); age > time.Minute {
		err = errors.Join(err, errors.New("the responder has not heard from the store for over a minute"))
	}
	if p := s.own.Pair(); p == nil || p.Expired(now) {
		err = errors.Join(err, errors.New("the server's own certificate has expired"))
	}
	if _, herr := s.config.Stores.Log.Head(ctx); herr != nil {
		err = errors.Join(err, errors.New("the store cannot be read"))
	}
	if s.tokenFails.Load() {
		err = errors.Join(err, errors.New("the token did not sign the last certificate"))
	}
	if at := s.failed.Load(); at != nil && time.Since(*at) < time.Minute {
		err = errors.Join(err, errors.New("a call failed within the last minute, for want of the token, the store or its disk: the log says which"))
	}
	return err
}

// respond answers a probe: 200 with {"status":"ok"}, or 503 with the reasons, one in a line.
func respond(w http.ResponseWriter, err error) {
	w.Header().Set("Content-Type", "application/json")
	answer := map[string]string{"status": "ok"}
	if err != nil {
		w.WriteHeader(http.StatusServiceUnavailable)
		answer = map[string]string{"status": "unavailable", "reason": err.Error()}
	}
	_ = json.NewEncoder(w).Encode(answer) // whoever asked has gone
}
