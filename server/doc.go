// Package server assembles the parts of a Brevet server, starts and stops them, owns the listeners, and enrolls the
// server's own identities.
//
//   - [github.com/brevet-pki/brevet/server/authz] decides which callers may call which operations.
//   - [github.com/brevet-pki/brevet/server/admission] decides which calls run now, wait or are rejected.
//   - [github.com/brevet-pki/brevet/server/grpcapi] serves the gRPC API.
//   - [github.com/brevet-pki/brevet/server/telemetry] provides metrics, probes and traces.
//
// The package closes connections above the limit of a port. It refuses a configuration in which the key of an issuing
// CA is in no HSM.
package server
