package hsm

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"encoding/asn1"
	"encoding/binary"
	"fmt"
	"math"
	"math/big"

	"github.com/miekg/pkcs11"
)

// publicKey is implemented by every public key of the standard library.
type publicKey interface {
	Equal(crypto.PublicKey) bool
}

// publicKey reads the public key with this ID. It returns [ErrKey] if there is not exactly one, or if it cannot be
// parsed. It returns [ErrUnsupported] for other types of keys.
func (s *session) publicKey(id []byte) (publicKey, Algorithm, error) {
	if len(id) == 0 {
		return nil, 0, fmt.Errorf("%w: it has no CKA_ID that ties its halves together", ErrKey)
	}
	found, err := s.search(KeyRef{ID: id}.template(pkcs11.CKO_PUBLIC_KEY))
	if err != nil {
		return nil, 0, err
	}
	if len(found) != 1 {
		return nil, 0, fmt.Errorf("%w: %d public keys have the ID %x, and there must be one", ErrKey, len(found), id)
	}
	raw, err := s.attribute(found[0], pkcs11.CKA_KEY_TYPE)
	if err != nil {
		return nil, 0, err
	}
	switch keyType := ulong(raw); keyType {
	case pkcs11.CKK_RSA:
		return s.rsaKey(found[0])
	case pkcs11.CKK_EC, ckkECEdwards:
		params, err := s.attribute(found[0], pkcs11.CKA_EC_PARAMS)
		if err != nil {
			return nil, 0, err
		}
		point, err := s.attribute(found[0], pkcs11.CKA_EC_POINT)
		if err != nil {
			return nil, 0, err
		}
		return parsePoint(params, point)
	default:
		return nil, 0, fmt.Errorf("%w: key type 0x%x", ErrUnsupported, keyType)
	}
}

// ulong parses a CK_ULONG, which the library stores in the width and byte order of the machine. For any other width it
// returns a value that equals no constant.
func ulong(b []byte) uint64 {
	switch len(b) {
	case 4:
		return uint64(binary.NativeEndian.Uint32(b))
	case 8:
		return binary.NativeEndian.Uint64(b)
	}
	return math.MaxUint64
}

// rsaKey reads an RSA public key.
func (s *session) rsaKey(h pkcs11.ObjectHandle) (publicKey, Algorithm, error) {
	modulus, err := s.attribute(h, pkcs11.CKA_MODULUS)
	if err != nil {
		return nil, 0, err
	}
	exponent, err := s.attribute(h, pkcs11.CKA_PUBLIC_EXPONENT)
	if err != nil {
		return nil, 0, err
	}
	return parseRSA(modulus, exponent)
}

// parseRSA parses the modulus and the public exponent, which are big-endian.
func parseRSA(modulus, exponent []byte) (publicKey, Algorithm, error) {
	n, e := new(big.Int).SetBytes(modulus), new(big.Int).SetBytes(exponent)
	if !e.IsInt64() || e.Int64() > math.MaxInt32 || e.Int64() < 3 || e.Bit(0) == 0 || n.Bit(0) == 0 {
		return nil, 0, fmt.Errorf("%w: its RSA modulus or exponent is not odd or out of range", ErrKey)
	}
	pub := &rsa.PublicKey{N: n, E: int(e.Int64())}
	switch n.BitLen() {
	case 3072:
		return pub, RSA3072, nil
	case 4096:
		return pub, RSA4096, nil
	}
	return nil, 0, fmt.Errorf("%w: an RSA key of %d bits: use 3072 or 4096", ErrUnsupported, n.BitLen())
}

// parsePoint parses CKA_EC_PARAMS and CKA_EC_POINT. The former is an object identifier or the name of a curve (PKCS#11
// v3.0 section 2.3.3).
func parsePoint(params, point []byte) (publicKey, Algorithm, error) {
	switch curve := curveName(params); curve {
	case oidP256.String():
		return parseECDSA(elliptic.P256(), P256, point)
	case oidP384.String():
		return parseECDSA(elliptic.P384(), P384, point)
	case oidEd25519.String(), edwards25519:
		raw, err := unwrapPoint(point, ed25519.PublicKeySize)
		if err != nil {
			return nil, 0, err
		}
		return ed25519.PublicKey(raw), Ed25519, nil
	default:
		return nil, 0, fmt.Errorf("%w: curve %s: use P-256, P-384 or Ed25519", ErrUnsupported, curve)
	}
}

// curveName returns the object identifier with dots, or the name of the curve, in params.
func curveName(params []byte) string {
	var oid asn1.ObjectIdentifier
	if rest, err := asn1.Unmarshal(params, &oid); err == nil && len(rest) == 0 {
		return oid.String()
	}
	var name string
	if rest, err := asn1.UnmarshalWithParams(params, &name, "printable"); err == nil && len(rest) == 0 {
		return name
	}
	return fmt.Sprintf("with parameters %x", params)
}

// parseECDSA parses an uncompressed point (SEC 1 section 2.3.4).
func parseECDSA(curve elliptic.Curve, alg Algorithm, point []byte) (publicKey, Algorithm, error) {
	raw, err := unwrapPoint(point, 1+2*fieldSize(curve))
	if err != nil {
		return nil, 0, err
	}
	pub, err := ecdsa.ParseUncompressedPublicKey(curve, raw)
	if err != nil {
		return nil, 0, fmt.Errorf("%w: %w", ErrKey, err)
	}
	return pub, alg, nil
}

// fieldSize returns the size of a coordinate in bytes. The numbers r and s of a signature have the same size.
func fieldSize(curve elliptic.Curve) int { return (curve.Params().BitSize + 7) / 8 }

// unwrapPoint returns a point of the given size in bytes. HSMs return it either directly or, as v2.40 requires, in a
// DER OCTET STRING. Both forms begin with 0x04, so only the length distinguishes them.
func unwrapPoint(point []byte, size int) ([]byte, error) {
	if len(point) == size {
		return point, nil
	}
	var raw []byte
	rest, err := asn1.Unmarshal(point, &raw)
	if err != nil || len(rest) > 0 || len(raw) != size {
		return nil, fmt.Errorf("%w: its public point has %d bytes and is neither a point of %d nor an OCTET STRING with one", ErrKey, len(point), size)
	}
	return raw, nil
}
