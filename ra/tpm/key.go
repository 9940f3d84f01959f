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
	area *tpm2.TPMTPublic
	name []byte // of the object (TPM 2.0 Library, Part 1, section 16)
	key  crypto.PublicKey
	spki []byte
}

// hash returns the SHA-256 of the key's SubjectPublicKeyInfo.
func (p public) hash() [32]byte { return sha256.Sum256(p.spki) }

// A role is what a key is used for. It has the name of the key in refusals, and what would be accepted.
type role struct{ name, hint string }

var (
	endorsing  = role{"the endorsement key", "use the endorsement key of a TCG template: RSA-2048, P-256 or P-384 (tpm2_createek)"}
	attesting  = role{"the attestation key", "make a restricted signing key in the TPM, with SHA-256 or longer (tpm2_createak)"}
	identified = role{"the certified key", "make a signing key in the TPM with fixedtpm, fixedparent and sensitivedataorigin (tpm2_create)"}
)

// parsePublic decodes a TPMT_PUBLIC.
func parsePublic(b []byte, what role) (public, error) {
	area, err := tpm2.Unmarshal[tpm2.TPMTPublic](b)
	if err != nil {
		return public{}, pki.Refuse(pki.RuleEvidenceMalformed, "send the key's TPMT_PUBLIC, without the length in front",
			"%s does not parse", what.name)
	}
	p := public{area: area}
	if p.name, err = nameOf(area.NameAlg, b); err != nil {
		return p, refuseKey(what, "%v", err)
	}
	if p.key, err = publicKey(area); err != nil {
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
func publicKey(area *tpm2.TPMTPublic) (crypto.PublicKey, error) {
	switch area.Type {
	case tpm2.TPMAlgRSA:
		return rsaKey(area)
	case tpm2.TPMAlgECC:
		return eccKey(area)
	default:
		return nil, fmt.Errorf("has the type 0x%04x instead of RSA or ECC", uint16(area.Type))
	}
}

// exponent is the only public exponent that is accepted. A TPM encodes it as 0.
const exponent = 65537

func rsaKey(area *tpm2.TPMTPublic) (crypto.PublicKey, error) {
	parameters, err := area.Parameters.RSADetail()
	if err != nil {
		return nil, errors.New("has no RSA parameters")
	}
	modulus, err := area.Unique.RSA()
	if err != nil {
		return nil, errors.New("has no RSA modulus")
	}
	n := new(big.Int).SetBytes(modulus.Buffer)
	if !slices.Contains([]int{2048, 3072, 4096}, n.BitLen()) || int(parameters.KeyBits) != n.BitLen() {
		return nil, fmt.Errorf("has an RSA modulus of %d bits instead of 2048, 3072 or 4096", n.BitLen())
	}
	if e := parameters.Exponent; e != 0 && e != exponent {
		return nil, fmt.Errorf("has the RSA exponent %d instead of %d", e, exponent)
	}
	return &rsa.PublicKey{N: n, E: exponent}, nil
}

func eccKey(area *tpm2.TPMTPublic) (crypto.PublicKey, error) {
	parameters, err := area.Parameters.ECCDetail()
	if err != nil {
		return nil, errors.New("has no ECC parameters")
	}
	point, err := area.Unique.ECC()
	if err != nil {
		return nil, errors.New("has no ECC point")
	}
	var curve elliptic.Curve
	switch parameters.CurveID {
	case tpm2.TPMECCNistP256:
		curve = elliptic.P256()
	case tpm2.TPMECCNistP384:
		curve = elliptic.P384()
	default:
		return nil, fmt.Errorf("has the curve 0x%04x instead of P-256 or P-384", uint16(parameters.CurveID))
	}
	size := (curve.Params().BitSize + 7) / 8
	if len(point.X.Buffer) > size || len(point.Y.Buffer) > size {
		return nil, errors.New("has coordinates that are too long for its curve")
	}
	encoded := make([]byte, 1+2*size)
	encoded[0] = 4 // uncompressed (SEC 1, section 2.3.3)
	copy(encoded[1+size-len(point.X.Buffer):], point.X.Buffer)
	copy(encoded[1+2*size-len(point.Y.Buffer):], point.Y.Buffer)
	key, err := ecdsa.ParseUncompressedPublicKey(curve, encoded)
	if err != nil {
		return nil, errors.New("is not a point of its curve")
	}
	return key, nil
}

// An attribute is a bit of a TPMA_OBJECT, with the value that it must have.
type attribute struct {
	name      string
	set, want bool
}

// checkAttributes refuses a key whose attributes do not have the wanted values. Every key of the protocol must be
// generated in the TPM and unable to leave it.
func (p public) checkAttributes(what role, more ...attribute) error {
	a := p.area.ObjectAttributes
	for _, attribute := range append([]attribute{
		{"fixedTPM", a.FixedTPM, true}, {"fixedParent", a.FixedParent, true}, {"sensitiveDataOrigin", a.SensitiveDataOrigin, true},
		{"encryptedDuplication", a.EncryptedDuplication, false},
	}, more...) {
		if attribute.set != attribute.want {
			return refuseKey(what, "has the attribute %s %s, and it must be %s",
				attribute.name, setOrClear(attribute.set), setOrClear(attribute.want))
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
	what := endorsing
	p, err := parsePublic(b, what)
	if err != nil {
		return p, err
	}
	a := p.area.ObjectAttributes
	if err := p.checkAttributes(what, attribute{"restricted", a.Restricted, true}, attribute{"decrypt", a.Decrypt, true},
		attribute{"sign", a.SignEncrypt, false}); err != nil {
		return p, err
	}
	symmetric := tpm2.TPMTSymDefObject{}
	if parameters, err := p.area.Parameters.RSADetail(); err == nil {
		symmetric = parameters.Symmetric
		if parameters.Scheme.Scheme != tpm2.TPMAlgNull {
			return p, refuseKey(what, "has an encryption scheme, and must have none")
		}
	}
	if parameters, err := p.area.Parameters.ECCDetail(); err == nil {
		symmetric = parameters.Symmetric
	}
	bits, err := symmetric.KeyBits.AES()
	if symmetric.Algorithm != tpm2.TPMAlgAES || err != nil || !slices.Contains([]tpm2.TPMKeyBits{128, 192, 256}, *bits) {
		return p, refuseKey(what, "protects secrets with another cipher than AES")
	}
	if mode, err := symmetric.Mode.AES(); err != nil || *mode != tpm2.TPMAlgCFB {
		return p, refuseKey(what, "protects secrets in another mode than CFB")
	}
	return p, nil
}

// attestationKey decodes an attestation key, and checks that it signs only what its TPM has generated.
func attestationKey(b []byte) (public, error) {
	what := attesting
	p, err := parsePublic(b, what)
	if err != nil {
		return p, err
	}
	a := p.area.ObjectAttributes
	if err := p.checkAttributes(what, attribute{"restricted", a.Restricted, true}, attribute{"sign", a.SignEncrypt, true},
		attribute{"decrypt", a.Decrypt, false}, attribute{"userWithAuth", a.UserWithAuth, true}); err != nil {
		return p, err
	}
	_, err = p.scheme()
	return p, err
}

// certifiedKey decodes the key of the request, and checks that it can sign and cannot leave the TPM.
func certifiedKey(b []byte) (public, error) {
	what := identified
	p, err := parsePublic(b, what)
	if err != nil {
		return p, err
	}
	return p, p.checkAttributes(what, attribute{"sign", p.area.ObjectAttributes.SignEncrypt, true})
}
