// Package acmeload is an ACME client for load (RFC 8555). It gets one certificate after the other over one connection,
// each with a new order, a validation with http-01 and a new key. It does the same with every ACME server, and polls
// without the pauses that a server asks for.
package acmeload
