// Package issuing reads what the decision about a certificate depends on: its identity, its key, and the certificates before
// it. The guard in the transaction that records the certificate reads the same again.
package issuing
