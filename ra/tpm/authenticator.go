package tpm

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"fmt"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/pki/attest"
	"github.com/brevet-pki/brevet/ra"
	"github.com/brevet-pki/brevet/ra/nonce"
)

// Authenticator is an [ra.Authenticator] and an [ra.Challenger] for TPM attestation. It is safe for concurrent use.
type Authenticator struct {
	trustDomain string
	sources     sources
	digest      [32]byte // of the sources
	nonces      *nonce.Sealer
}

// New returns an Authenticator for devices that enroll in a trust domain. It verifies certificates of endorsement keys
// against the sources. Without sources, rules of the policy can only name endorsement keys.
func New(trustDomain string, from []Source, nonces *nonce.Sealer) (*Authenticator, error) {
	s, err := newSources(from)
	if err != nil {
		return nil, err
	}
	return &Authenticator{trustDomain, s, digestOf(from), nonces}, nil
}

// The facts of an attestation.
const (
	factEK           = "tpm.ek"           // SHA-256 of the EK's SubjectPublicKeyInfo, in hexadecimal
	factCertified    = "tpm.certified"    // whether a certificate of the EK was verified
	factSource       = "tpm.source"       // name of the source that the certificate chains to, or empty
	factManufacturer = "tpm.manufacturer" // from the verified certificate, such as id:53544D20, or empty
	factModel        = "tpm.model"        // from the verified certificate, or empty
	factVersion      = "tpm.version"      // from the verified certificate, or empty
)

// Facts implements [ra.Authenticator].
func (*Authenticator) Facts() map[string]ra.FactType {
	return map[string]ra.FactType{
		factEK: ra.FactString, factCertified: ra.FactBool, factSource: ra.FactString, factManufacturer: ra.FactString,
		factModel: ra.FactString, factVersion: ra.FactString,
	}
}

// Unique returns the fact that is different for each TPM.
func (*Authenticator) Unique() []ra.UniqueFact { return []ra.UniqueFact{{Name: factEK}} }

// Certified returns the facts that follow from the verified certificate of an endorsement key.
func (*Authenticator) Certified() []string {
	return []string{factCertified, factSource, factManufacturer, factModel, factVersion}
}

// secretSize is the length in bytes of the secret in a challenge. It is the maximum for an endorsement key whose names
// are SHA-256.
const secretSize = 32

// Challenge implements [ra.Challenger]. The public part is an [attest.Device], and the result an [attest.Challenge].
func (a *Authenticator) Challenge(_ context.Context, c ra.ChallengeRequest, at time.Time) ([]byte, error) {
	d, err := attest.ParseDevice(c.Public)
	if err != nil {
		return nil, refuseMessage(err)
	}
	ek, err := endorsementKey(d.EK)
	if err != nil {
		return nil, err
	}
	ak, err := attestationKey(d.AK)
	if err != nil {
		return nil, err
	}
	endorsed, err := a.sources.verify(d.EKCertificate, ek, at)
	if err != nil {
		return nil, err
	}
	secret := make([]byte, secretSize)
	_, _ = rand.Read(secret) // never fails: without randomness crypto/rand ends the process
	challenge, err := ek.protect(secret, ak.name)
	if err != nil {
		return nil, fmt.Errorf("encrypt the secret of a challenge for a TPM: %w", err)
	}
	payload, err := state{sha256.Sum256(secret), ek.hash(), ak.name, a.digest, endorsed}.marshal()
	if err != nil {
		return nil, fmt.Errorf("encode a challenge for a TPM: %w", err)
	}
	if challenge.Sealed, err = a.nonces.Seal(binding(c.Request, c.Key), payload, at); err != nil {
		return nil, err
	}
	return challenge.Marshal()
}

