package telemetry

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/contrib/instrumentation/google.golang.org/grpc/otelgrpc"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	meternoop "go.opentelemetry.io/otel/metric/noop"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc/stats"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/pki"
)

// Traces configures the export of traces.
type Traces struct {
	// Endpoint is the URL of a collector for OTLP over gRPC: http:// without TLS, https:// with TLS. Empty disables
	// traces.
	Endpoint string
	// SampleRatio is the ratio of RPCs and HTTPS requests to trace, from 0 to 1.
	SampleRatio float64
}

// Limits on traces. Spans beyond the queue are dropped, so that no request waits for a collector.
const (
	traceQueue           = 2048
	traceTimeout         = 5 * time.Second // for one export
	traceShutdownTimeout = 2 * time.Second // for the last export, when the server stops
)

// tracing creates spans of RPCs, of HTTPS requests, and of the steps of issuing. A nil tracing creates none. A span
// contains the RPC or the handler, its status, the server's address, the step and the rule of a refusal, but no identity,
// no peer and no content.
type tracing struct {
	provider *sdktrace.TracerProvider
	tracer   trace.Tracer
}

func newTracing(ctx context.Context, c Traces, log *slog.Logger) (*tracing, error) {
	if c.Endpoint == "" {
		return nil, nil
	}
	exporter, err := otlptracegrpc.New(ctx, otlptracegrpc.WithEndpointURL(c.Endpoint), otlptracegrpc.WithTimeout(traceTimeout),
		otlptracegrpc.WithRetry(otlptracegrpc.RetryConfig{Enabled: false})) // each batch is sent once
	if err != nil {
		return nil, fmt.Errorf("send traces to %s: %w", c.Endpoint, err)
	}
	provider := sdktrace.NewTracerProvider(
		sdktrace.WithBatcher(&loggingExporter{SpanExporter: exporter, log: log},
			sdktrace.WithMaxQueueSize(traceQueue), sdktrace.WithExportTimeout(traceTimeout)),
		sdktrace.WithSampler(sdktrace.ParentBased(sdktrace.TraceIDRatioBased(c.SampleRatio))),
		sdktrace.WithResource(resource.NewSchemaless(attribute.String("service.name", "brevet"))),
	)
	return &tracing{provider, provider.Tracer("github.com/brevet-pki/brevet/server")}, nil
}

// statsHandler traces the calls for which traced returns true. A trace context from the caller becomes a link and not
// the parent. Callers therefore cannot influence the sampling or add to other traces.
func (t *tracing) statsHandler(traced func(method string) bool) stats.Handler {
	if t == nil {
		return nil
	}
	return otelgrpc.NewServerHandler(
		otelgrpc.WithTracerProvider(t.provider), otelgrpc.WithMeterProvider(meternoop.NewMeterProvider()),
		otelgrpc.WithPropagators(propagation.TraceContext{}), otelgrpc.WithPublicEndpoint(),
		otelgrpc.WithFilter(func(info *stats.RPCTagInfo) bool { return traced(info.FullMethodName) }),
	)
}

// request begins the span of an HTTPS request, with the name of its handler, and returns the request with the span in its
// context. As in statsHandler, a trace context from the client becomes a link.
func (t *tracing) request(q *http.Request, handler string) (traced *http.Request, end func()) {
	if t == nil {
		return q, func() {}
	}
	from := propagation.TraceContext{}.Extract(context.Background(), propagation.HeaderCarrier(q.Header))
	options := []trace.SpanStartOption{
		trace.WithNewRoot(), trace.WithSpanKind(trace.SpanKindServer),
		trace.WithAttributes(attribute.String("http.request.method", q.Method)), // one of the routes, so there are few
	}
	if client := trace.SpanContextFromContext(from); client.IsValid() {
		options = append(options, trace.WithLinks(trace.Link{SpanContext: client.WithTraceState(trace.TraceState{})}))
	}
	ctx, span := t.tracer.Start(q.Context(), handler, options...)
	return q.WithContext(ctx), func() { span.End() }
}

// traceStatus adds the status of an HTTPS response to the request's span.
func traceStatus(ctx context.Context, status int) {
	span := trace.SpanFromContext(ctx)
	if !span.IsRecording() {
		return
	}
	span.SetAttributes(attribute.Int("http.response.status_code", status))
	if status >= http.StatusInternalServerError {
		span.SetStatus(codes.Error, "") // the log has the error's text
	}
}

// step traces a step of issuing if the RPC or request in ctx is traced. The caller calls end when the step has ended.
func (t *tracing) step(ctx context.Context, step ca.Step) (end func(error)) {
	if t == nil || !trace.SpanFromContext(ctx).IsRecording() {
		return func(error) {}
	}
	_, span := t.tracer.Start(ctx, string(step))
	return func(err error) {
		if err != nil {
			span.SetStatus(codes.Error, "") // the log has the error's text
		}
		span.End()
	}
}

// traceRefusal adds the rule of a refusal to the call's span.
func traceRefusal(ctx context.Context, rule pki.Rule) {
	if span := trace.SpanFromContext(ctx); span.IsRecording() {
		span.SetAttributes(attribute.String("brevet.rule", string(rule)))
	}
}

// close sends the remaining spans, with a timeout.
func (t *tracing) close(ctx context.Context, log *slog.Logger) {
	if t == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, traceShutdownTimeout)
	defer cancel()
	if err := t.provider.Shutdown(ctx); err != nil {
		log.Warn("sending the last traces failed, dropping them", "error", err)
	}
}

// loggingExporter logs when the collector becomes unavailable, and when it is available again.
type loggingExporter struct {
	sdktrace.SpanExporter
	log     *slog.Logger
	failing atomic.Bool
}

// ExportSpans implements sdktrace.SpanExporter.
func (e *loggingExporter) ExportSpans(ctx context.Context, spans []sdktrace.ReadOnlySpan) error {
	err := e.SpanExporter.ExportSpans(ctx, spans)
	switch failed := err != nil; {
	case failed && !e.failing.Swap(true):
		e.log.Warn("trace collector unavailable, dropping traces", "error", err)
	case !failed && e.failing.Swap(false):
		e.log.Info("trace collector available again")
	}
	return nil //nolint:nilerr // logged above; the library would log every batch to standard error
}
