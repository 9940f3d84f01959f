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

// idSize is the length of a CKA_ID that this package makes: too long for two to be alike.
const idSize = 16

// maxLabel bounds a key's label, in octets.
const maxLabel = 64

// Generate makes a key pair in the token, for signing only, that cannot be read or
// exported, and reads back that the token holds it so; where it does not, the pair is
// destroyed and the error is an [AttributeError]. A label that a key already has gives
// [ErrExists], and a mechanism that the token lacks [ErrUnsupported].
//
// Each call has a random CKA_ID of its own, by which it recognises, after a failure, a pair
// that the token did make; so a fault never leaves two. The library is restarted first,
// because only then its word that the label is free can be relied on. When ctx ends first,
// the pair may still come into being: look with [Token.Find].
func (t *Token) Generate(ctx context.Context, label string, alg Algorithm) (*Key, error) {
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
	t.renew()
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

// checkLabel says why label cannot be a key's.
func checkLabel(label string) error {
	unprintable := func(r rune) bool { return !unicode.IsPrint(r) }
	switch {
	case label == "" || len(label) > maxLabel:
		return fmt.Errorf("hsm: a key's label has %d octets: give it 1 to %d", len(label), maxLabel)
	case !utf8.ValidString(label) || strings.ContainsFunc(label, unprintable) || strings.TrimSpace(label) != label:
		return fmt.Errorf("hsm: key label %q: use printable characters, with no space at either end", label)
	}
	return nil
}

// generate makes the pair after checking that the token can and that the label is free.
func (s *session) generate(ref KeyRef, alg Algorithm, how recipe) error {
	if err := s.offers(alg, append(how.sign, how.generate)); err != nil {
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

// offers checks that the token has the mechanisms that alg takes.
func (s *session) offers(alg Algorithm, mechanisms []uint) error {
	list, err := s.lib.GetMechanismList(s.slot)
	if err != nil {
		return fmt.Errorf("list mechanisms: %w", err)
	}
	for _, want := range mechanisms {
		has := func(m *pkcs11.Mechanism) bool { return m.Mechanism == want }
		if !slices.ContainsFunc(list, has) {
			return fmt.Errorf("%w: the token does not offer %v keys (mechanism 0x%x is missing): choose another algorithm or token", ErrUnsupported, alg, want)
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

// Destroy removes every key with this label, for good, and every half of one that a fault has left. That there is none
// is no error. It is for keys that are made to be thrown away: what they have signed stays, and nobody can sign again.
func (t *Token) Destroy(ctx context.Context, label string) error {
	if err := checkLabel(label); err != nil {
		return err
	}
	ref := KeyRef{Label: label}
	t.renew() // as for Generate, whose opposite this is
	_, err := run(ctx, t, "destroy "+ref.String(), func(s *session) (struct{}, error) {
		if _, err := s.privateKeys(ref); err != nil { // which logs in where that was lost: nothing private is found without
			return struct{}{}, err
		}
		return struct{}{}, s.destroy(ref)
	})
	return err
}

// destroy removes both halves of what ref names.
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
