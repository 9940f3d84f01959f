package operator

import (
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"go.step.sm/crypto/pemutil"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/brevet-pki/brevet/enroll"
	"github.com/brevet-pki/brevet/internal/cli/client"
	"github.com/brevet-pki/brevet/internal/cli/file"
	"github.com/brevet-pki/brevet/internal/cli/output"
	"github.com/brevet-pki/brevet/pki"
	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
)

// contact is where a server is, and what it is known by, for who has no credential.
type contact struct{ server, root, trustDomain string }

func (c *contact) flags(f *pflag.FlagSet) {
	f.StringVar(&c.root, "root", "", "with --compromised-key, file with the root certificate (default: as in the credential of --operator)")
	f.StringVar(&c.trustDomain, "trust-domain", "", "with --compromised-key, the trust domain (default: as in the credential of --operator)")
}

// complete takes from a credential what no flag says, and returns the roots.
func (c *contact) complete(cmd *cobra.Command) (*x509.CertPool, error) {
	var err error
	if c.server, err = client.ServerFlag(cmd); err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	if c.root != "" {
		root, err := file.ReadCertificate(c.root)
		if err != nil {
			return nil, err
		}
		roots.AddCert(root)
	}
	if c.server != "" && c.root != "" && c.trustDomain != "" {
		return roots, nil
	}
	dir, err := client.OperatorDir(cmd)
	if err != nil {
		return nil, err
	}
	pair, err := enroll.ReadPair(dir)
	if errors.Is(err, enroll.ErrNoCredential) {
		return nil, fmt.Errorf("no credential in %s says where the server is: name it with --server, --root and --trust-domain", dir)
	}
	if err != nil {
		return nil, err
	}
	if c.server == "" {
		c.server = pair.Origin.Server
	}
	if c.trustDomain == "" {
		c.trustDomain = pair.ID().TrustDomain()
	}
	if c.root == "" {
		roots = pair.RootPool()
	}
	return roots, nil
}

// revokeKey has a compromised key say so itself.
func (r *revoking) revokeKey(cmd *cobra.Command) (err error) {
	p, err := output.New(cmd, "KEY", "REVOKED")
	if err != nil {
		return err
	}
	key, err := pemutil.Read(r.key)
	if err != nil {
		return fmt.Errorf("%s is not one private key: %w", r.key, err)
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return fmt.Errorf("%s holds no private key, which alone proves that it is compromised: an operator revokes by --key", r.key)
	}
	roots, err := r.contact.complete(cmd)
	if err != nil {
		return err
	}
	req, err := signCompromise(signer, r.contact.trustDomain)
	if err != nil {
		return err
	}
	conn, err := grpc.NewClient("dns:///"+r.contact.server, grpc.WithDisableServiceConfig(), grpc.WithUnaryInterceptor(client.SetDeadline),
		grpc.WithTransportCredentials(credentials.NewTLS(enroll.AnonymousTLS(roots, r.contact.trustDomain))))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	return client.Advise(enroll.CallError(r.contact.server, r.sendCompromise(cmd, conn, req, p)))
}

func (r *revoking) sendCompromise(cmd *cobra.Command, conn *grpc.ClientConn, req *brevetv1.RevokeCompromisedKeyRequest, p *output.Printer) error {
	resp, err := brevetv1.NewRevocationServiceClient(conn).RevokeCompromisedKey(cmd.Context(), req)
	if err != nil {
		return err
	}
	tellChanged(cmd, "revoked", resp.GetAffected())
	return errors.Join(p.Record(resp, output.Hex(resp.GetKeyHash()), fmt.Sprint(resp.GetAffected().GetValid())), p.Close())
}

// signCompromise signs the statement that a key is compromised.
func signCompromise(key crypto.Signer, trustDomain string) (*brevetv1.RevokeCompromisedKeyRequest, error) {
	spki, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return nil, fmt.Errorf("the key is of no kind that is certified: %w", err)
	}
	statement := pki.CompromiseStatement(trustDomain, pki.HashSPKI(spki))
	var signature []byte
	if _, is := key.(ed25519.PrivateKey); is {
		signature, err = key.Sign(rand.Reader, statement, crypto.Hash(0))
	} else {
		digest := sha256.Sum256(statement)
		signature, err = key.Sign(rand.Reader, digest[:], crypto.SHA256)
	}
	return &brevetv1.RevokeCompromisedKeyRequest{PublicKey: spki, Signature: signature}, err
}
