package floor

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"encoding/asn1"
	"errors"
	"fmt"
	"io"
	"math/big"

	"github.com/miekg/pkcs11"
	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// device is an HSM that this process is logged in to, and its key.
type device struct {
	lib    *pkcs11.Ctx
	ours   bool // whether Open initialized the library, and Close must finalize it
	slot   uint
	anchor pkcs11.SessionHandle
	key    pkcs11.ObjectHandle
	public *ecdsa.PublicKey
}

func openHSM(c Config) (*device, error) {
	t := &device{lib: pkcs11.New(c.Module)}
	if t.lib == nil {
		return nil, fmt.Errorf("%s is not a PKCS#11 library", c.Module)
	}
	err := t.lib.Initialize()
	t.ours = err == nil
	if err != nil && !errors.Is(err, pkcs11.Error(pkcs11.CKR_CRYPTOKI_ALREADY_INITIALIZED)) {
		return nil, fmt.Errorf("initialise %s: %w", c.Module, err)
	}
	if err := t.open(c); err != nil {
		return nil, errors.Join(err, t.close())
	}
	return t, nil
}

func (t *device) open(c Config) error {
	var err error
	if t.slot, err = t.find(c); err != nil {
		return err
	}
	if t.anchor, err = t.lib.OpenSession(t.slot, pkcs11.CKF_SERIAL_SESSION); err != nil {
		return err
	}
	if t.key, err = t.object(pkcs11.CKO_PRIVATE_KEY, c.KeyLabel); err != nil {
		return err
	}
	public, err := t.object(pkcs11.CKO_PUBLIC_KEY, c.KeyLabel)
	if err != nil {
		return err
	}
	got, err := t.lib.GetAttributeValue(t.anchor, public, []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_EC_POINT, nil)})
	if err != nil {
		return err
	}
	var point []byte
	if rest, err := asn1.Unmarshal(got[0].Value, &point); err != nil || len(rest) > 0 {
		return errors.New("the key's CKA_EC_POINT is not an OCTET STRING")
	}
	t.public, err = ecdsa.ParseUncompressedPublicKey(elliptic.P256(), point)
	return err
}

func (t *device) find(c Config) (uint, error) {
	slots, err := t.lib.GetSlotList(true)
	if err != nil {
		return 0, err
	}
	for _, slot := range slots {
		info, err := t.lib.GetTokenInfo(slot)
		if err != nil {
			continue // another HSM that does not matter here
		}
		if c.Serial != "" && info.SerialNumber == c.Serial || c.Serial == "" && info.Label == c.Label {
			return slot, nil
		}
	}
	return 0, fmt.Errorf("there is no HSM with label %q, serial %q", c.Label, c.Serial)
}

func (t *device) object(class uint, label string) (pkcs11.ObjectHandle, error) {
	template := []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_CLASS, class), pkcs11.NewAttribute(pkcs11.CKA_LABEL, label)}
	if err := t.lib.FindObjectsInit(t.anchor, template); err != nil {
		return 0, err
	}
	found, _, err := t.lib.FindObjects(t.anchor, 2)
	if err := errors.Join(err, t.lib.FindObjectsFinal(t.anchor)); err != nil {
		return 0, err
	}
	if len(found) != 1 {
		return 0, fmt.Errorf("the HSM has %d keys with the label %q in one class, not 1", len(found), label)
	}
	return found[0], nil
}

func (t *device) close() error {
	if t.anchor != 0 {
		_ = t.lib.CloseSession(t.anchor) // the process ends anyway
	}
	if t.ours {
		return t.lib.Finalize()
	}
	return nil
}

// session signs for one goroutine at a time.
type session struct {
	*device
	h pkcs11.SessionHandle
}

// sessions opens n sessions.
func (t *device) sessions(n int) (chan *session, error) {
	all := make(chan *session, n)
	for range n {
		s, err := t.session()
		if err != nil {
			closeSessions(all)
			return nil, err
		}
		all <- s
	}
	return all, nil
}

// closeSessions closes the sessions that are not in use.
func closeSessions(all chan *session) {
	close(all)
	for s := range all {
		s.close()
	}
}

func (t *device) session() (*session, error) {
	h, err := t.lib.OpenSession(t.slot, pkcs11.CKF_SERIAL_SESSION)
	return &session{t, h}, err
}

func (s *session) close() { _ = s.lib.CloseSession(s.h) } // an error has no consequence

// Public implements [crypto.Signer].
func (s *session) Public() crypto.PublicKey { return s.public }

// Sign signs a digest with CKM_ECDSA.
func (s *session) Sign(_ io.Reader, digest []byte, _ crypto.SignerOpts) ([]byte, error) {
	if err := s.lib.SignInit(s.h, []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_ECDSA, nil)}, s.key); err != nil {
		return nil, err
	}
	raw, err := s.lib.Sign(s.h, digest)
	if err != nil {
		return nil, err
	}
	var b cryptobyte.Builder
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1BigInt(new(big.Int).SetBytes(raw[:len(raw)/2]))
		b.AddASN1BigInt(new(big.Int).SetBytes(raw[len(raw)/2:]))
	})
	return b.Bytes()
}
