package hsm

import (
	"bytes"
	"context"
	"crypto"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"

	"github.com/miekg/pkcs11"
)

// KeyRef identifies a key by its label (CKA_LABEL), its ID (CKA_ID), or both. A key must match all fields that are set.
type KeyRef struct {
	Label string
	ID    []byte
	// Public selects one of several keys that match, if it is not nil.
	Public crypto.PublicKey
}

// String returns the label and the ID for messages.
func (r KeyRef) String() string {
	switch {
	case len(r.ID) == 0:
		return fmt.Sprintf("key %q", r.Label)
	case r.Label == "":
		return "key with ID " + hex.EncodeToString(r.ID)
	}
	return fmt.Sprintf("key %q with ID %x", r.Label, r.ID)
}

// template returns a template that finds the objects of one class.
func (r KeyRef) template(class uint) []*pkcs11.Attribute {
	t := []*pkcs11.Attribute{
		pkcs11.NewAttribute(pkcs11.CKA_CLASS, class),
		pkcs11.NewAttribute(pkcs11.CKA_TOKEN, true),
	}
	if r.Label != "" {
		t = append(t, pkcs11.NewAttribute(pkcs11.CKA_LABEL, r.Label))
	}
	if len(r.ID) > 0 {
		t = append(t, pkcs11.NewAttribute(pkcs11.CKA_ID, r.ID))
	}
	return t
}

// KeyInfo describes a private key in the HSM.
type KeyInfo struct {
	Label     string
	ID        []byte
	Algorithm Algorithm        // zero if this package does not support the type
	Public    crypto.PublicKey // nil if this package does not support the type, or if there is no public key
}

// Find returns the only key that matches ref. If there is none or more than one, it returns [ErrNotFound] or
// [ErrAmbiguous]. The key must have been generated in the HSM and be protected by it ([AttributeError]). Find lets it
// sign a fixed text, and verifies the signature ([ErrKey]). Before Find returns [ErrNotFound], it restarts the library
// and searches again.
func (t *HSM) Find(ctx context.Context, ref KeyRef) (*Key, error) {
	if ref.Label == "" && len(ref.ID) == 0 {
		return nil, errors.New("find key: give its label or its ID")
	}
	find := func() (*Key, error) {
		return run(ctx, t, "find "+ref.String(), func(s *session) (*Key, error) { return s.key(ref) })
	}
	k, err := find()
	if errors.Is(err, ErrNotFound) {
		t.requireRestart()
		k, err = find()
	}
	return k, err
}

// Keys returns the private keys in the HSM, in the HSM's order.
func (t *HSM) Keys(ctx context.Context) ([]KeyInfo, error) {
	return run(ctx, t, "list keys", func(s *session) ([]KeyInfo, error) {
		handles, err := s.privateKeys(KeyRef{})
		if err != nil {
			return nil, err
		}
		var infos []KeyInfo
		for _, h := range handles {
			info, err := s.describe(h)
			if err != nil {
				return nil, err
			}
			infos = append(infos, info)
		}
		return infos, nil
	})
}

// labelAndID reads the label and the ID of a private key.
func (s *session) labelAndID(h pkcs11.ObjectHandle) (label string, id []byte, err error) {
	l, err := s.attribute(h, pkcs11.CKA_LABEL)
	if err != nil {
		return "", nil, err
	}
	id, err = s.attribute(h, pkcs11.CKA_ID)
	return string(l), id, err
}

// describe reads the label, ID, type and public key of a private key.
func (s *session) describe(h pkcs11.ObjectHandle) (KeyInfo, error) {
	label, id, err := s.labelAndID(h)
	if err != nil {
		return KeyInfo{}, err
	}
	info := KeyInfo{Label: label, ID: id}
	info.Public, info.Algorithm, err = s.publicKey(id)
	if errors.Is(err, ErrKey) || errors.Is(err, ErrUnsupported) {
		return KeyInfo{Label: label, ID: id}, nil
	}
	return info, err
}

// key returns the only key that matches ref, after checking it.
func (s *session) key(ref KeyRef) (*Key, error) {
	handles, err := s.privateKeys(ref)
	if err != nil {
		return nil, err
	}
	switch len(handles) {
	case 0:
		return nil, ErrNotFound
	case 1:
		return s.inspect(handles[0])
	default:
		return s.choose(handles, ref.Public)
	}
}

// choose returns the only key among handles with the public key, which may be nil.
func (s *session) choose(handles []pkcs11.ObjectHandle, public crypto.PublicKey) (*Key, error) {
	var chosen []pkcs11.ObjectHandle
	var ids []string
	for _, h := range handles {
		info, err := s.describe(h)
		if err != nil {
			return nil, err
		}
		if k, ok := info.Public.(publicKey); ok && public != nil && k.Equal(public) {
			chosen = append(chosen, h)
		}
		ids = append(ids, hex.EncodeToString(info.ID))
	}
	if len(chosen) == 1 {
		return s.inspect(chosen[0])
	}
	return nil, fmt.Errorf("%w: %d keys match: name the key by its ID, one of %s", ErrAmbiguous, len(handles), strings.Join(ids, ", "))
}

