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

// lintSigner is an Issuer with the certificate of the real one and a throwaway key of the same kind, so that a
// certificate can be linted before the real key has signed anything.
type lintSigner struct {
	issuer IssuingCA
	key    crypto.Signer
}

func newLintSigner(iss IssuingCA) (lintSigner, error) {
	key, err := ephemeralKey(iss.Certificate.PublicKey)
	if err != nil {
		return lintSigner{}, fmt.Errorf("ca: make a throwaway key to lint with: %w", err)
	}
	return lintSigner{iss, key}, nil
}

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
		return nil, fmt.Errorf("unknown kind of key %T", like)
	}
}

// encoder makes the layout of a profile's certificates, from a sample that crypto/x509 makes.
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
	parent.PublicKey = u.key.Public() // CreateCertificate verifies what it signed with the parent's key
	der, err := x509.CreateCertificate(rand.Reader, template, &parent, pub, u.key)
	if err != nil {
		return nil, fmt.Errorf("ca: sign a sample of profile %s: %w", p.name, err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("ca: read a sample of profile %s: %w", p.name, err)
	}
	return newTBSEncoder(template, cert, p.partitioned)
}

// lint signs a TBSCertificate with the throwaway key and holds the certificate against zlint.
func (u lintSigner) lint(l *tbsEncoder, tbs []byte) error {
	parent := *u.issuer.Certificate
	parent.PublicKey = u.key.Public()
	signature, err := l.sign(&parent, u.key, tbs, l.message(tbs))
	if err != nil {
		return fmt.Errorf("ca: sign a sample: %w", err)
	}
	der, err := l.certificate(tbs, signature)
	if err != nil {
		return fmt.Errorf("ca: sign a sample: %w", err)
	}
	if err := lint.Certificate(der); err != nil {
		return pki.Refuse(pki.RuleLint, "correct the profile", "%v", err)
	}
	return nil
}

// sampleNames are one of each kind of name that the profile allows.
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

// sample is the template of a certificate for nobody.
func (u lintSigner) sample(p *Profile, n Names, pub crypto.PublicKey, lifetime time.Duration, now time.Time) (*x509.Certificate, error) {
	id, err := pki.ParseSPIFFEID("spiffe://sample.invalid/device/sample")
	if err != nil {
		return nil, err
	}
	serial, err := pki.MakeSerial(now, [pki.SerialRandomSize]byte{1})
	if err != nil {
		return nil, err
	}
	template, err := p.template(u.issuer, Request{Identity: id, Names: n, Key: pub, Lifetime: lifetime}, serial, 1, now)
	if err != nil {
		return nil, fmt.Errorf("profile %s: %w", p.name, err)
	}
	return template, nil
}

// lintProfile lints samples of what a profile can issue: each kind of key, with and without the names it allows, at
// its default and its longest lifetime.
func (u lintSigner) lintProfile(p *Profile, l *tbsEncoder, now time.Time) error {
	variants := []Names{p.sampleNames()}
	if p.dnsNames != required && p.ipAddresses != required {
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
					return fmt.Errorf("profile %s: %w", p.name, err)
				}
			}
		}
	}
	return nil
}

// sampleKey makes a public key that only has to look like its kind: nobody holds a private half of the RSA ones.
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

// sampleModulus draws an odd number of the size without a small factor, in a thousandth of the time of a real key.
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
