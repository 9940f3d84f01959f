// Package server is Brevet's process from the inside: it makes the parts, joins them, and starts and stops them. It owns the
// listeners and enrolls the identities of the server itself.
//
//   - [github.com/brevet-pki/brevet/server/authz]: who may call what
//   - [github.com/brevet-pki/brevet/server/admission]: who works now, who waits, who comes back later
//   - [github.com/brevet-pki/brevet/server/grpcapi]: the front door over gRPC
//   - [github.com/brevet-pki/brevet/server/telemetry]: metrics, probes and traces
//
// It refuses connections above the bounds of a port, and a configuration in which an issuing CA has no HSM token.
package server
