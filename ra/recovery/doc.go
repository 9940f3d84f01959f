// Package recovery verifies that a caller holds the key of an expired certificate (evidence of the kind
// [pki.EvidenceRecovery]). A device that was off when its certificate expired can thus get the next one by itself.
//
// The authenticator finds the certificate on record, and verifies a signature with its key over a statement about this
// request ([pki.RecoveryStatement]). Whether the certificate may still be used, the store decides, in the transaction
// that records the new one: the certificate must be the newest of its identity, not revoked, and expired within the
// grace. The package refuses certificates of reserved identities, which need a token. TLS still refuses every expired
// certificate.
package recovery
