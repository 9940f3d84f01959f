package tpm

import (
	"errors"

	"github.com/google/go-tpm/tpm2"
	"golang.org/x/crypto/cryptobyte"
)

// The structures of a TPM are decoded here, and not with package tpm2, because callers without a credential send them:
// the decoder is strict, allocates nothing for its input, and needs a tenth of the time. References are to the TPM 2.0
// Library, Part 2.

// errStructure means that a structure is cut off, has data after its end, or has a type that is not known.
var errStructure = errors.New("the structure is cut off, too long, or of an unknown type")

// reader reads the fields of a structure. After the first error it returns zeros.
type reader struct {
	rest   cryptobyte.String
	failed bool
}

func (r *reader) u8() (v uint8) {
	r.failed = !r.rest.ReadUint8(&v) || r.failed
	return v
}

func (r *reader) u16() (v uint16) {
	r.failed = !r.rest.ReadUint16(&v) || r.failed
	return v
}

func (r *reader) u32() (v uint32) {
	r.failed = !r.rest.ReadUint32(&v) || r.failed
	return v
}

// skip64 skips a number of 64 bits.
func (r *reader) skip64() { r.failed = !r.rest.Skip(8) || r.failed }

func (r *reader) alg() tpm2.TPMAlgID { return tpm2.TPMAlgID(r.u16()) }

// sized reads the content of a TPM2B structure.
func (r *reader) sized() []byte {
	var v cryptobyte.String
	r.failed = !r.rest.ReadUint16LengthPrefixed(&v) || r.failed
	return v
}

// end returns an error if a field could not be read, or if something follows the last one.
func (r *reader) end() error {
	if r.failed || !r.rest.Empty() {
		return errStructure
	}
	return nil
}

// cipher is a TPMT_SYM_DEF_OBJECT (section 11.1.7). Other ciphers than AES are not read.
type cipher struct {
	algorithm tpm2.TPMAlgID
	bits      uint16
	mode      tpm2.TPMAlgID
}

func (r *reader) cipher() cipher {
	c := cipher{algorithm: r.alg()}
	switch c.algorithm {
	case tpm2.TPMAlgNull:
	case tpm2.TPMAlgAES:
		c.bits, c.mode = r.u16(), r.alg()
	default:
		r.failed = true
	}
	return c
}

// scheme is a TPMT_RSA_SCHEME or TPMT_ECC_SCHEME (section 11.2). hash is zero for schemes without one.
type scheme struct{ algorithm, hash tpm2.TPMAlgID }

func (r *reader) scheme() scheme {
	s := scheme{algorithm: r.alg()}
	switch s.algorithm {
	case tpm2.TPMAlgNull, tpm2.TPMAlgRSAES:
	case tpm2.TPMAlgRSASSA, tpm2.TPMAlgRSAPSS, tpm2.TPMAlgOAEP, tpm2.TPMAlgECDSA, tpm2.TPMAlgECDH:
		s.hash = r.alg()
	case tpm2.TPMAlgECDAA:
		s.hash = r.alg()
		r.u16() // the count
	default:
		r.failed = true
	}
	return s
}

// derivation skips a TPMT_KDF_SCHEME (section 11.2.3.3).
func (r *reader) derivation() {
	switch r.alg() {
	case tpm2.TPMAlgNull:
	case tpm2.TPMAlgMGF1, tpm2.TPMAlgKDF1SP80056A, tpm2.TPMAlgKDF2, tpm2.TPMAlgKDF1SP800108:
		r.u16() // the hash
	default:
		r.failed = true
	}
}

// attributes is a TPMA_OBJECT (section 8.3).
type attributes uint32

const (
	fixedTPM             attributes = 1 << 1
	fixedParent          attributes = 1 << 4
	sensitiveDataOrigin  attributes = 1 << 5
	userWithAuth         attributes = 1 << 6
	encryptedDuplication attributes = 1 << 11
	restricted           attributes = 1 << 16
	decrypt              attributes = 1 << 17
	sign                 attributes = 1 << 18
)

// area is a TPMT_PUBLIC of an RSA or ECC key (section 12.2.4).
type area struct {
	kind       tpm2.TPMAlgID
	nameAlg    tpm2.TPMAlgID
	attributes attributes
	cipher     cipher
	scheme     scheme
	bits       uint16 // of an RSA key
	exponent   uint32 // of an RSA key; 0 for 65537
	modulus    []byte
	curve      tpm2.TPMECCCurve
	x, y       []byte
}

func parseArea(b []byte) (area, error) {
	r := reader{rest: b}
	a := area{kind: r.alg(), nameAlg: r.alg(), attributes: attributes(r.u32())}
	r.sized() // the policy for using the key
	switch a.kind {
	case tpm2.TPMAlgRSA:
		a.cipher, a.scheme, a.bits, a.exponent, a.modulus = r.cipher(), r.scheme(), r.u16(), r.u32(), r.sized()
	case tpm2.TPMAlgECC:
		a.cipher, a.scheme, a.curve = r.cipher(), r.scheme(), tpm2.TPMECCCurve(r.u16())
		r.derivation()
		a.x, a.y = r.sized(), r.sized()
	default:
		return a, errStructure
	}
	return a, r.end()
}

// certification is a TPMS_ATTEST of TPM2_Certify (section 10.12.12).
type certification struct {
	qualifying []byte // the qualifying data, which the caller of TPM2_Certify chose
	name       []byte // of the certified key
}

// Values at the beginning of a TPMS_ATTEST.
const (
	magic       = "\xffTCG" // TPM_GENERATED_VALUE
	typeCertify = tpm2.TPMSTAttestCertify
)

// parseCertification decodes a TPMS_ATTEST after its magic number and type.
func parseCertification(rest []byte) (certification, error) {
	var c certification
	r := reader{rest: rest}
	r.sized() // the qualified name of the signer
	c.qualifying = r.sized()
	r.skip64() // the clock, and how often it was reset
	r.u32()
	r.u32()
	r.u8()
	r.skip64() // the version of the firmware
	c.name = r.sized()
	r.sized() // the qualified name of the certified key
	return c, r.end()
}

// signature is a TPMT_SIGNATURE with RSA or ECDSA (section 11.3.4).
type signature struct {
	algorithm tpm2.TPMAlgID
	hash      tpm2.TPMAlgID
	rsa       []byte
	r, s      []byte
}

func parseSignature(b []byte) (signature, error) {
	r := reader{rest: b}
	s := signature{algorithm: r.alg(), hash: r.alg()}
	switch s.algorithm {
	case tpm2.TPMAlgRSASSA, tpm2.TPMAlgRSAPSS:
		s.rsa = r.sized()
	case tpm2.TPMAlgECDSA:
		s.r, s.s = r.sized(), r.sized()
	default:
		return s, errStructure
	}
	return s, r.end()
}
