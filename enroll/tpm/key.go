package tpm

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"errors"
	"fmt"
	"io"
	"math/big"

	"github.com/google/go-tpm/tpm2"
	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"
)

// Key is a P-256 key in a TPM. It implements [crypto.Signer], and is safe for concurrent use.
type Key struct {
	device  *Device
	area    []byte // TPMT_PUBLIC
	private []byte // content of the TPM2B_PRIVATE, which the TPM has encrypted
	public  *ecdsa.PublicKey
}

// NewKey makes a key in the TPM.
func (d *Device) NewKey() (*Key, error) {
	k := &Key{device: d}
	err := d.do(func(s *session) error {
		parent, err := s.primary(tpm2.TPMRHOwner, storageTemplate())
		if err != nil {
			return err
		}
		r, err := tpm2.Create{ParentHandle: parent.auth(), InPublic: tpm2.New2B(keyTemplate())}.Execute(s.tpm)
		if err != nil {
			return explain("make a key", err)
		}
		k.area, k.private = r.OutPublic.Bytes(), r.OutPrivate.Buffer
		return nil
	})
	if err != nil {
		return nil, err
	}
	if k.public, err = parsePublic(k.area); err != nil {
		return nil, fmt.Errorf("the TPM has made an unusable key: %w", err)
	}
	return k, nil
}

// parsePublic returns the public key in a TPMT_PUBLIC, which must be a P-256 key that can sign.
func parsePublic(area []byte) (*ecdsa.PublicKey, error) {
	p, err := tpm2.Unmarshal[tpm2.TPMTPublic](area)
	if err != nil {
		return nil, errors.New("its public area does not parse")
	}
	parameters, err := p.Parameters.ECCDetail()
	if err != nil || parameters.CurveID != tpm2.TPMECCNistP256 || !p.ObjectAttributes.SignEncrypt {
		return nil, errors.New("it is not a P-256 key for signatures")
	}
	point, err := p.Unique.ECC()
	if err != nil || len(point.X.Buffer) > 32 || len(point.Y.Buffer) > 32 {
		return nil, errors.New("its public key is malformed")
	}
	encoded := make([]byte, 65)
	encoded[0] = 4 // uncompressed (SEC 1, section 2.3.3)
	copy(encoded[33-len(point.X.Buffer):], point.X.Buffer)
	copy(encoded[65-len(point.Y.Buffer):], point.Y.Buffer)
	return ecdsa.ParseUncompressedPublicKey(elliptic.P256(), encoded)
}

// Device returns the TPM that the key is in.
func (k *Key) Device() *Device { return k.device }

// Public implements [crypto.Signer].
func (k *Key) Public() crypto.PublicKey { return k.public }

// load loads the key into the TPM.
func (k *Key) load(s *session) (object, error) {
	parent, err := s.primary(tpm2.TPMRHOwner, storageTemplate())
	if err != nil {
		return object{}, err
	}
	r, err := tpm2.Load{
		ParentHandle: parent.auth(), InPrivate: tpm2.TPM2BPrivate{Buffer: k.private},
		InPublic: tpm2.BytesAs2B[tpm2.TPMTPublic](k.area),
	}.Execute(s.tpm)
	if err != nil {
		return object{}, fmt.Errorf("%w: the key was made in another TPM, or the TPM was cleared since",
			explain("load the key", err))
	}
	s.loaded = append(s.loaded, r.ObjectHandle)
	return object{tpm2.NamedHandle{Handle: r.ObjectHandle, Name: r.Name}, k.area}, s.flush(parent)
}

// Sign implements [crypto.Signer] for hashes of at least 256 bits. It ignores random, because the TPM generates the
// random numbers. The result is an ECDSA signature in DER.
func (k *Key) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	if h := opts.HashFunc(); h == 0 || h.Size() < 32 || len(digest) != h.Size() {
		return nil, fmt.Errorf("a key in a TPM signs digests of SHA-256 or longer, not %d bytes of %v", len(digest), h)
	}
	digest = digest[:32] // ECDSA on P-256 uses the first 256 bits (FIPS 186-5, section 6.4.1), and every TPM knows SHA-256
	var signature *tpm2.TPMSSignatureECC
	err := k.device.do(func(s *session) error {
		key, err := k.load(s)
		if err != nil {
			return err
		}
		r, err := tpm2.Sign{
			KeyHandle: key.auth(), Digest: tpm2.TPM2BDigest{Buffer: digest},
			InScheme: tpm2.TPMTSigScheme{
				Scheme:  tpm2.TPMAlgECDSA,
				Details: tpm2.NewTPMUSigScheme(tpm2.TPMAlgECDSA, &tpm2.TPMSSchemeHash{HashAlg: tpm2.TPMAlgSHA256}),
			},
			Validation: tpm2.TPMTTKHashCheck{Tag: tpm2.TPMSTHashCheck},
		}.Execute(s.tpm)
		if err != nil {
			return explain("sign", err)
		}
		signature, err = r.Signature.Signature.ECDSA()
		return err
	})
	if err != nil {
		return nil, err
	}
	var b cryptobyte.Builder
	b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1BigInt(new(big.Int).SetBytes(signature.SignatureR.Buffer))
		b.AddASN1BigInt(new(big.Int).SetBytes(signature.SignatureS.Buffer))
	})
	return b.Bytes()
}