// protect encrypts a secret so that only the TPM with this endorsement key can decrypt it, and only if it also has the
// key with the name (TPM2_MakeCredential).
func (p public) protect(secret, name []byte) (attest.Challenge, error) {
	var c attest.Challenge
	symmetric := tpm2.TPMTSymDefObject{
		Algorithm: tpm2.TPMAlgAES, KeyBits: tpm2.NewTPMUSymKeyBits(tpm2.TPMAlgAES, tpm2.TPMKeyBits(p.cipher.bits)),
		Mode: tpm2.NewTPMUSymMode(tpm2.TPMAlgAES, tpm2.TPMAlgCFB),
	}
	area := tpm2.TPMTPublic{
		Type: p.kind, NameAlg: p.nameAlg,
		Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{Symmetric: symmetric, CurveID: p.curve}),
		Unique: tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{
			X: tpm2.TPM2BECCParameter{Buffer: p.x}, Y: tpm2.TPM2BECCParameter{Buffer: p.y},
		}),
	}
	if p.kind == tpm2.TPMAlgRSA {
		parameters := tpm2.TPMSRSAParms{Symmetric: symmetric, KeyBits: tpm2.TPMKeyBits(p.bits)}
		area.Parameters = tpm2.NewTPMUPublicParms(tpm2.TPMAlgRSA, &parameters)
		area.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgRSA, &tpm2.TPM2BPublicKeyRSA{Buffer: p.modulus})
	}
	key, err := tpm2.ImportEncapsulationKey(&area)
	if err != nil {
		return c, err
	}
	c.Credential, c.Secret, err = tpm2.CreateCredential(rand.Reader, key, name, secret)
	return c, err
}

// Identify verifies an [attest.Response]. The claim names its actor as soon as the TPM has proved that it holds the
// endorsement key.
func (a *Authenticator) Identify(_ context.Context, p ra.Presented) (ra.Claim, error) {
	r, err := attest.ParseResponse(p.Evidence)
	if err != nil {
		return ra.Claim{}, refuseMessage(err)
	}
	used, payload, err := a.nonces.Open(r.Sealed, binding(p.Request, p.Key), p.At)
	if err != nil {
		return ra.Claim{}, err
	}
	s, err := parseState(payload)
	if err != nil {
		return ra.Claim{}, fmt.Errorf("decode a challenge for a TPM: %w", err)
	}
	if s.sources != a.digest {
		return ra.Claim{}, pki.Refuse(pki.RuleChallengeInvalid, "get a new challenge (CreateChallenge)",
			"the trust sources have changed since the challenge was made")
	}
	if secret := sha256.Sum256(r.Secret); subtle.ConstantTimeCompare(secret[:], s.secret[:]) != 1 {
		const hint = "activate the credential in the TPM that the challenge was made for"
		return ra.Claim{}, pki.Refuse(pki.RuleEvidenceSignature, hint, "the decrypted secret is not the secret of the challenge")
	}
	digits := hex.EncodeToString(s.ek[:])
	claim := ra.Claim{
		Subject: pki.EvidenceSubject{Kind: pki.EvidenceTPM, Hash: s.ek}, Digest: sha256.Sum256(p.Evidence), Nonce: used,
		Actor: pki.ActorEvidence(pki.EvidenceTPM, digits[:16]),
	}
	if err := checkStatement(a.trustDomain, r, s.ak, p.Key); err != nil {
		return ra.Claim{Actor: claim.Actor}, err
	}
	claim.HardwareKey = true
	claim.Facts = map[string]any{
		factEK: digits, factCertified: s.source != "", factSource: s.source, factManufacturer: s.manufacturer,
		factModel: s.model, factVersion: s.version,
	}
	return claim, nil
}

// Bind implements [ra.Authenticator]. The guard of the certificate consumes the nonce, so there is nothing to bind.
func (*Authenticator) Bind(context.Context, []byte, ra.Binding) error { return nil }

// binding returns what a challenge for a TPM belongs to.
func binding(request pki.RequestID, key pki.KeyHash) nonce.Binding {
	return nonce.Binding{Purpose: nonce.Enroll, Kind: pki.EvidenceTPM, Request: request, Key: key}
}

// refuseMessage returns the refusal of a message that does not parse.
func refuseMessage(err error) *pki.Refusal {
	rule := pki.RuleEvidenceMalformed
	if attest.IsTooLong(err) {
		rule = pki.RuleEvidenceSize
	}
	return pki.Refuse(rule, "send what proto/brevet/v1/enrollment.proto describes for EVIDENCE_KIND_TPM",
		"the TPM's message is malformed: %v", err)
}
