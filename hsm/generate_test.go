package hsm

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/miekg/pkcs11"
)

// countObjects returns the number of objects on the HSM.
func countObjects(t *testing.T, b *testBench, label string) int {
	t.Helper()
	return strings.Count(b.pkcs11Tool(t, label, "--list-objects"), " Key Object;")
}

// TestUnprotectedKeyIsDestroyed checks that Generate destroys a key that the HSM does not protect. The error must name
// the attribute.
func TestUnprotectedKeyIsDestroyed(t *testing.T) {
	b := newTestBench(t, "attributes")
	tok := b.open(t, b.config("attributes"))
	for _, p := range protection {
		opposite := []byte{1}
		if p.want {
			opposite[0] = 0
		}
		for _, claim := range [][]byte{opposite, {}, nil} {
			b.attribute = map[uint][]byte{p.typ: claim}
			_, err := tok.Generate(t.Context(), "k", P256)
			var bad *AttributeError
			if !errors.As(err, &bad) || bad.Attribute != p.name || bad.Want != p.want || temporary(err) {
				t.Errorf("Generate with attribute %s read as %x: %v", p.name, claim, err)
			}
			b.attribute = nil
			if n := countObjects(t, b, "attributes"); n != 0 {
				t.Fatalf("%s as %x: %d objects are left", p.name, claim, n)
			}
		}
	}

	b.attribute = map[uint][]byte{pkcs11.CKA_SENSITIVE: {0}}
	b.inject(fault{call: "DestroyObject", times: 1, err: pkcs11.Error(pkcs11.CKR_FUNCTION_FAILED)})
	if _, err := tok.Generate(t.Context(), "k", P256); err == nil || !strings.Contains(err.Error(), "remove it by hand") {
		t.Errorf("Generate with a pair that cannot be destroyed: %v", err)
	}
}

// TestGenerateUnderFaultsLeavesOnePairOrNone makes each library call of Generate fail, before or after it takes effect.
func TestGenerateUnderFaultsLeavesOnePairOrNone(t *testing.T) {
	b := newTestBench(t, "faults")
	tok := b.open(t, b.config("faults"))
	var made int
	for _, code := range []uint{
		pkcs11.CKR_SESSION_HANDLE_INVALID, pkcs11.CKR_USER_NOT_LOGGED_IN,
		pkcs11.CKR_OBJECT_HANDLE_INVALID, pkcs11.CKR_DEVICE_ERROR,
	} {
		for _, call := range []string{"GenerateKeyPair", "FindObjects", "OpenSession", "SignInit", "Sign"} {
			for _, applies := range []bool{false, true} {
				name := fmt.Sprintf("0x%x from %s, applied %v", code, call, applies)
				b.inject(fault{call: call, times: 1, applies: applies, err: pkcs11.Error(code)})
				k, err := tok.Generate(t.Context(), name, P256)
				b.heal()
				if err != nil {
					t.Errorf("%s: %v", name, err)
					continue
				}
				mustSign(t, k)
				made++
				if _, err := tok.Generate(t.Context(), name, P256); !errors.Is(err, ErrExists) {
					t.Errorf("%s, again: %v", name, err)
				}
			}
		}
	}
	if n := countObjects(t, b, "faults"); n != 2*made {
		t.Errorf("%d objects for %d keys", n, made)
	}
}

// TestDestroyRemovesKeysAndHalves checks that Destroy removes all keys with the label under faults, also if only the
// private or public key is left. It must remove no other keys.
func TestDestroyRemovesKeysAndHalves(t *testing.T) {
	b := newTestBench(t, "destroy")
	tok := b.open(t, b.config("destroy"))
	kept := mustGenerate(t, tok, "kept", P256)
	if err := tok.Destroy(t.Context(), "kep"); err != nil {
		t.Errorf("Destroy of a label without key: %v", err)
	}
	for _, code := range []uint{
		pkcs11.CKR_SESSION_HANDLE_INVALID, pkcs11.CKR_USER_NOT_LOGGED_IN, pkcs11.CKR_OBJECT_HANDLE_INVALID, pkcs11.CKR_DEVICE_ERROR,
	} {
		for _, call := range []string{"DestroyObject", "FindObjects", "OpenSession"} {
			for _, applies := range []bool{false, true} {
				destroyed := mustGenerate(t, tok, "gone", P256)
				b.inject(fault{call: call, times: 1, applies: applies, err: pkcs11.Error(code)})
				err := tok.Destroy(t.Context(), "gone")
				b.heal()
				if err != nil {
					t.Errorf("Destroy with error 0x%x from %s, applied %v: %v", code, call, applies, err)
				}
				if _, err := tok.Find(t.Context(), destroyed.Ref()); !errors.Is(err, ErrNotFound) {
					t.Errorf("0x%x from %s, applied %v: the key is there: %v", code, call, applies, err)
				}
			}
		}
	}
	// The process may end after one key of the pair was removed. The next call of Destroy removes the other key.
	mustGenerate(t, tok, "gone", P256)
	b.inject(fault{call: "DestroyObject", times: 2, skip: 1, err: pkcs11.Error(pkcs11.CKR_FUNCTION_FAILED)})
	if err := tok.Destroy(t.Context(), "gone"); err == nil || !strings.Contains(err.Error(), "remove it by hand") {
		t.Errorf("Destroy of a half that cannot be destroyed: %v", err)
	}
	b.heal()
	if n := countObjects(t, b, "destroy"); n != 3 {
		t.Fatalf("%d objects, and not a pair and a half", n)
	}
	if err := tok.Destroy(t.Context(), "gone"); err != nil {
		t.Error(err)
	}
	if n := countObjects(t, b, "destroy"); n != 2 {
		t.Errorf("%d objects for one key", n)
	}
	mustSign(t, kept)
	if err := tok.Destroy(t.Context(), ""); err == nil {
		t.Error("every key would be destroyed")
	}
}

