package enroll

import (
	"context"
	"crypto"
	"crypto/x509"
	"fmt"

	"github.com/brevet-pki/brevet/pki"
	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
)

// Evidence proves to a server who a device or workload is: a [Token], a [FactoryCertificate], the [Attestation] of a
// TPM, a [JWT], or an [ExpiredKey]. It is safe for concurrent use.
type Evidence interface {
	Kind() pki.EvidenceKind
	// Subject identifies the device or workload among those with evidence of the same kind, such as by the ID of a token
	// or the hash of a key. It contains no secrets and no personal data. An [Agent] does not repeat a request for another
	// subject.
	Subject() string
	// Present returns the evidence for one request. If the evidence responds to a challenge, Present gets one from the
	// server. When a request is repeated, Present is called again, so that the challenge is never too old.
	Present(ctx context.Context, p Presentation) (pki.Evidence, error)
}

// Presentation is the request that a piece of [Evidence] is presented with.
type Presentation struct {
	TrustDomain string // the one of the server
	RequestID   pki.RequestID
	KeyHash     pki.KeyHash   // of the key in the CSR
	Key         crypto.Signer // the key of the CSR, as in EnrollRequest and RenewRequest

	server Challenger
}

// Challenge gets a challenge for this request from the server. public is what the server needs to make it, and nil for
// kinds of evidence whose challenge depends on nothing.
func (p Presentation) Challenge(ctx context.Context, kind pki.EvidenceKind, public []byte) ([]byte, error) {
	if p.server == nil {
		return nil, fmt.Errorf("evidence of the kind %s needs a challenge, and this server makes none", kind)
	}
	return p.server.Challenge(ctx, ChallengeRequest{kind, p.RequestID, p.KeyHash, public})
}

// Challenger makes challenges for evidence. If it refuses, its error wraps a [*pki.Refusal].
type Challenger interface {
	Challenge(ctx context.Context, c ChallengeRequest) ([]byte, error)
}

// ChallengeRequest asks for the challenge that the evidence in an [EnrollRequest] or a [RenewRequest] responds to.
type ChallengeRequest struct {
	Kind      pki.EvidenceKind
	RequestID pki.RequestID
	KeyHash   pki.KeyHash // of the key in the CSR
	Public    []byte
}

// Present returns the evidence of the request in the encodings that a server expects, in the same order. from may be
// nil if no piece of evidence responds to a challenge.
func (r EnrollRequest) Present(ctx context.Context, from Challenger) ([]pki.Evidence, error) {
	key, err := hashCSRKey(r.CSR)
	if err != nil {
		return nil, err
	}
	p := Presentation{r.Bootstrap.TrustDomain, r.RequestID, key, r.Key, from}
	var all []pki.Evidence
	for _, e := range r.Evidence {
		presented, err := e.Present(ctx, p)
		if err != nil {
			return nil, err
		}
		all = append(all, presented)
	}
	return all, nil
}

// present returns the evidence of the request in the encoding that a server expects.
func (r RenewRequest) present(ctx context.Context, from Challenger) (pki.Evidence, error) {
	key, err := hashCSRKey(r.CSR)
	if err != nil {
		return pki.Evidence{}, err
	}
	return r.Evidence.Present(ctx, Presentation{r.Current.ID().TrustDomain(), r.RequestID, key, r.Key, from})
}

// hashCSRKey returns the hash of the key in a CSR.
func hashCSRKey(der []byte) (pki.KeyHash, error) {
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return pki.KeyHash{}, fmt.Errorf("read the key of the certification request: %w", err)
	}
	return pki.HashSPKI(csr.RawSubjectPublicKeyInfo), nil
}

// wireEvidence converts evidence to protobuf.
func wireEvidence(all []pki.Evidence) ([]*brevetv1.Evidence, error) {
	var wire []*brevetv1.Evidence
	for _, e := range all {
		switch e.Kind {
		case pki.EvidenceToken:
			token := &brevetv1.TokenEvidence{Secret: e.Value}
			wire = append(wire, &brevetv1.Evidence{Kind: &brevetv1.Evidence_Token{Token: token}})
		case pki.EvidenceTPM:
			wire = append(wire, &brevetv1.Evidence{Kind: &brevetv1.Evidence_Tpm{Tpm: &brevetv1.TPMEvidence{Response: e.Value}}})
		case pki.EvidenceX5C:
			x, err := pki.ParseX5CEvidence(e.Value)
			if err != nil {
				return nil, err
			}
			wire = append(wire, &brevetv1.Evidence{Kind: &brevetv1.Evidence_X5C{X5C: &brevetv1.X5CEvidence{
				Certificates: x.Certificates, Challenge: x.Challenge, Signature: x.Signature,
			}}})
		case pki.EvidenceRecovery:
			r, err := pki.ParseRecoveryEvidence(e.Value)
			if err != nil {
				return nil, err
			}
			wire = append(wire, &brevetv1.Evidence{Kind: &brevetv1.Evidence_Recovery{Recovery: &brevetv1.RecoveryEvidence{
				IssuerId: r.IssuerID, Serial: r.Serial, PublicKey: r.PublicKey, Challenge: r.Challenge, Signature: r.Signature,
			}}})
		case pki.EvidenceJWT:
			wire = append(wire, &brevetv1.Evidence{Kind: &brevetv1.Evidence_Jwt{Jwt: &brevetv1.JWTEvidence{Token: e.Value}}})
		default:
			return nil, fmt.Errorf("this client cannot send evidence of the kind %s", e.Kind)
		}
	}
	return wire, nil
}

// wireKinds maps the kinds of evidence that respond to a challenge to those in protobuf.
var wireKinds = map[pki.EvidenceKind]brevetv1.EvidenceKind{
	pki.EvidenceX5C: brevetv1.EvidenceKind_EVIDENCE_KIND_X5C,
	pki.EvidenceTPM: brevetv1.EvidenceKind_EVIDENCE_KIND_TPM,

	pki.EvidenceRecovery: brevetv1.EvidenceKind_EVIDENCE_KIND_RECOVERY,
}
