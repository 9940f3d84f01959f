// Package telemetry shows how a server is: metrics for Prometheus, probes of liveness and readiness, and traces over OTLP.
//
// A [Recorder] counts what has happened since the start, and watches the HSM tokens and the store. A [Part] computes gauges
// of one part of the server at scrape time. A [Check] is one reason for a server not to be ready. Labels come from closed
// sets (RPCs, status codes, rules, steps, profiles): nothing that a caller sends becomes one. Spans carry no identity, no
// peer and no content.
package telemetry
