// Package validation checks that an ACME client controls an identifier: with the challenges http-01 and dns-01 (RFC
// 8555 §8.3 and §8.4), and tls-alpn-01 (RFC 8737), for DNS names and IP addresses (RFC 8738).
//
// The clients choose which hosts the server connects to. The package therefore refuses
//   - an address outside the allowed networks, see [DefaultAllows]. It resolves a name once, checks each address, and
//     connects to an address that it has checked,
//   - every redirect, also one to HTTPS on the same host: a redirect chooses another target, and the clients do not need
//     it, because they control the response,
//   - more than 64 KiB from a host, and validations of more than 10 seconds.
//
// It connects to one port for each type of challenge. No refusal contains anything that a host has sent. A [Pool] runs
// a bounded number of validations at a time, and serves the accounts in turn.
package validation
