package hsm

import (
	"encoding/asn1"
	"fmt"
	"strings"

	"github.com/miekg/pkcs11"
)

// Algorithm is a type of key that this package generates. The zero value is no type.
type Algorithm uint8

// The types of keys.
const (
	P256 Algorithm = iota + 1
	P384
	RSA3072
	RSA4096
	Ed25519
)

// Constants of PKCS#11 v3.0 section 2.3 that are missing in the v2.40 headers.
const (
	ckkECEdwards           = 0x40
	ckmECEdwardsKeyPairGen = 0x1055
	ckmEDDSA               = 0x1057
)

var (
	oidP256    = asn1.ObjectIdentifier{1, 2, 840, 10045, 3, 1, 7}
	oidP384    = asn1.ObjectIdentifier{1, 3, 132, 0, 34}
	oidEd25519 = asn1.ObjectIdentifier{1, 3, 101, 112} // RFC 8410 section 3
)

// edwards25519 is the name of the curve in PKCS#11 v3.0 section 2.3.10.
const edwards25519 = "edwards25519"

var algorithmNames = [...]string{P256: "P-256", P384: "P-384", RSA3072: "RSA-3072", RSA4096: "RSA-4096", Ed25519: "Ed25519"}

// String returns the name that [ParseAlgorithm] reads.
func (a Algorithm) String() string {
	if a == 0 || int(a) >= len(algorithmNames) {
		return "unknown"
	}
	return algorithmNames[a]
}

// ParseAlgorithm parses P-256, P-384, RSA-3072, RSA-4096 or Ed25519. It ignores case and the hyphen.
func ParseAlgorithm(s string) (Algorithm, error) {
	plain := func(s string) string { return strings.ToLower(strings.ReplaceAll(s, "-", "")) }
	for a := P256; a <= Ed25519; a++ {
		if plain(s) == plain(a.String()) {
			return a, nil
		}
	}
	return 0, fmt.Errorf("key algorithm %q: use one of %s", s, strings.Join(algorithmNames[P256:], ", "))
}

// recipe holds the mechanisms and parameters with which an HSM generates a key pair.
type recipe struct {
	generate   uint
	sign       []uint
	keyType    uint
	parameters []*pkcs11.Attribute // parameters of the public key
}

// recipe returns how an HSM generates a key of type a.
func (a Algorithm) recipe() (recipe, error) {
	switch a {
	case P256, P384:
		curve := oidP256
		if a == P384 {
			curve = oidP384
		}
		params, err := asn1.Marshal(curve)
		return recipe{
			generate:   pkcs11.CKM_EC_KEY_PAIR_GEN,
			sign:       []uint{pkcs11.CKM_ECDSA},
			keyType:    pkcs11.CKK_EC,
			parameters: []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_EC_PARAMS, params)},
		}, err
	case RSA3072, RSA4096:
		bits := 3072
		if a == RSA4096 {
			bits = 4096
		}
		return recipe{
			generate: pkcs11.CKM_RSA_PKCS_KEY_PAIR_GEN,
			sign:     []uint{pkcs11.CKM_RSA_PKCS, pkcs11.CKM_RSA_PKCS_PSS},
			keyType:  pkcs11.CKK_RSA,
			parameters: []*pkcs11.Attribute{
				pkcs11.NewAttribute(pkcs11.CKA_MODULUS_BITS, bits),
				pkcs11.NewAttribute(pkcs11.CKA_PUBLIC_EXPONENT, []byte{1, 0, 1}),
			},
		}, nil
	case Ed25519:
		params, err := asn1.MarshalWithParams(edwards25519, "printable")
		return recipe{
			generate:   ckmECEdwardsKeyPairGen,
			sign:       []uint{ckmEDDSA},
			keyType:    ckkECEdwards,
			parameters: []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_EC_PARAMS, params)},
		}, err
	}
	return recipe{}, fmt.Errorf("%w: key algorithm %d", ErrUnsupported, uint8(a))
}
