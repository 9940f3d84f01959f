// Package telemetry exposes the state of a server: metrics for Prometheus, liveness and readiness probes, and traces
// over OTLP.
//
// A [Recorder] counts events since the start, and monitors the HSMs and the store. A [Part] computes the gauges
// of one part of the server at scrape time. A [Check] tests one condition of readiness. Labels come from closed sets
// (RPCs, status codes, rules, steps, profiles): no input from a caller becomes a label. Spans carry no identity, no
// peer and no content.
package telemetry
