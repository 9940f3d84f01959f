// Package est serves Enrollment over Secure Transport (RFC 7030, RFC 8951, RFC 9908) as a door of package frontdoor. It
// decodes requests, calls package ra, and encodes responses. It has no rule of its own.
//
// A client authenticates in one of these ways:
//
//   - simpleenroll: with an enrollment token as the password of HTTP Basic, with a factory certificate (IDevID) as TLS
//     client certificate, or with both, if the policy has a rule for this evidence
//   - simplereenroll: with the certificate to renew as TLS client certificate
//   - cacerts and csrattrs: not at all
//
// The URL can contain a label (RFC 7030 §3.2.2), which the policy must have (see [ra.Label]). A URL without a label is
// that of the label "default". The server generates no keys, and supports no full CMC: these operations are refused.
//
// A request ID is a digest of how the client authenticated and of the key in the CSR. So a client that has lost a
// response gets the same certificate if it sends the same CSR again.
package est
