package jws_test

import (
	"crypto/ed25519"
	"encoding/binary"
	"testing"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/server/acme/jws"
)

func TestKeys(t *testing.T) {
	var keys jws.Keys
	spki := spkiOf(t, generate(t, "ES256"))
	first, err := keys.ParseSPKI(spki)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := keys.ParseSPKI(spki); err != nil || again != first {
		t.Errorf("the key is parsed again: %v", err)
	}
	_, err = keys.ParseSPKI(spki[1:])
	wantRule(t, "a malformed key", err, pki.RuleACMEPublicKey)
	for n := range uint64(5000) {
		seed := binary.BigEndian.AppendUint64(make([]byte, 24), n)
		spki := spkiOf(t, ed25519.NewKeyFromSeed(seed))
		k, err := keys.ParseSPKI(spki)
		if err != nil || string(k.SPKI) != string(spki) {
			t.Fatalf("key %d is another one: %v", n, err)
		}
	}
	if n := keys.Len(); n != 4096 {
		t.Errorf("%d keys are kept", n)
	}
}
