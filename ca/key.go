package ca

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"fmt"
	"math/big"
	"slices"
	"sync"

	"github.com/brevet-pki/brevet/pki"
)

// smallPrimes returns the product of the odd primes below 752 (NIST SP 800-89 section 5.3.3). A modulus that shares a
// factor with it was not generated correctly.
var smallPrimes = sync.OnceValue(func() *big.Int {
	p := big.NewInt(1)
	for n := int64(3); n < 752; n += 2 {
		if c := big.NewInt(n); c.ProbablyPrime(0) {
			p.Mul(p, c)
		}
	}
	return p
})

// checkKey refuses a public key that the profile does not allow or that is weak.
func (p *Profile) checkKey(pub crypto.PublicKey) error {
	t, refusal := typeOf(pub)
	if refusal != nil {
		return refusal
	}
	if !slices.Contains(p.keys, t) {
		return pki.Refuse(pki.RuleKeyType, "use one of "+pki.JoinKeyTypes(p.keys), "profile %s does not allow %s keys", p.name, t)
	}
	return nil
}

// TypeOf returns the type of a public key, or a refusal of a key that is never certified.
func TypeOf(pub crypto.PublicKey) (pki.KeyType, error) {
	t, refusal := typeOf(pub)
	if refusal != nil {
		return "", refusal
	}
	return t, nil
}

// typeOf returns the type of a public key, or refuses a key that is never certified.
func typeOf(pub crypto.PublicKey) (pki.KeyType, *pki.Refusal) {
	refuse := func(detail string, args ...any) (pki.KeyType, *pki.Refusal) {
		return "", pki.Refuse(pki.RuleKeyType, "use one of "+pki.JoinKeyTypes(pki.KeyTypes()), detail, args...)
	}
	switch k := pub.(type) {
	case *ecdsa.PublicKey:
		switch k.Curve {
		case elliptic.P256():
			return pki.P256, nil
		case elliptic.P384():
			return pki.P384, nil
		}
		return refuse("the key is on the curve %s", k.Params().Name)
	case ed25519.PublicKey:
		if smallOrder(k) {
			return "", pki.Refuse(pki.RuleKeyWeak, "make a new key with another generator",
				"the Ed25519 key is a point of small order")
		}
		return pki.Ed25519, nil
	case *rsa.PublicKey:
		name := fmt.Sprintf("RSA-%d", k.N.BitLen())
		t, err := pki.ParseKeyType(name)
		if err != nil {
			return refuse("the key is %s", name)
		}
		if k.E < 65537 || k.E%2 == 0 {
			return "", pki.Refuse(pki.RuleKeyWeak, "use 65537", "the RSA exponent is %d", k.E)
		}
		if k.N.Bit(0) == 0 || new(big.Int).GCD(nil, nil, k.N, smallPrimes()).Cmp(big.NewInt(1)) != 0 {
			return "", pki.Refuse(pki.RuleKeyWeak, "make a new key with another generator",
				"the RSA modulus has a small factor")
		}
		return t, nil
	default:
		return refuse("the key is of a kind that is never certified")
	}
}

// smallOrder reports whether a key encodes one of the eight points of edwards25519 with an order that divides 8 (RFC
// 8032 section 5.1). Such a key has no private key, and anyone can make signatures that it verifies. The points of
// order 1, 2 and 4 have y = 1, -1 and 0. A point of order 8 doubles to y = 0, so x² = -y². With the curve equation -x²
// + y² = 1 + dx²y² and d = -121665/121666, this means dy⁴ + 2y² - 1 = 0.
func smallOrder(k ed25519.PublicKey) bool {
	p := new(big.Int).Sub(new(big.Int).Lsh(big.NewInt(1), 255), big.NewInt(19))
	encoded := slices.Clone(k)
	encoded[len(encoded)-1] &= 0x7f // the sign of x
	slices.Reverse(encoded)
	y := new(big.Int).SetBytes(encoded)
	y2 := new(big.Int).Mul(y, y)
	order8 := new(big.Int).Mul(y2, y2)
	order8.Mul(order8, big.NewInt(121665))
	order8.Sub(order8, new(big.Int).Mul(y2, big.NewInt(2*121666)))
	order8.Add(order8, big.NewInt(121666))
	product := new(big.Int).Mul(y, y2.Sub(y2, big.NewInt(1)))
	return product.Mul(product, order8).Mod(product, p).Sign() == 0
}
