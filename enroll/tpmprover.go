package enroll

import (
	"context"

	"github.com/brevet-pki/brevet/enroll/tpm"
	"github.com/brevet-pki/brevet/pki"
)

// attestation is a Prover with a key in a TPM.
type attestation struct{ key *tpm.Key }

// TPMKey returns a Prover for a key in a TPM 2.0. The key must be that of the CSR.
func TPMKey(key *tpm.Key) Prover { return attestation{key} }

// Kind implements Prover.
func (attestation) Kind() pki.EvidenceKind { return pki.EvidenceTPM }

// Public implements Prover.
func (a attestation) Public(context.Context) ([]byte, error) { return a.key.Device().Describe() }

// Prove implements Prover.
func (a attestation) Prove(_ context.Context, p Proof) (pki.Evidence, error) {
	response, err := a.key.Device().Respond(p.TrustDomain, p.Challenge, a.key)
	return pki.Evidence{Kind: pki.EvidenceTPM, Value: response}, err
}