// inspect returns the key whose private key has the handle h. The public key must exist, the private key must be
// protected, and the key must pass the self-test.
func (s *session) inspect(h pkcs11.ObjectHandle) (*Key, error) {
	label, id, err := s.labelAndID(h)
	if err != nil {
		return nil, err
	}
	pub, alg, err := s.publicKey(id)
	if err != nil {
		return nil, err
	}
	if err := s.checkProtected(h); err != nil {
		return nil, err
	}
	if err := s.prove(h, pub); err != nil {
		return nil, err
	}
	s.remember(id, knownKey{h, pub})
	return &Key{hsm: s.hsm, label: label, id: id, alg: alg, pub: pub}, nil
}

// handleOf returns the handle of k in this attachment. If the handle is unknown, there must be exactly one private key
// with the ID of k. That key must have the same public key, and pass the self-test.
func (s *session) handleOf(k *Key) (pkcs11.ObjectHandle, error) {
	known, ok := s.known(k.id)
	if !ok {
		_, err := s.key(KeyRef{ID: k.id})
		if errors.Is(err, ErrNotFound) {
			return 0, errKeyLost
		}
		if err != nil {
			return 0, unusable(err)
		}
		known, _ = s.known(k.id)
	}
	if !k.pub.Equal(known.pub) {
		return 0, fmt.Errorf("%w: the ID %x now belongs to another public key", ErrKey, k.id)
	}
	return known.handle, nil
}

// privateKeys searches for private keys. Without a login, an HSM finds none and returns no error. If the result is
// empty, privateKeys therefore logs in and searches again.
func (s *session) privateKeys(ref KeyRef) ([]pkcs11.ObjectHandle, error) {
	handles, err := s.search(ref.template(pkcs11.CKO_PRIVATE_KEY))
	if err != nil || len(handles) > 0 {
		return handles, err
	}
	if err := s.hsm.login(s.attachment); err != nil {
		return nil, err
	}
	return s.search(ref.template(pkcs11.CKO_PRIVATE_KEY))
}

// search returns the handles of all objects that match the template.
func (s *session) search(template []*pkcs11.Attribute) ([]pkcs11.ObjectHandle, error) {
	const batch = 64
	if err := s.lib.FindObjectsInit(s.h, template); err != nil {
		return nil, fmt.Errorf("begin search: %w", err)
	}
	var all []pkcs11.ObjectHandle
	for {
		some, _, err := s.lib.FindObjects(s.h, batch)
		if err != nil {
			return nil, fmt.Errorf("search: %w", err)
		}
		if len(some) == 0 {
			break
		}
		all = append(all, some...)
	}
	if err := s.lib.FindObjectsFinal(s.h); err != nil {
		return nil, fmt.Errorf("end search: %w", err)
	}
	return all, nil
}

// attribute returns the value of one attribute.
func (s *session) attribute(h pkcs11.ObjectHandle, typ uint) ([]byte, error) {
	got, err := s.lib.GetAttributeValue(s.h, h, []*pkcs11.Attribute{pkcs11.NewAttribute(typ, nil)})
	if err != nil {
		return nil, fmt.Errorf("read attribute 0x%x: %w", typ, err)
	}
	if len(got) != 1 {
		return nil, fmt.Errorf("read attribute 0x%x: the HSM returned %d values", typ, len(got))
	}
	return got[0].Value, nil
}

// protection lists the attributes of a private key that was generated in the HSM and has never left it.
var protection = []struct {
	name string
	typ  uint
	want bool
}{
	{"CKA_SENSITIVE", pkcs11.CKA_SENSITIVE, true},
	{"CKA_EXTRACTABLE", pkcs11.CKA_EXTRACTABLE, false},
	{"CKA_LOCAL", pkcs11.CKA_LOCAL, true},
	{"CKA_ALWAYS_SENSITIVE", pkcs11.CKA_ALWAYS_SENSITIVE, true},
	{"CKA_NEVER_EXTRACTABLE", pkcs11.CKA_NEVER_EXTRACTABLE, true},
}

// checkProtected verifies the attributes that protect a private key. An [AttributeError] names an attribute that is
// wrong, or that the HSM does not know.
func (s *session) checkProtected(h pkcs11.ObjectHandle) error {
	for _, p := range protection {
		value, err := s.attribute(h, p.typ)
		switch c := classify(err); {
		case c == classOther:
			return &AttributeError{Attribute: p.name, Want: p.want, Err: err}
		case c != classNone:
			return err
		}
		want := []byte{0}
		if p.want {
			want[0] = 1
		}
		if !bytes.Equal(value, want) {
			return &AttributeError{Attribute: p.name, Want: p.want}
		}
	}
	return nil
}
