package jwt

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/go-jose/go-jose/v4"

	"github.com/brevet-pki/brevet/pki"
)

const (
	maxKeys    = 100  // maximum number of keys in a set
	minRSABits = 2048 // smaller keys are weak
	maxRSABits = 8192 // larger keys take too long to verify with
)

// keySource provides the public keys of an issuer. It is safe for concurrent use.
type keySource interface {
	// current returns the keys. If it has none yet, it waits for them, and returns a temporary error if they do not
	// arrive.
	current(ctx context.Context) (*keySet, error)
	// newer is called if the issuer may have added a key since it published set. It returns newer keys, and nil if set is
	// current. If newer keys are on their way, or cannot be fetched now, it returns a temporary error. It does not wait.
	newer(set *keySet) (*keySet, error)
	close()
}

// staticKeys is a keySource whose keys never change.
type staticKeys struct{ set *keySet }

func (s staticKeys) current(context.Context) (*keySet, error) { return s.set, nil }
func (staticKeys) newer(*keySet) (*keySet, error)             { return nil, nil }
func (staticKeys) close()                                     {}

// keySet is a JWK Set (RFC 7517 §5), reduced to the keys that can verify tokens.
type keySet struct{ keys []publicKey }

// publicKey is a key that verifies signatures.
type publicKey struct {
	id        string // "" if it has none
	algorithm string // the only algorithm that the key may be used with. "" means that its type decides
	key       any    // an *rsa.PublicKey, an *ecdsa.PublicKey or an ed25519.PublicKey
}

// parseKeySet parses a JWK Set. It ignores keys that cannot verify tokens: secret, weak and unknown keys, keys for
// encryption, and different keys with the same ID. It returns an error for a set with more than 100 keys, and for a
// set of which it ignores all keys.
func parseKeySet(data []byte) (*keySet, error) {
	var members map[string]json.RawMessage
	var list []json.RawMessage
	if err := json.Unmarshal(data, &members); err != nil {
		return nil, errors.New("the JWK Set is not a JSON object")
	}
	if err := json.Unmarshal(members["keys"], &list); err != nil {
		return nil, errors.New("the JWK Set has no list of keys")
	}
	if len(list) > maxKeys {
		return nil, fmt.Errorf("the JWK Set has %d keys, and may have %d", len(list), maxKeys)
	}
	set := &keySet{}
	for _, raw := range list {
		if k, ok := parseKey(raw); ok {
			set.keys = append(set.keys, k)
		}
	}
	set.dropAmbiguous()
	if len(set.keys) == 0 {
		return nil, fmt.Errorf("none of the %d keys in the JWK Set can verify tokens: it needs public keys with their own "+
			"kid, which are RSA keys of %d to %d bits, Ed25519 keys, or on P-256, P-384 or P-521", len(list), minRSABits,
			maxRSABits)
	}
	return set, nil
}

// parseKey parses a JWK (RFC 7517 §4). It returns false if the key cannot verify tokens.
func parseKey(raw []byte) (publicKey, bool) {
	var uses struct {
		Operations []string `json:"key_ops"`
	}
	var k jose.JSONWebKey
	if json.Unmarshal(raw, &uses) != nil || k.UnmarshalJSON(raw) != nil || len(k.KeyID) > maxKeyID {
		return publicKey{}, false
	}
	if k.Use != "" && k.Use != "sig" || uses.Operations != nil && !slices.Contains(uses.Operations, "verify") {
		return publicKey{}, false
	}
	switch key := k.Key.(type) {
	case *rsa.PublicKey:
		if bits := key.N.BitLen(); bits < minRSABits || bits > maxRSABits || key.E < 3 || key.E%2 == 0 || key.E > 1<<31-1 {
			return publicKey{}, false
		}
	case *ecdsa.PublicKey, ed25519.PublicKey: // UnmarshalJSON has checked that they are points
	default:
		return publicKey{}, false
	}
	return publicKey{k.KeyID, k.Algorithm, k.Key}, true
}

// dropAmbiguous removes keys whose ID another key has too. If one key is in the set twice, it keeps one.
func (s *keySet) dropAmbiguous() {
	all := s.keys
	s.keys = nil
	for i, k := range all {
		differs := func(other publicKey) bool { return k.id != "" && other.id == k.id && !other.equal(k) }
		if !slices.ContainsFunc(all, differs) && !slices.ContainsFunc(all[:i], k.equal) {
			s.keys = append(s.keys, k)
		}
	}
}

// equal reports whether two entries of a set are the same key with the same ID and algorithm.
func (k publicKey) equal(other publicKey) bool {
	key, ok := k.key.(interface{ Equal(crypto.PublicKey) bool })
	return ok && k.id == other.id && k.algorithm == other.algorithm && key.Equal(other.key)
}

// curves are the curves of the ECDSA algorithms (RFC 7518 §3.4).
var curves = map[jose.SignatureAlgorithm]elliptic.Curve{
	jose.ES256: elliptic.P256(), jose.ES384: elliptic.P384(), jose.ES512: elliptic.P521(),
}

// fits reports whether the key can be used with an algorithm.
func (k publicKey) fits(a jose.SignatureAlgorithm) bool {
	if k.algorithm != "" && k.algorithm != string(a) {
		return false
	}
	switch key := k.key.(type) {
	case *rsa.PublicKey:
		return strings.HasPrefix(string(a), "RS") || strings.HasPrefix(string(a), "PS")
	case *ecdsa.PublicKey:
		return curves[a] == key.Curve
	case ed25519.PublicKey:
		return a == jose.EdDSA
	default:
		return false
	}
}

// errNoKey means that the set does not have the key of a token. The issuer may have added it since.
var errNoKey = errors.New("the key of the token is not in the set")

// find returns the key that must have signed a token. A token that names no key must fit exactly one.
func (s *keySet) find(t *token) (publicKey, error) {
	var fitting []publicKey
	for _, k := range s.keys {
		if t.keyID == "" && k.fits(t.algorithm) {
			fitting = append(fitting, k)
		}
		if t.keyID == "" || k.id != t.keyID {
			continue
		}
		if !k.fits(t.algorithm) {
			return k, pki.Refuse(pki.RuleEvidenceAlgorithm, "sign the token with the algorithm of its key",
				"the token has the algorithm %s, which its key %.64q is not for", t.algorithm, t.keyID)
		}
		return k, nil
	}
	switch len(fitting) {
	case 0:
		return publicKey{}, errNoKey
	case 1:
		return fitting[0], nil
	default:
		return publicKey{}, pki.Refuse(pki.RuleEvidenceUntrusted, "sign tokens with a kid in their header",
			"the token names no key, and %d keys of its issuer fit", len(fitting))
	}
}

// verify verifies the signature of a token, and nothing else.
func (k publicKey) verify(t *token) error {
	signed, err := jose.ParseSignedCompact(t.raw, []jose.SignatureAlgorithm{t.algorithm})
	if err != nil {
		return pki.Refuse(pki.RuleEvidenceMalformed, compactHint, "the token is malformed")
	}
	if _, err := signed.Verify(k.key); err != nil {
		return pki.Refuse(pki.RuleEvidenceSignature, "request a new token, and send it unchanged",
			"the signature of the token does not verify with the key %.64q of its issuer", k.id)
	}
	return nil
}
