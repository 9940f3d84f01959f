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
	"strings"
	"sync"

	"github.com/brevet-pki/brevet/pki"
)

// KeyType is a kind and size of public key that a profile may allow.
type KeyType string

// The key types. Others, such as RSA below 2048 bits and P-224, are never certified.
const (
	P256    KeyType = "P-256"
	P384    KeyType = "P-384"
	Ed25519 KeyType = "Ed25519"
	RSA2048 KeyType = "RSA-2048"
	RSA3072 KeyType = "RSA-3072"
	RSA4096 KeyType = "RSA-4096"
)

var keyTypes = []KeyType{P256, P384, Ed25519, RSA2048, RSA3072, RSA4096}

// ParseKeyType reads a key type's name.
func ParseKeyType(text string) (KeyType, error) {
	if k := KeyType(text); slices.Contains(keyTypes, k) {
		return k, nil
	}
	return "", fmt.Errorf("%q is not a kind of key: use one of %s", text, joinKeys(keyTypes))
}

// smallPrimes is the product of the odd primes below 752 (as NIST SP 800-89 §5.3.3 asks for); a modulus that
// shares a factor with it was not made by a sound generator.
var smallPrimes = sync.OnceValue(func() *big.Int {
	p := big.NewInt(1)
	for n := int64(3); n < 752; n += 2 {
		if c := big.NewInt(n); c.ProbablyPrime(0) {
			p.Mul(p, c)
		}
	}
	return p
})

// checkKey refuses a public key that the profile does not allow or that nobody should use.
func (p *Profile) checkKey(pub crypto.PublicKey) error {
	t, refusal := typeOf(pub)
	if refusal != nil {
		return refusal
	}
	if !slices.Contains(p.keys, t) {
		return pki.Refuse(pki.RuleKeyType, "use one of "+joinKeys(p.keys), "profile %s does not allow %s keys", p.name, t)
	}
	return nil
}

func typeOf(pub crypto.PublicKey) (KeyType, *pki.Refusal) {
	fix := "use one of " + joinKeys(keyTypes)
	switch k := pub.(type) {
	case *ecdsa.PublicKey:
		switch k.Curve {
		case elliptic.P256():
			return P256, nil
		case elliptic.P384():
			return P384, nil
		}
		return "", pki.Refuse(pki.RuleKeyType, fix, "the key is on the curve %s", k.Params().Name)
	case ed25519.PublicKey:
		return Ed25519, nil
	case *rsa.PublicKey:
		t := KeyType(fmt.Sprintf("RSA-%d", k.N.BitLen()))
		if !slices.Contains(keyTypes, t) {
			return "", pki.Refuse(pki.RuleKeyType, fix, "the key is %s", t)
		}
		if k.E < 65537 || k.E%2 == 0 {
			return "", pki.Refuse(pki.RuleKeyWeak, "use 65537", "the RSA exponent is %d", k.E)
		}
		if k.N.Bit(0) == 0 || new(big.Int).GCD(nil, nil, k.N, smallPrimes()).Cmp(big.NewInt(1)) != 0 {
			return "", pki.Refuse(pki.RuleKeyWeak, "make a new key with another generator", "the RSA modulus has a small factor")
		}
		return t, nil
	default:
		return "", pki.Refuse(pki.RuleKeyType, fix, "the key is of a kind that is never certified")
	}
}

func joinKeys(keys []KeyType) string {
	text := make([]string, len(keys))
	for i, k := range keys {
		text[i] = string(k)
	}
	return strings.Join(text, ", ")
}
