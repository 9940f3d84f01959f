package hsm

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"encoding/asn1"
	"fmt"
	"math/big"

	"github.com/miekg/pkcs11"
	"golang.org/x/crypto/cryptobyte"
	cryptobyte_asn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// request is a signature request with its parameters for PKCS#11.
type request struct {
	mechanism uint
	parameter []byte // parameter of the mechanism, or nil
	data      []byte
	size      int  // size of the HSM's signature in bytes
	der       bool // whether the HSM returns r and s, which the method make encodes in DER
}

// make lets the HSM sign with the key that has the handle h.
func (r request) make(s *session, h pkcs11.ObjectHandle) ([]byte, error) {
	var parameter any // an untyped nil if there is none: a nil []byte in it would not equal nil
	if r.parameter != nil {
		parameter = r.parameter
	}
	sig, err := s.sign(pkcs11.NewMechanism(r.mechanism, parameter), h, r.data)
	if err != nil {
		return nil, err
	}
	if len(sig) != r.size {
		return nil, fmt.Errorf("%w: it returned a signature of %d bytes, want %d", ErrKey, len(sig), r.size)
	}
	if r.der {
		return ecdsaDER(sig)
	}
	return sig, nil
}

// hash is a supported hash function, with its identifiers in X.509 and PKCS#11.
type hash struct {
	oid            asn1.ObjectIdentifier
	mechanism, mgf uint
}

// hashOf returns the hash in opts. It returns an error if digest does not have the hash's length.
func hashOf(digest []byte, opts crypto.SignerOpts) (hash, error) {
	var h hash
	switch opts.HashFunc() {
	case crypto.SHA256:
		h = hash{asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 2, 1}, pkcs11.CKM_SHA256, pkcs11.CKG_MGF1_SHA256}
	case crypto.SHA384:
		h = hash{asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 2, 2}, pkcs11.CKM_SHA384, pkcs11.CKG_MGF1_SHA384}
	case crypto.SHA512:
		h = hash{asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 2, 3}, pkcs11.CKM_SHA512, pkcs11.CKG_MGF1_SHA512}
	default:
		return h, fmt.Errorf("%w: hash %v: use SHA-256, SHA-384 or SHA-512", ErrDigest, opts.HashFunc())
	}
	if want := opts.HashFunc().Size(); len(digest) != want {
		return h, fmt.Errorf("%w: the digest has %d bytes, one of %v has %d", ErrDigest, len(digest), opts.HashFunc(), want)
	}
	return h, nil
}

// newRequest returns the request for the HSM, after checking digest and opts.
func newRequest(pub publicKey, digest []byte, opts crypto.SignerOpts) (request, error) {
	if opts == nil {
		return request{}, fmt.Errorf("%w: the options do not name the hash of the digest", ErrDigest)
	}
	if _, ok := pub.(ed25519.PublicKey); ok {
		return ed25519Request(digest, opts)
	}
	h, err := hashOf(digest, opts)
	if err != nil {
		return request{}, err
	}
	switch pub := pub.(type) {
	case *ecdsa.PublicKey:
		size := fieldSize(pub.Curve)
		// A digest that is longer than the order must be truncated (SEC 1 section 4.1.3). Not every HSM does that.
		data := digest[:min(len(digest), size)]
		return request{mechanism: pkcs11.CKM_ECDSA, data: data, size: 2 * size, der: true}, nil
	case *rsa.PublicKey:
		if pss, ok := opts.(*rsa.PSSOptions); ok {
			return pssRequest(pub, h, digest, pss)
		}
		info, err := digestInfo(h, digest)
		return request{mechanism: pkcs11.CKM_RSA_PKCS, data: info, size: pub.Size()}, err
	}
	return request{}, fmt.Errorf("%w: a key of type %T", ErrUnsupported, pub)
}

// ed25519Request returns the request for a message with pure Ed25519 (RFC 8032 section 5.1).
func ed25519Request(message []byte, opts crypto.SignerOpts) (request, error) {
	if o, ok := opts.(*ed25519.Options); opts.HashFunc() != 0 || ok && o.Context != "" {
		return request{}, fmt.Errorf("%w: an Ed25519 key signs messages, without hash or context", ErrDigest)
	}
	return request{mechanism: ckmEDDSA, data: message, size: ed25519.SignatureSize}, nil
}

// pssRequest returns the request for a digest with RSASSA-PSS (RFC 8017 section 8.1).
func pssRequest(pub *rsa.PublicKey, h hash, digest []byte, opts *rsa.PSSOptions) (request, error) {
	salt := opts.SaltLength
	if salt == rsa.PSSSaltLengthAuto || salt == rsa.PSSSaltLengthEqualsHash {
		salt = len(digest)
	}
	if maxSalt := pub.Size() - len(digest) - 2; salt < 0 || salt > maxSalt {
		return request{}, fmt.Errorf("%w: a PSS salt of %d bytes: use 0 to %d", ErrDigest, salt, maxSalt)
	}
	return request{
		mechanism: pkcs11.CKM_RSA_PKCS_PSS,
		parameter: pkcs11.NewPSSParams(h.mechanism, h.mgf, uint(salt)),
		data:      digest,
		size:      pub.Size(),
	}, nil
}

// digestInfo returns the DigestInfo of RFC 8017 section 9.2, because CKM_RSA_PKCS does not add it.
func digestInfo(h hash, digest []byte) ([]byte, error) {
	var b cryptobyte.Builder
	b.AddASN1(cryptobyte_asn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1(cryptobyte_asn1.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddASN1ObjectIdentifier(h.oid)
			b.AddASN1NULL()
		})
		b.AddASN1OctetString(digest)
	})
	return b.Bytes()
}

// ecdsaDER encodes r and s as Ecdsa-Sig-Value (RFC 3279 section 2.2.3). raw is the HSM's signature: r and then s, both
// of the same length.
func ecdsaDER(raw []byte) ([]byte, error) {
	r := new(big.Int).SetBytes(raw[:len(raw)/2])
	s := new(big.Int).SetBytes(raw[len(raw)/2:])
	if r.Sign() == 0 || s.Sign() == 0 {
		return nil, fmt.Errorf("%w: it returned an ECDSA signature with r or s of zero", ErrKey)
	}
	var b cryptobyte.Builder
	b.AddASN1(cryptobyte_asn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1BigInt(r)
		b.AddASN1BigInt(s)
	})
	return b.Bytes()
}
