package enrollment

import (
	"context"
	"crypto/ecdh"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/brevet-pki/brevet/pki"
)

var errSignature = errors.New("a signature does not verify")

// CheckRate returns how often per second all cores can do the cryptography that a server needs for evidence of a kind.
// It measures for d. Reading and writing records are not part of it, and neither is what follows for every kind.
func (s *Issuers) CheckRate(ctx context.Context, kind pki.EvidenceKind, d time.Duration) (float64, error) {
	check, err := s.check(kind)
	if err != nil {
		return 0, err
	}
	cores := runtime.GOMAXPROCS(0)
	made, errs := make([]int, cores), make([]error, cores)
	var all sync.WaitGroup
	begin := time.Now()
	for i := range cores {
		all.Go(func() {
			for errs[i] == nil && ctx.Err() == nil && time.Since(begin) < d {
				errs[i] = check()
				made[i]++
			}
		})
	}
	all.Wait()
	took, n := time.Since(begin), 0
	for _, m := range made {
		n += m
	}
	return float64(n) / took.Seconds(), errors.Join(append(errs, context.Cause(ctx))...)
}

// check returns the cryptography of one request. It is safe for concurrent use, and contains no code of the server.
func (s *Issuers) check(kind pki.EvidenceKind) (func() error, error) {
	switch kind {
	case pki.EvidenceToken:
		secret := make([]byte, 32)
		return func() error { _ = sha256.Sum256(secret); return nil }, nil
	case pki.EvidenceX5C:
		return s.checkCertificate()
	case pki.EvidenceTPM:
		return s.checkTPM()
	case pki.EvidenceJWT:
		return s.provider.check()
	default:
		return nil, fmt.Errorf("no check is known for evidence of the kind %s", kind)
	}
}

// checkCertificate returns the verification of a factory certificate, its issuer, and the signature of the device.
func (s *Issuers) checkCertificate() (func() error, error) {
	key, err := newKey()
	if err != nil {
		return nil, err
	}
	der, err := s.line.issue(&x509.Certificate{KeyUsage: x509.KeyUsageDigitalSignature}, key.Public())
	if err != nil {
		return nil, err
	}
	statement := make([]byte, 200)
	signature, err := sign(key, statement)
	return func() error {
		device, err := x509.ParseCertificate(der)
		if err != nil {
			return err
		}
		line, err := x509.ParseCertificate(s.line.certificate.Raw)
		if err != nil {
			return err
		}
		return errors.Join(device.CheckSignatureFrom(line), line.CheckSignatureFrom(s.root.certificate), verify(key, statement, signature))
	}, err
}

// checkTPM returns the verification of an endorsement key's certificate, the key agreement with which a secret is
// encrypted for that key, and the verification of a statement.
func (s *Issuers) checkTPM() (func() error, error) {
	t, about, err := s.newTPM()
	if err != nil {
		return nil, err
	}
	statement := make([]byte, 150)
	signature, err := sign(t.ak, statement)
	return func() error {
		ek, err := x509.ParseCertificate(about.EKCertificate)
		if err != nil {
			return err
		}
		ephemeral, err := ecdh.P256().GenerateKey(rand.Reader)
		if err != nil {
			return err
		}
		if _, err := ephemeral.ECDH(t.ek.PublicKey()); err != nil {
			return err
		}
		return errors.Join(ek.CheckSignatureFrom(s.line.certificate), verify(t.ak, statement, signature))
	}, err
}

// check returns the verification of a JWT's signature.
func (p *provider) check() (func() error, error) {
	text, err := p.token()
	if err != nil {
		return nil, err
	}
	signed := []byte(text[:strings.LastIndexByte(text, '.')])
	signature, err := sign(p.private, signed)
	return func() error { return verify(p.private, signed, signature) }, err
}
