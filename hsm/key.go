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

// Key is a private key in an HSM. It implements [crypto.Signer] and is safe for concurrent use. It continues to work
// after the HSM restarts, until its [HSM] is closed.
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

// Algorithm returns the type of the key.
func (k *Key) Algorithm() Algorithm { return k.alg }

// Ref returns a reference with which Find finds this key and no other.
func (k *Key) Ref() KeyRef { return KeyRef{Label: k.label, ID: k.ID()} }

// Sign signs digest, whose hash is in opts: SHA-256, SHA-384 or SHA-512. An Ed25519 key signs the message itself, with
// crypto.Hash(0) in opts. RSA keys sign with PKCS #1 v1.5 (RFC 8017 section 8.2) or, with *rsa.PSSOptions, with PSS
// (section 8.1). Both special salt lengths mean the length of the hash. ECDSA signatures are in DER. Sign ignores its
// first argument, and uses the HSM's random source.
//
// If the HSM returns a code that does not reveal the cause, Sign lets the key sign the self-test. If that fails, the
// library is restarted. If it succeeds, Sign tries once more.
//
// Sign waits at most Config.Wait. It returns [ErrDigest] if it cannot sign digest with opts, and otherwise
// [ErrUnavailable], [ErrBusy], [ErrPIN], [ErrKey] or [ErrClosed].
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

// prove lets the key sign the self-test, and verifies the signature.
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
		k.hsm.requireRestart() // the library may still count the sessions of a lost device until it restarts
		err = once()
	}
	return err
}

func (k *Key) operation() string { return fmt.Sprintf("sign with key %q", k.label) }

// selfTest is the text that every self-test signs. It cannot be mistaken for the beginning of data that X.509 signs,
// because that is DER and begins with 0x30.
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
