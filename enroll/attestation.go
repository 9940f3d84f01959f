package enroll

import (
	"context"
	"encoding/hex"
	"errors"

	"github.com/brevet-pki/brevet/enroll/tpm"
	"github.com/brevet-pki/brevet/pki"
)

// attestation is Evidence that the key of the request is in a TPM.
type attestation struct{ endorsement tpm.Endorsement }

// Attestation returns [Evidence] that the key of a request is in a TPM 2.0. The key must be a [*tpm.Key]. Attestation
// reads the endorsement key of the TPM, which may take a minute when it is called first.
func Attestation(device *tpm.Device) (Evidence, error) {
	ek, err := device.Endorsement()
	if err != nil {
		return nil, err
	}
	return attestation{ek}, nil
}

// Kind implements Evidence.
func (attestation) Kind() pki.EvidenceKind { return pki.EvidenceTPM }

// Subject returns the SHA-256 of the endorsement key in hexadecimal.
func (a attestation) Subject() string { return hex.EncodeToString(a.endorsement.Hash[:]) }

// Present implements Evidence.
func (attestation) Present(ctx context.Context, p Presentation) (pki.Evidence, error) {
	key, ok := p.Key.(*tpm.Key)
	if !ok {
		return pki.Evidence{}, errors.New("the key of the request is not in a TPM")
	}
	public, err := key.Device().Describe()
	if err != nil {
		return pki.Evidence{}, err
	}
	challenge, err := p.Challenge(ctx, pki.EvidenceTPM, public)
	if err != nil {
		return pki.Evidence{}, err
	}
	response, err := key.Device().Respond(p.TrustDomain, challenge, key)
	return pki.Evidence{Kind: pki.EvidenceTPM, Value: response}, err
}
