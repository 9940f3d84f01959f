package enrollment

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"time"

	"go.yaml.in/yaml/v3"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"

	"github.com/brevet-pki/brevet/pki"
	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
)

// Kinds are the kinds of evidence of simulated devices.
var Kinds = []pki.EvidenceKind{pki.EvidenceToken, pki.EvidenceX5C, pki.EvidenceTPM, pki.EvidenceJWT}

// sourceName is the name of each trust source in the policy.
const sourceName = "bench"

// Issuers are the issuers of evidence: an operator of the server, a manufacturer of devices and TPMs, and an OpenID
// provider. The methods are safe for concurrent use.
type Issuers struct {
	operator    *grpc.ClientConn
	trustDomain string     // of the server
	root        *authority // of the manufacturer
	line        *authority // the CA that issues the certificates of devices and TPMs
	provider    *provider
}

// NewIssuers makes a manufacturer and a provider. operator is a connection to the server of a trust domain, authenticated
// as an operator.
func NewIssuers(operator *grpc.ClientConn, trustDomain string) (*Issuers, error) {
	root, err := newAuthority("Bench Root", nil)
	if err != nil {
		return nil, err
	}
	line, err := newAuthority("Bench Line 1", root)
	if err != nil {
		return nil, err
	}
	p, err := newProvider()
	return &Issuers{operator, trustDomain, root, line, p}, err
}

// ApplyPolicy applies a policy that registers every device with evidence of these issuers.
func (s *Issuers) ApplyPolicy(ctx context.Context) error {
	keys, err := s.provider.keySet()
	if err != nil {
		return err
	}
	rule := func(kind pki.EvidenceKind, path string) map[string]any {
		return map[string]any{
			"name": kind.String(), "evidence": []string{kind.String()}, "identity": path, "register": true,
		}
	}
	attested := rule(pki.EvidenceTPM, "tpm/{tpm.ek}")
	attested["when"], attested["hardware_key"] = "tpm.certified", true
	certified, claimed := rule(pki.EvidenceX5C, "x5c/{x5c.serial}"), rule(pki.EvidenceJWT, "jwt/{jwt.subject}")
	certified["when"] = `x5c.source == "` + sourceName + `"`
	claimed["when"] = `jwt.source == "` + sourceName + `"`
	source := func(root *authority) map[string]any {
		return map[string]any{sourceName: map[string]string{"roots": root.pem()}}
	}
	document, err := yaml.Marshal(map[string]any{
		"rules": []map[string]any{
			{"name": "token", "evidence": []string{"token"}}, attested, certified, claimed,
		},
		"x5c": source(s.root), "tpm": source(s.line),
		"jwt": map[string]any{sourceName: map[string]any{
			"issuer": issuer, "audience": audience, "algorithms": []string{"ES256"}, "jwks": string(keys),
		}},
	})
	if err != nil {
		return err
	}
	return ApplyPolicy(ctx, s.operator, document)
}

// ApplyPolicy replaces the policy of a server, as an operator.
func ApplyPolicy(ctx context.Context, operator grpc.ClientConnInterface, document []byte) error {
	policies := brevetv1.NewPolicyServiceClient(operator)
	newest, err := policies.GetPolicy(ctx, &brevetv1.GetPolicyRequest{})
	if err != nil {
		return err
	}
	_, err = policies.ApplyPolicy(ctx, &brevetv1.ApplyPolicyRequest{Document: document, BasedRevision: newest.GetPolicy().GetRevision()})
	return err
}

// makers is the number of devices that are made concurrently. A server handles as many registrations of an operator.
const makers = 8

// Devices makes n devices that have not enrolled.
func (s *Issuers) Devices(ctx context.Context, kind pki.EvidenceKind, n int) ([]*Device, error) {
	all := make([]*Device, n)
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(makers)
	for i := range all {
		group.Go(func() (err error) {
			if ctx.Err() == nil {
				all[i], err = s.device(ctx, kind)
			}
			return err
		})
	}
	return all, group.Wait()
}

func (s *Issuers) device(ctx context.Context, kind pki.EvidenceKind) (*Device, error) {
	key, err := newKey()
	if err != nil {
		return nil, err
	}
	d := &Device{}
	if d.csr, err = x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key); err != nil {
		return nil, err
	}
	if d.key, err = pki.HashKey(key.Public()); err != nil {
		return nil, err
	}
	switch kind {
	case pki.EvidenceToken:
		return d, s.giveToken(ctx, d)
	case pki.EvidenceX5C:
		return d, s.giveCertificate(d)
	case pki.EvidenceTPM:
		return d, s.giveTPM(d, key)
	case pki.EvidenceJWT:
		return d, s.provider.giveToken(d)
	default:
		return nil, fmt.Errorf("no simulated device has evidence of the kind %s", kind)
	}
}

// authority is a CA of the manufacturer.
type authority struct {
	certificate *x509.Certificate
	key         *ecdsa.PrivateKey
}

// newAuthority makes a CA. If by is nil, the CA is self-signed.
func newAuthority(name string, by *authority) (*authority, error) {
	key, err := newKey()
	if err != nil {
		return nil, err
	}
	a := &authority{key: key}
	template := &x509.Certificate{
		Subject: pkix.Name{CommonName: name, Organization: []string{"Bench"}}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign,
	}
	if by == nil {
		by = &authority{template, key}
	}
	der, err := by.issue(template, key.Public())
	if err != nil {
		return nil, err
	}
	a.certificate, err = x509.ParseCertificate(der)
	return a, err
}

// lifetime is that of the certificates of the manufacturer.
const lifetime = 48 * time.Hour

// issue signs a certificate, in DER, with a random serial number.
func (a *authority) issue(template *x509.Certificate, public any) ([]byte, error) {
	template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(lifetime)
	return x509.CreateCertificate(rand.Reader, template, a.certificate, public, a.key)
}

func (a *authority) pem() string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.certificate.Raw}))
}

func newKey() (*ecdsa.PrivateKey, error) { return ecdsa.GenerateKey(elliptic.P256(), rand.Reader) }

// sign signs the SHA-256 of a message.
func sign(key *ecdsa.PrivateKey, message []byte) ([]byte, error) {
	digest := sha256.Sum256(message)
	return ecdsa.SignASN1(rand.Reader, key, digest[:])
}

// verify verifies the result of sign.
func verify(key *ecdsa.PrivateKey, message, signature []byte) error {
	if digest := sha256.Sum256(message); !ecdsa.VerifyASN1(&key.PublicKey, digest[:], signature) {
		return errSignature
	}
	return nil
}
