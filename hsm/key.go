package hsm

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"

	"github.com/miekg/pkcs11"
)

// Key is a private key in an HSM. It implements [crypto.Signer], may be used from many
// goroutines, and outlives restarts of the HSM; it ends with its [HSM].
type Key struct {
	hsm   *HSM
	label string
	id    []byte
	alg   Algorithm
	pub   publicKey
}

var _ crypto.Signer = (*Key)(nil)

// Public returns an *ecdsa.PublicKey, *rsa.PublicKey or ed25519.PublicKey.
func (k *Key) Public() crypto.PublicKey { return k.pub }

// Label returns the key's CKA_LABEL.
func (k *Key) Label() string { return k.label }

// ID returns the key's CKA_ID.
func (k *Key) ID() []byte { return bytes.Clone(k.id) }

// Algorithm returns the kind of key.
func (k *Key) Algorithm() Algorithm { return k.alg }

// Ref returns what finds this key, and no other, again.
func (k *Key) Ref() KeyRef { return KeyRef{Label: k.label, ID: k.ID()} }

// Sign signs digest, which must be of the hash in opts, SHA-256, SHA-384 or SHA-512; an
// Ed25519 key signs the message itself, with crypto.Hash(0). RSA keys sign as PKCS #1 v1.5
// (RFC 8017 section 8.2) or, with *rsa.PSSOptions, PSS (section 8.1). Both of the special
// salt lengths mean that of the hash. ECDSA signatures are DER. The HSM's own random source
// is used, not the first argument.
//
// If the HSM fails with a code that does not tell what is wrong, Sign has the key sign the self-test. A self-test
// that fails restarts the library. If it passes, Sign tries once more.
//
// Sign waits at most Config.Wait. It fails with [ErrDigest] for input that it does not
// sign, and otherwise with [ErrUnavailable], [ErrBusy], [ErrPIN],
// [ErrKey] or [ErrClosed].
func (k *Key) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	req, err := newRequest(k.pub, bytes.Clone(digest), opts)
	if err != nil {
		return nil, k.hsm.wrapError(k.operation(), err)
	}
	ctx, cancel := context.WithTimeoutCause(context.Background(), k.hsm.cfg.Wait, errNoAnswer)
	defer cancel()
	sig, err := k.sign(ctx, req)
	if !undecided(err) {
		return sig, err
	}
	if err := k.prove(ctx); err != nil {
		return nil, err
	}
	return k.sign(ctx, req)
}

func (k *Key) sign(ctx context.Context, req request) ([]byte, error) {
	return run(ctx, k.hsm, k.operation(), func(s *session) ([]byte, error) {
		h, err := s.handleOf(k)
		if err != nil {
			return nil, err
		}
		return req.make(s, h)
	})
}

// prove has the key sign the self-test and checks the signature.
func (k *Key) prove(ctx context.Context) error {
	once := func() error {
		_, err := run(ctx, k.hsm, fmt.Sprintf("prove key %q", k.label), func(s *session) (struct{}, error) {
			h, err := s.handleOf(k)
			if err != nil {
				return struct{}{}, err
			}
			return struct{}{}, unusable(s.prove(h, k.pub))
		})
		return err
	}
	err := once()
	if errors.Is(err, pkcs11.Error(pkcs11.CKR_SESSION_COUNT)) {
		k.hsm.requireRestart() // the library may still count sessions of a lost device; a restart ends them
		err = once()
	}
	return err
}

func (k *Key) operation() string { return fmt.Sprintf("sign with key %q", k.label) }

// selfTest is the only thing that a self-test signs. It cannot be taken for, or be the
// beginning of, anything that X.509 signs: those are DER and begin with 0x30.
const selfTest = "brevet hsm self-test: this signature attests nothing\x00"

// prove signs the self-test with h and verifies it with pub.
func (s *session) prove(h pkcs11.ObjectHandle, pub publicKey) error {
	digest := sha256.Sum256([]byte(selfTest))
	message, opts := digest[:], crypto.SHA256
	if _, ok := pub.(ed25519.PublicKey); ok {
		message, opts = []byte(selfTest), crypto.Hash(0)
	}
	req, err := newRequest(pub, message, opts)
	if err != nil {
		return err
	}
	sig, err := req.make(s, h)
	if err != nil {
		return err
	}
	var ok bool
	switch pub := pub.(type) {
	case *ecdsa.PublicKey:
		ok = ecdsa.VerifyASN1(pub, message, sig)
	case *rsa.PublicKey:
		ok = rsa.VerifyPKCS1v15(pub, opts, message, sig) == nil
	case ed25519.PublicKey:
		ok = ed25519.Verify(pub, message, sig)
	}
	if !ok {
		return fmt.Errorf("%w: its signature does not verify with its public key", ErrKey)
	}
	return nil
}
