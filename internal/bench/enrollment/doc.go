// Package enrollment simulates devices that enroll for the first time, for brevet-bench enroll.
//
// An [Issuers] gives each [Device] its evidence: an enrollment token, a factory certificate, a TPM or a JWT. It also has
// the policy that accepts them, and the signature checks that a server needs for them. A [Client] enrolls devices, each
// over a new TLS connection. [NewBareServer] returns a server that responds to the same RPCs without any work, to
// compare with.
//
// The TPMs are programs in this process: a TPM needs 0.1 to 1 second for an attestation, and the measurement is of the
// server.
package enrollment
