package tpm

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	_ "crypto/sha512" // for names and signatures with SHA-384 and SHA-512
	"encoding/binary"
	"errors"
	"fmt"
	"math/big"
	"slices"

	"github.com/google/go-tpm/tpm2"

	"github.com/brevet-pki/brevet/pki"
)

// public is the public area of an asymmetric key in a TPM.
type public struct {
	area
	name []byte // of the object (TPM 2.0 Library, Part 1, section 16)
	key  crypto.PublicKey
	spki []byte
}

// hash returns the SHA-256 of the key's SubjectPublicKeyInfo.
func (p public) hash() [32]byte { return sha256.Sum256(p.spki) }

// A role is what a key is used for. It has the name of the key in refusals, and what would be accepted.
type role struct{ name, hint string }

var (
	endorsing = role{
		"the endorsement key", "use the endorsement key of a TCG template: RSA-2048, P-256 or P-384 (tpm2_createek)",
	}
	attesting = role{
		"the attestation key", "make a restricted signing key in the TPM, with SHA-256 or longer (tpm2_createak)",
	}
	identified = role{
		"the certified key", "make a signing key in the TPM, fixedtpm, fixedparent and sensitivedataorigin (tpm2_create)",
	}
)

// parsePublic decodes a TPMT_PUBLIC.
func parsePublic(b []byte, what role) (public, error) {
	a, err := parseArea(b)
	if err != nil {
		const hint = "send the TPMT_PUBLIC of an RSA or ECC key, without the length in front"
		return public{}, pki.Refuse(pki.RuleEvidenceMalformed, hint, "%s does not parse: %v", what.name, err)
	}
	p := public{area: a}
	if p.name, err = nameOf(a.nameAlg, b); err != nil {
		return p, refuseKey(what, "%v", err)
	}
	if p.key, err = a.publicKey(); err != nil {
		return p, refuseKey(what, "%v", err)
	}
	if p.spki, err = pki.MarshalKey(p.key); err != nil {
		return p, refuseKey(what, "%v", err)
	}
	return p, nil
}

// refuseKey returns the refusal of a key because of its type, size or attributes.
func refuseKey(what role, detail string, args ...any) *pki.Refusal {
	return pki.Refuse(pki.RuleEvidenceAlgorithm, what.hint, what.name+" "+detail, args...)
}

// nameOf returns the name of an object: the identifier of a hash, and the hash of the public area.
func nameOf(alg tpm2.TPMAlgID, area []byte) ([]byte, error) {
	h, err := hashOf(alg)
	if err != nil {
		return nil, err
	}
	d := h.New()
	d.Write(area)
	return d.Sum(binary.BigEndian.AppendUint16(nil, uint16(alg))), nil
}

// hashOf returns a hash that is accepted in names and signatures.
func hashOf(alg tpm2.TPMAlgID) (crypto.Hash, error) {
	switch alg {
	case tpm2.TPMAlgSHA256:
		return crypto.SHA256, nil
	case tpm2.TPMAlgSHA384:
		return crypto.SHA384, nil
	case tpm2.TPMAlgSHA512:
		return crypto.SHA512, nil
	default:
		return 0, fmt.Errorf("uses the hash 0x%04x instead of SHA-256, SHA-384 or SHA-512", uint16(alg))
	}
}

// publicKey returns the public key of an area: RSA-2048 to RSA-4096 with the exponent 65537, P-256 or P-384.
func (a area) publicKey() (crypto.PublicKey, error) {
	if a.kind == tpm2.TPMAlgRSA {
		return a.rsaKey()
	}
	return a.eccKey()
}

// exponent is the only public exponent that is accepted. A TPM encodes it as 0.
const exponent = 65537

func (a area) rsaKey() (crypto.PublicKey, error) {
	n := new(big.Int).SetBytes(a.modulus)
	if !slices.Contains([]int{2048, 3072, 4096}, n.BitLen()) || int(a.bits) != n.BitLen() {
		return nil, fmt.Errorf("has an RSA modulus of %d bits instead of 2048, 3072 or 4096", n.BitLen())
	}
	if a.exponent != 0 && a.exponent != exponent {
		return nil, fmt.Errorf("has the RSA exponent %d instead of %d", a.exponent, exponent)
	}
	return &rsa.PublicKey{N: n, E: exponent}, nil
}

