// Package rotation computes when each certificate should be renewed (RFC 9773). It starts and stops rotations: early
// renewals of many certificates, at a chosen pace.
//
// A [Manager] computes a window from memory. The statuses of all certificates are there already, with eight marks for
// each. While a rotation is open, one of the marks names its certificates. The Manager reads them from the [Store] when a
// rotation starts and when the server starts.
//
// The renewal window of a certificate is
//   - in the past if the certificate is revoked
//   - in the period of a rotation, if an open one affects the certificate and this is earlier than the usual window
//   - otherwise as [pki.RenewalWindowOf] returns it, also for a certificate on hold. Its holder cannot renew it before it
//     is taken off hold, so an earlier window would only cause requests that the server refuses.
package rotation
