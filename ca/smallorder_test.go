package ca_test

import (
	"crypto/ed25519"
	"encoding/binary"
	"fmt"
	"math/big"
	"slices"
	"testing"

	"github.com/brevet-pki/brevet/pki"
)

// smallOrders returns all encodings of the points of edwards25519 with an order that divides 8, as crypto/ed25519 reads
// them. The encoded y may have the field's prime added to it. A point with x = 0 may have a sign.
func smallOrders() []ed25519.PublicKey {
	num := func(n int64) *big.Int { return big.NewInt(n) }
	p := new(big.Int).Sub(new(big.Int).Lsh(num(1), 255), num(19))
	d := new(big.Int).Mul(num(-121665), new(big.Int).ModInverse(num(121666), p))
	root := new(big.Int).ModSqrt(new(big.Int).Mod(new(big.Int).Add(d, num(1)), p), p)
	ys := []*big.Int{num(0), num(1), new(big.Int).Sub(p, num(1)), p, new(big.Int).Add(p, num(1))}
	for _, r := range []*big.Int{root, new(big.Int).Neg(root)} { // dy⁴ + 2y² - 1 = 0
		y2 := new(big.Int).Mul(new(big.Int).Sub(r, num(1)), new(big.Int).ModInverse(new(big.Int).Mod(d, p), p))
		if y := new(big.Int).ModSqrt(y2.Mod(y2, p), p); y != nil {
			ys = append(ys, y, new(big.Int).Sub(p, y))
		}
	}
	var keys []ed25519.PublicKey
	for _, y := range ys {
		encoded := y.FillBytes(make([]byte, ed25519.PublicKeySize))
		slices.Reverse(encoded)
		signed := slices.Clone(encoded)
		signed[31] |= 0x80
		keys = append(keys, encoded, signed)
	}
	return keys
}

// forged reports whether a signature made without a private key verifies under a key. The signature is the neutral
// point and zero. It verifies for every message whose hash is a multiple of the key's order.
func forged(key ed25519.PublicKey) bool {
	signature := make([]byte, ed25519.SignatureSize)
	signature[0] = 1
	for n := range uint64(1000) {
		if ed25519.Verify(key, binary.BigEndian.AppendUint64(nil, n), signature) {
			return true
		}
	}
	return false
}

func TestSmallOrderKeysAreRefused(t *testing.T) {
	w := newWorld(t)
	a := w.open(t, w.store.CA())
	defer closeAuthority(t, a)
	keys := smallOrders()
	if len(keys) != 14 {
		t.Fatalf("%d encodings, want 14: two for each of seven y", len(keys))
	}
	for _, key := range keys {
		if !forged(key) {
			t.Errorf("%x does not have a small order", key)
		}
		req := w.request(t)
		req.Key = key
		_, err := a.Draft(req)
		if r, ok := pki.AsRefusal(err); !ok || r.Rule != pki.RuleKeyWeak {
			t.Errorf("%x: %v, want %s", key, err, pki.RuleKeyWeak)
		}
	}
	for range 100 {
		req := w.request(t)
		key := newEd25519(t)
		req.Key = key
		if _, err := a.Draft(req); err != nil || forged(key) {
			t.Fatal(fmt.Errorf("%x: %w", key, err))
		}
	}
}
