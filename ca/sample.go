package ca

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"fmt"
	"math/big"
	"net/netip"
	"time"

	"github.com/brevet-pki/brevet/ca/lint"
	"github.com/brevet-pki/brevet/pki"
)

// lintSigner has the certificate of an issuing CA and an ephemeral key of the same type. It signs certificates for
// linting before the issuing key has signed anything.
type lintSigner struct {
	issuer IssuingCA
	key    crypto.Signer
}

func newLintSigner(iss IssuingCA) (lintSigner, error) {
	key, err := ephemeralKey(iss.Certificate.PublicKey)
	if err != nil {
		return lintSigner{}, fmt.Errorf("generate an ephemeral key for linting: %w", err)
	}
	return lintSigner{iss, key}, nil
}

// ephemeralKey generates a key of the same type and size as a public key.
func ephemeralKey(like crypto.PublicKey) (crypto.Signer, error) {
	switch k := like.(type) {
	case *ecdsa.PublicKey:
		return ecdsa.GenerateKey(k.Curve, rand.Reader)
	case ed25519.PublicKey:
		_, key, err := ed25519.GenerateKey(rand.Reader)
		return key, err
	case *rsa.PublicKey:
		return rsa.GenerateKey(rand.Reader, k.N.BitLen())
	default:
		return nil, fmt.Errorf("unknown type of key %T", like)
	}
}

// encoder returns the encoder of a profile's certificates. It takes the constant parts from a sample made by
// crypto/x509.
func (u lintSigner) encoder(p *Profile, now time.Time) (*tbsEncoder, error) {
	pub, err := sampleKey(p.keys[0])
	if err != nil {
		return nil, err
	}
	template, err := u.sample(p, p.sampleNames(), pub, p.lifetime, now)
	if err != nil {
		return nil, err
	}
	parent := *u.issuer.Certificate
	parent.PublicKey = u.key.Public() // CreateCertificate verifies its signature with the parent's key
	der, err := x509.CreateCertificate(rand.Reader, template, &parent, pub, u.key)
	if err != nil {
		return nil, fmt.Errorf("sign a sample: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("read a sample: %w", err)
	}
	return newTBSEncoder(template, cert, p.partitioned)
}

// lint signs a TBSCertificate with the ephemeral key and checks the certificate with zlint.
func (u lintSigner) lint(l *tbsEncoder, tbs []byte) error {
	parent := *u.issuer.Certificate
	parent.PublicKey = u.key.Public()
	signature, err := l.sign(&parent, u.key, tbs, l.message(tbs))
	if err != nil {
		return fmt.Errorf("sign a sample: %w", err)
	}
	der, err := l.certificate(tbs, signature)
	if err != nil {
		return fmt.Errorf("sign a sample: %w", err)
	}
	if err := lint.Certificate(der); err != nil {
		return pki.Refuse(pki.RuleLint, "correct the profile", "%v", err)
	}
	return nil
}

// sampleNames returns names of each kind that the profile allows.
func (p *Profile) sampleNames() Names {
	n := Names{}
	if p.dnsNames != forbidden {
		n.DNS = []string{"sample.example.com"}
	}
	if p.ipAddresses != forbidden {
		n.IPs = []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")}
	}
	return n
}

// sample returns the template of a certificate for an identity that does not exist.
func (u lintSigner) sample(p *Profile, n Names, pub crypto.PublicKey, lifetime time.Duration, now time.Time) (*x509.Certificate, error) {
	id, err := pki.ParseSPIFFEID("spiffe://sample.invalid/device/sample")
	if err != nil {
		return nil, err
	}
	serial, err := pki.MakeSerial(now, [pki.SerialRandomSize]byte{1})
	if err != nil {
		return nil, err
	}
	return p.template(u.issuer, Request{Identity: id, Names: n, Key: pub, Lifetime: lifetime}, serial, 1, now)
}

// lintProfile lints samples of what a profile can issue: each type of key, with and without names, with the default and
// the maximum lifetime.
func (u lintSigner) lintProfile(p *Profile, l *tbsEncoder, now time.Time) error {
	variants := []Names{p.sampleNames()}
	if p.dnsNames != required && p.ipAddresses != required && !p.anonymous {
		variants = append(variants, Names{})
	}
	for _, t := range p.keys {
		pub, err := sampleKey(t)
		if err != nil {
			return err
		}
		for _, n := range variants {
			for _, lifetime := range []time.Duration{p.lifetime, p.maxLifetime} {
				template, err := u.sample(p, n, pub, lifetime, now)
				if err != nil {
					return err
				}
				tbs, err := l.tbs(template)
				if err != nil {
					return err
				}
				if err := u.lint(l, tbs); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// sampleKey returns a public key of a type. The RSA keys have no private key, because only their form matters.
func sampleKey(t pki.KeyType) (crypto.PublicKey, error) {
	switch t {
	case pki.P256, pki.P384:
		curve := elliptic.P256()
		if t == pki.P384 {
			curve = elliptic.P384()
		}
		key, err := ecdsa.GenerateKey(curve, rand.Reader)
		if err != nil {
			return nil, err
		}
		return key.Public(), nil
	case pki.Ed25519:
		pub, _, err := ed25519.GenerateKey(rand.Reader)
		return pub, err
	default:
		var bits int
		if _, err := fmt.Sscanf(string(t), "RSA-%d", &bits); err != nil {
			return nil, err
		}
		return sampleModulus(bits)
	}
}

// sampleModulus returns a random odd modulus without small factors. That is a thousand times faster than generating a
// key.
func sampleModulus(bits int) (*rsa.PublicKey, error) {
	for {
		n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), uint(bits)))
		if err != nil {
			return nil, err
		}
		pub := &rsa.PublicKey{N: n.SetBit(n.SetBit(n, bits-1, 1), 0, 1), E: 65537}
		if _, refusal := typeOf(pub); refusal == nil {
			return pub, nil
		}
	}
}
