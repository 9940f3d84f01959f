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

// idSize is the length of a CKA_ID that this package generates, in bytes. Two random IDs of this length never collide.
const idSize = 16

// maxLabel is the maximum length of a key's label, in bytes.
const maxLabel = 64

// Generate generates a key pair in the HSM. The private key can only sign, and cannot be read or exported. Generate
// verifies this: if the HSM does not protect the key, it destroys the pair and returns an [AttributeError]. If a key
// with the label exists, it returns [ErrExists]. If the HSM lacks a mechanism, it returns [ErrUnsupported].
//
// Each call uses a random CKA_ID. If an attempt fails although the HSM has generated the pair, the next attempt finds
// the pair by this ID. A fault therefore never leaves two pairs. Generate restarts the library first, because only a
// restarted library reliably finds an existing key with the label. If ctx ends first, the HSM may still generate the
// pair: search for it with [HSM.Find].
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

// checkLabel returns an error if a key must not have this label.
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

// generate generates the pair, after checking that the HSM has the mechanisms and that no key has the label.
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

// templates returns the attributes of the two keys. The private key can only sign, and the public key can only verify.
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

// Destroy permanently removes every key with this label, including a private or public key without its counterpart. If
// there is none, it returns no error. Destroy is for keys that sign only once: their signatures stay valid, and no
// further one can be made.
func (t *HSM) Destroy(ctx context.Context, label string) error {
	if err := checkLabel(label); err != nil {
		return err
	}
	ref := KeyRef{Label: label}
	t.requireRestart() // only a restarted library reliably finds all keys
	_, err := run(ctx, t, "destroy "+ref.String(), func(s *session) (struct{}, error) {
		if _, err := s.privateKeys(ref); err != nil { // logs in again: without a login the HSM finds no private key
			return struct{}{}, err
		}
		return struct{}{}, s.destroy(ref)
	})
	return err
}

// destroy removes the private and public keys that match ref.
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