func (a area) eccKey() (crypto.PublicKey, error) {
	var curve elliptic.Curve
	switch a.curve {
	case tpm2.TPMECCNistP256:
		curve = elliptic.P256()
	case tpm2.TPMECCNistP384:
		curve = elliptic.P384()
	default:
		return nil, fmt.Errorf("has the curve 0x%04x instead of P-256 or P-384", uint16(a.curve))
	}
	size := (curve.Params().BitSize + 7) / 8
	if len(a.x) > size || len(a.y) > size {
		return nil, errors.New("has coordinates that are too long for its curve")
	}
	encoded := make([]byte, 1+2*size)
	encoded[0] = 4 // uncompressed (SEC 1, section 2.3.3)
	copy(encoded[1+size-len(a.x):], a.x)
	copy(encoded[1+2*size-len(a.y):], a.y)
	key, err := ecdsa.ParseUncompressedPublicKey(curve, encoded)
	if err != nil {
		return nil, errors.New("is not a point of its curve")
	}
	return key, nil
}

// An attribute is a bit of a TPMA_OBJECT, with the value that it must have.
type attribute struct {
	name string
	bit  attributes
	want bool
}

// ofTPM are the attributes of every key of the protocol: it was generated in the TPM and cannot leave it.
var ofTPM = []attribute{
	{"fixedTPM", fixedTPM, true}, {"fixedParent", fixedParent, true}, {"sensitiveDataOrigin", sensitiveDataOrigin, true},
	{"encryptedDuplication", encryptedDuplication, false},
}

// checkAttributes refuses a key whose attributes do not have the wanted values, or those of ofTPM.
func (p public) checkAttributes(what role, more ...attribute) error {
	for _, a := range slices.Concat(ofTPM, more) {
		if set := p.attributes&a.bit != 0; set != a.want {
			return refuseKey(what, "has the attribute %s %s, and it must be %s", a.name, setOrClear(set), setOrClear(a.want))
		}
	}
	return nil
}

func setOrClear(set bool) string {
	if set {
		return "set"
	}
	return "clear"
}

// endorsementKey decodes an endorsement key, and checks that it can protect a secret: a restricted decryption key with
// AES in CFB mode (TCG EK Credential Profile 2.5, annex B).
func endorsementKey(b []byte) (public, error) {
	p, err := parsePublic(b, endorsing)
	if err != nil {
		return p, err
	}
	if err := p.checkAttributes(endorsing, attribute{"restricted", restricted, true}, attribute{"decrypt", decrypt, true},
		attribute{"sign", sign, false}); err != nil {
		return p, err
	}
	switch c := p.cipher; {
	case p.scheme.algorithm != tpm2.TPMAlgNull:
		return p, refuseKey(endorsing, "has a scheme, and must have none")
	case c.algorithm != tpm2.TPMAlgAES || !slices.Contains([]uint16{128, 192, 256}, c.bits):
		return p, refuseKey(endorsing, "protects secrets with another cipher than AES")
	case c.mode != tpm2.TPMAlgCFB:
		return p, refuseKey(endorsing, "protects secrets in another mode than CFB")
	}
	return p, nil
}

// attestationKey decodes an attestation key, and checks that it signs only what its TPM has generated.
func attestationKey(b []byte) (public, error) {
	p, err := parsePublic(b, attesting)
	if err != nil {
		return p, err
	}
	if err := p.checkAttributes(attesting, attribute{"restricted", restricted, true}, attribute{"sign", sign, true},
		attribute{"decrypt", decrypt, false}, attribute{"userWithAuth", userWithAuth, true}); err != nil {
		return p, err
	}
	isRSA := p.kind == tpm2.TPMAlgRSA
	switch s := p.scheme.algorithm; {
	case isRSA && s != tpm2.TPMAlgRSASSA && s != tpm2.TPMAlgRSAPSS, !isRSA && s != tpm2.TPMAlgECDSA:
		return p, refuseKey(attesting, "has the signature scheme 0x%04x instead of RSASSA, RSAPSS or ECDSA", uint16(s))
	}
	if _, err := hashOf(p.scheme.hash); err != nil {
		return p, refuseKey(attesting, "%v", err)
	}
	return p, nil
}

// certifiedKey decodes the key of the request, and checks that it can sign and cannot leave the TPM.
func certifiedKey(b []byte) (public, error) {
	p, err := parsePublic(b, identified)
	if err != nil {
		return p, err
	}
	return p, p.checkAttributes(identified, attribute{"sign", sign, true})
}
