package hsm

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/miekg/pkcs11"
)

// idSize is the length of a CKA_ID that this package makes: long enough that two random ones never collide.
const idSize = 16

// maxLabel is the maximum length of a key's label, in bytes.
const maxLabel = 64

// Generate makes a key pair in the HSM, for signing only, that cannot be read or
// exported. It reads back that the HSM protects it so. If it does not, Generate destroys
// the pair and returns an [AttributeError]. A label that a key already has gives
// [ErrExists], and a mechanism that the HSM lacks [ErrUnsupported].
//
// Each call uses a random CKA_ID, by which it recognizes, after a failure, a pair that the
// HSM did make; so a fault never leaves two. Generate restarts the library first, because
// only a restarted library reports reliably that the label is free. If ctx ends first, the
// pair may still be made: look with [HSM.Find].
func (t *HSM) Generate(ctx context.Context, label string, alg Algorithm) (*Key, error) {
	if err := checkLabel(label); err != nil {
		return nil, err
	}
	how, err := alg.recipe()
	if err != nil {
		return nil, err
	}
	id := make([]byte, idSize)
	rand.Read(id) // never fails
	ref := KeyRef{Label: label, ID: id}
	t.requireRestart()
	return run(ctx, t, fmt.Sprintf("make key %q", label), func(s *session) (*Key, error) {
		k, err := s.key(ref)
		if errors.Is(err, ErrNotFound) {
			if err := s.generate(ref, alg, how); err != nil {
				return nil, err
			}
			k, err = s.key(ref)
		}
		if bad := new(AttributeError); errors.As(err, &bad) {
			bad.Err = errors.Join(bad.Err, s.destroy(KeyRef{ID: id}))
		}
		return k, err
	})
}

// checkLabel returns an error if label cannot be a key's label.
func checkLabel(label string) error {
	unprintable := func(r rune) bool { return !unicode.IsPrint(r) }
	switch {
	case label == "" || len(label) > maxLabel:
		return fmt.Errorf("a key's label has %d bytes: use 1 to %d", len(label), maxLabel)
	case !utf8.ValidString(label) || strings.ContainsFunc(label, unprintable) || strings.TrimSpace(label) != label:
		return fmt.Errorf("key label %q: use printable characters, with no space at either end", label)
	}
	return nil
}

// generate makes the pair after checking that the HSM has the mechanisms and that the label is free.
func (s *session) generate(ref KeyRef, alg Algorithm, how recipe) error {
	if err := s.requireMechanisms(alg, append(how.sign, how.generate)); err != nil {
		return err
	}
	for _, class := range []uint{pkcs11.CKO_PRIVATE_KEY, pkcs11.CKO_PUBLIC_KEY} {
		same, err := s.search(KeyRef{Label: ref.Label}.template(class))
		if err != nil {
			return err
		}
		if len(same) > 0 {
			return ErrExists
		}
	}
	public, private := templates(ref, how)
	return s.writable(func(rw *session) error {
		mech := []*pkcs11.Mechanism{pkcs11.NewMechanism(how.generate, nil)}
		if _, _, err := rw.lib.GenerateKeyPair(rw.h, mech, public, private); err != nil {
			return fmt.Errorf("make %v pair: %w", alg, err)
		}
		return nil
	})
}

// requireMechanisms checks that the HSM has the mechanisms that alg needs.
func (s *session) requireMechanisms(alg Algorithm, mechanisms []uint) error {
	list, err := s.lib.GetMechanismList(s.slot)
	if err != nil {
		return fmt.Errorf("list mechanisms: %w", err)
	}
	for _, want := range mechanisms {
		has := func(m *pkcs11.Mechanism) bool { return m.Mechanism == want }
		if !slices.ContainsFunc(list, has) {
			return fmt.Errorf("%w: the HSM does not offer %v keys (mechanism 0x%x is missing): choose another algorithm or HSM", ErrUnsupported, alg, want)
		}
	}
	return nil
}

// templates returns the attributes of the two halves: the private key signs and does
// nothing else, the public key verifies.
func templates(ref KeyRef, how recipe) (public, private []*pkcs11.Attribute) {
	flags := func(on bool, types ...uint) (list []*pkcs11.Attribute) {
		for _, typ := range types {
			list = append(list, pkcs11.NewAttribute(typ, on))
		}
		return list
	}
	keyType := pkcs11.NewAttribute(pkcs11.CKA_KEY_TYPE, how.keyType)
	public = slices.Concat(ref.template(pkcs11.CKO_PUBLIC_KEY), how.parameters,
		flags(true, pkcs11.CKA_VERIFY),
		flags(false, pkcs11.CKA_PRIVATE, pkcs11.CKA_ENCRYPT, pkcs11.CKA_WRAP, pkcs11.CKA_VERIFY_RECOVER),
		[]*pkcs11.Attribute{keyType})
	private = slices.Concat(ref.template(pkcs11.CKO_PRIVATE_KEY),
		flags(true, pkcs11.CKA_PRIVATE, pkcs11.CKA_SENSITIVE, pkcs11.CKA_SIGN),
		flags(false, pkcs11.CKA_EXTRACTABLE, pkcs11.CKA_DECRYPT, pkcs11.CKA_UNWRAP, pkcs11.CKA_SIGN_RECOVER, pkcs11.CKA_DERIVE),
		[]*pkcs11.Attribute{keyType})
	return public, private
}

// Destroy removes every key with this label permanently, including a single half that a fault has left. It returns no
// error if there is none. It is for keys that sign once: their signatures stay valid, and no further one can be made.
func (t *HSM) Destroy(ctx context.Context, label string) error {
	if err := checkLabel(label); err != nil {
		return err
	}
	ref := KeyRef{Label: label}
	t.requireRestart() // as in Generate: only a restarted library shows all keys
	_, err := run(ctx, t, "destroy "+ref.String(), func(s *session) (struct{}, error) {
		if _, err := s.privateKeys(ref); err != nil { // logs in again if the login was lost: without it no private key is found
			return struct{}{}, err
		}
		return struct{}{}, s.destroy(ref)
	})
	return err
}

// destroy removes both halves of the keys that ref names.
func (s *session) destroy(ref KeyRef) error {
	err := s.writable(func(rw *session) error {
		for _, class := range []uint{pkcs11.CKO_PRIVATE_KEY, pkcs11.CKO_PUBLIC_KEY} {
			found, err := rw.search(ref.template(class))
			if err != nil {
				return err
			}
			for _, h := range found {
				if err := rw.lib.DestroyObject(rw.h, h); err != nil {
					return err
				}
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("the %s could not be destroyed, remove it by hand: %w", ref, err)
	}
	return nil
}
