package enrollment

import (
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/brevet-pki/brevet/enroll"
	"github.com/brevet-pki/brevet/pki"
	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
)

// giveToken registers the identity of a device, and creates an enrollment token for it.
func (s *Issuers) giveToken(ctx context.Context, d *Device) error {
	name := "token/" + rand.Text()
	_, err := brevetv1.NewIdentityServiceClient(s.operator).CreateIdentity(ctx, &brevetv1.CreateIdentityRequest{
		Id: name, Spec: &brevetv1.IdentitySpec{Kind: brevetv1.IdentityKind_IDENTITY_KIND_DEVICE},
	})
	if err != nil {
		return err
	}
	created, err := brevetv1.NewTokenServiceClient(s.operator).CreateToken(ctx, &brevetv1.CreateTokenRequest{Identity: name})
	if err != nil {
		return err
	}
	t, err := enroll.ParseToken(created.GetToken())
	if err != nil {
		return err
	}
	secret := t.Secret.Evidence().Value
	d.prove = func(pki.RequestID, []byte) (*brevetv1.Evidence, error) {
		return &brevetv1.Evidence{Kind: &brevetv1.Evidence_Token{Token: &brevetv1.TokenEvidence{Secret: secret}}}, nil
	}
	return nil
}

// giveCertificate gives a device a factory certificate. The device sends it with the certificate of the product line.
func (s *Issuers) giveCertificate(d *Device) error {
	key, err := newKey()
	if err != nil {
		return err
	}
	der, err := s.line.issue(&x509.Certificate{
		Subject: pkix.Name{Organization: []string{"Bench"}, SerialNumber: rand.Text()}, KeyUsage: x509.KeyUsageDigitalSignature,
	}, key.Public())
	if err != nil {
		return err
	}
	chain := [][]byte{der, s.line.certificate.Raw}
	d.challenge = brevetv1.EvidenceKind_EVIDENCE_KIND_X5C
	d.prove = func(request pki.RequestID, challenge []byte) (*brevetv1.Evidence, error) {
		signature, err := sign(key, pki.X5CStatement(s.trustDomain, d.key, request, challenge))
		return &brevetv1.Evidence{Kind: &brevetv1.Evidence_X5C{X5C: &brevetv1.X5CEvidence{
			Certificates: chain, Challenge: challenge, Signature: signature,
		}}}, err
	}
	return nil
}

// The issuer of the tokens, and their audience.
const (
	issuer   = "https://issuer.bench.internal"
	audience = "brevet.bench.internal"
)

// provider issues JWTs.
type provider struct {
	private *ecdsa.PrivateKey
	key     jose.JSONWebKey // of private
	signer  jose.Signer
}

func newProvider() (*provider, error) {
	key, err := newKey()
	if err != nil {
		return nil, err
	}
	p := &provider{private: key, key: jose.JSONWebKey{Key: key, KeyID: "bench", Algorithm: string(jose.ES256), Use: "sig"}}
	p.signer, err = jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: p.key}, nil)
	return p, err
}

// keySet returns the public key as a JWK Set (RFC 7517).
func (p *provider) keySet() ([]byte, error) {
	return json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{p.key.Public()}})
}

// giveToken gives a device a JWT that can be used once (RFC 7519).
func (p *provider) giveToken(d *Device) error {
	text, err := p.token()
	d.prove = func(pki.RequestID, []byte) (*brevetv1.Evidence, error) {
		return &brevetv1.Evidence{Kind: &brevetv1.Evidence_Jwt{Jwt: &brevetv1.JWTEvidence{Token: []byte(text)}}}, nil
	}
	return err
}

func (p *provider) token() (string, error) {
	now := time.Now()
	claims, err := json.Marshal(map[string]any{
		"iss": issuer, "aud": audience, "sub": rand.Text(), "jti": rand.Text(), "iat": now.Unix(), "exp": now.Add(time.Hour).Unix(),
	})
	if err != nil {
		return "", err
	}
	signed, err := p.signer.Sign(claims)
	if err != nil {
		return "", err
	}
	return signed.CompactSerialize()
}