// lackingMechanisms is a library that lacks some mechanisms.
type lackingMechanisms struct {
	cryptoki
	without uint
}

func (l lackingMechanisms) GetMechanismList(slot uint) ([]*pkcs11.Mechanism, error) {
	list, err := l.cryptoki.GetMechanismList(slot)
	return slices.DeleteFunc(list, func(m *pkcs11.Mechanism) bool { return m.Mechanism == l.without }), err
}

// TestMissingMechanismIsUnsupported checks that Generate returns ErrUnsupported for Ed25519 if the HSM lacks it. Other
// types of keys must still work.
func TestMissingMechanismIsUnsupported(t *testing.T) {
	b := newTestBench(t, "old")
	for _, without := range []uint{ckmECEdwardsKeyPairGen, ckmEDDSA} {
		reg := &registry{load: func(path string) (cryptoki, error) {
			lib, err := load(path)
			return lackingMechanisms{lib, without}, err
		}}
		tok, err := reg.open(t.Context(), b.config("old"), testPIN(t, userSecret))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := tok.Generate(t.Context(), "ed", Ed25519); !errors.Is(err, ErrUnsupported) || temporary(err) || !strings.Contains(err.Error(), "Ed25519") {
			t.Errorf("Generate without mechanism 0x%x: %v", without, err)
		}
		mustSign(t, mustGenerate(t, tok, fmt.Sprintf("ec %x", without), P256))
		if err := tok.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestGenerateRefusesLabelsAndAlgorithms calls Generate with invalid labels and algorithms.
func TestGenerateRefusesLabelsAndAlgorithms(t *testing.T) {
	b := newTestBench(t, "refuses")
	tok := b.open(t, b.config("refuses"))
	for _, label := range []string{"", " x", "x ", "a\nb", "a\x00", "\xff", strings.Repeat("x", maxLabel+1)} {
		if _, err := tok.Generate(t.Context(), label, P256); err == nil {
			t.Errorf("label %q was accepted", label)
		}
	}
	for _, alg := range []Algorithm{0, Ed25519 + 1} {
		if _, err := tok.Generate(t.Context(), "k", alg); !errors.Is(err, ErrUnsupported) {
			t.Errorf("Generate with algorithm %d: %v, want ErrUnsupported", alg, err)
		}
	}
	if n := countObjects(t, b, "refuses"); n != 0 {
		t.Errorf("%d objects were made", n)
	}
}

// TestFindRefusesUnsuitableKeys creates keys with another program that Find must not return.
func TestFindRefusesUnsuitableKeys(t *testing.T) {
	b := newTestBench(t, "foreign")
	generate := func(label, id, kind string) {
		b.pkcs11Tool(t, "foreign", "--keypairgen", "--key-type", kind, "--sensitive", "--label", label, "--id", id)
	}
	generate("twin", "01", "EC:prime256v1")
	generate("twin", "02", "EC:prime256v1")
	generate("small", "03", "rsa:2048")
	generate("curve", "04", "EC:secp521r1")
	generate("half", "05", "EC:prime256v1")
	b.pkcs11Tool(t, "foreign", "--delete-object", "--type", "pubkey", "--id", "05")
	generate("fine", "06", "EC:secp384r1")

	imported, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalECPrivateKey(imported)
	if err != nil {
		t.Fatal(err)
	}
	spki, err := x509.MarshalPKIXPublicKey(imported.Public())
	if err != nil {
		t.Fatal(err)
	}
	for kind, der := range map[string][]byte{"privkey": der, "pubkey": spki} {
		file := filepath.Join(t.TempDir(), "key.der")
		if err := os.WriteFile(file, der, 0o600); err != nil {
			t.Fatal(err)
		}
		b.pkcs11Tool(t, "foreign", "--write-object", file, "--type", kind, "--label", "imported", "--id", "07", "--usage-sign", "--sensitive")
	}

	tok := b.open(t, b.config("foreign"))
	for _, c := range []struct {
		ref  KeyRef
		want error
	}{
		{KeyRef{Label: "twin"}, ErrAmbiguous},
		{KeyRef{Label: "twin", ID: []byte{3}}, ErrNotFound},
		{KeyRef{Label: "nobody"}, ErrNotFound},
		{KeyRef{ID: []byte{9}}, ErrNotFound},
		{KeyRef{Label: "small"}, ErrUnsupported},
		{KeyRef{Label: "curve"}, ErrUnsupported},
		{KeyRef{Label: "half"}, ErrKey},
	} {
		if k, err := tok.Find(t.Context(), c.ref); !errors.Is(err, c.want) || temporary(err) || k != nil {
			t.Errorf("%v: %v, want %v", c.ref, err, c.want)
		}
	}
	var bad *AttributeError
	if _, err := tok.Find(t.Context(), KeyRef{Label: "imported"}); !errors.As(err, &bad) || bad.Attribute != "CKA_LOCAL" {
		t.Errorf("Find of an imported key: %v", err)
	}
	for _, ref := range []KeyRef{{Label: "twin", ID: []byte{1}}, {ID: []byte{2}}, {Label: "fine"}} {
		mustSign(t, mustFind(t, tok, ref))
	}
	if _, err := tok.Find(t.Context(), KeyRef{}); err == nil {
		t.Error("an empty reference found a key")
	}
	infos, err := tok.Keys(t.Context())
	if err != nil || len(infos) != 7 {
		t.Errorf("Keys = %d, %v", len(infos), err)
	}
}

// TestMismatchedPublicKeyIsRefused checks that Find detects a public key that does not belong to the private key.
func TestMismatchedPublicKeyIsRefused(t *testing.T) {
	b := newTestBench(t, "mixed")
	tok := b.open(t, b.config("mixed"))
	one, two := mustGenerate(t, tok, "one", P256), mustGenerate(t, tok, "two", P256)
	point, err := two.pub.(*ecdsa.PublicKey).Bytes()
	if err != nil {
		t.Fatal(err)
	}
	b.attribute = map[uint][]byte{pkcs11.CKA_EC_POINT: point}
	if _, err := tok.Find(t.Context(), one.Ref()); !errors.Is(err, ErrKey) || temporary(err) {
		t.Errorf("Find of a key with another key's public half: %v", err)
	}
	b.attribute = nil
	mustSign(t, mustFind(t, tok, one.Ref()))
}

// TestInit checks what Init refuses, and that another program finds the initialized HSM.
func TestInit(t *testing.T) {
	b := newTestBench(t, "first", "second")
	slots := tool(t, "softhsm2-util", "--show-slots")
	for _, want := range []string{"first", "second"} {
		if !strings.Contains(slots, want) {
			t.Errorf("softhsm2-util does not show %q:\n%s", want, slots)
		}
	}
	so, user := testPIN(t, soSecret), testPIN(t, userSecret)
	initialize := func(label string, so, user PIN) error {
		_, err := b.reg.initialize(t.Context(), b.module, label, so, user)
		return err
	}
	if err := initialize("first", so, user); !errors.Is(err, ErrExists) {
		t.Errorf("Init with a label that exists: %v, want ErrExists", err)
	}
	for name, err := range map[string]error{
		"no label":       initialize("", so, user),
		"long label":     initialize(strings.Repeat("x", maxHSMLabel+1), so, user),
		"short user PIN": initialize("third", so, testPIN(t, "1")),
		"no user PIN":    initialize("third", so, PIN{}),
		"no SO PIN":      initialize("third", PIN{}, user),
	} {
		if err == nil {
			t.Errorf("%s was accepted", name)
		}
	}
	if now := tool(t, "softhsm2-util", "--show-slots"); now != slots {
		t.Errorf("a refused HSM left something:\n%s\n%s", slots, now)
	}

	// Init must not affect an HSM that is open at the same time.
	k := mustGenerate(t, b.open(t, b.config("first")), "k", P256)
	if err := initialize("third", so, user); err != nil {
		t.Fatal(err)
	}
	mustSign(t, k)
	mustSign(t, mustGenerate(t, b.open(t, b.config("third")), "k", P256))
}
