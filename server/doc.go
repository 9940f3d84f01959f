// Package server assembles the parts of a Brevet server, starts and stops them, owns the listeners, and enrolls the
// server's own identities.
//
//   - [github.com/brevet-pki/brevet/server/authz]: which callers may call what
//   - [github.com/brevet-pki/brevet/server/admission]: which calls work now, wait or are rejected
//   - [github.com/brevet-pki/brevet/server/grpcapi]: the front door for gRPC
//   - [github.com/brevet-pki/brevet/server/telemetry]: metrics, probes and traces
//
// It refuses connections above the limit of a port, and a configuration in which an issuing CA has no HSM token.
package server
