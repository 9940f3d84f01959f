package operator

import (
	"cmp"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"

	"github.com/spf13/cobra"
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

// NewKey returns brevet key, with the subcommand that revokes a compromised key.
func NewKey() *cobra.Command {
	cmd := &cobra.Command{Use: "key", Short: "Revoke a compromised key"}
	client.Flags(cmd)
	cmd.AddCommand(newKeyRevoke())
	return cmd
}

// contact holds the flags that locate and authenticate a server if the user has no credential.
type contact struct{ root, trustDomain string }

func (c *contact) flags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&c.root, "root", "", "file that contains the root certificate (default: that of the context or credential)")
	f.StringVar(&c.trustDomain, "trust-domain", "", "SPIFFE trust domain (default: that of the context or credential)")
}

// known is the address of a server, with the trust domain and roots that authenticate it. Unknown fields are empty.
type known struct {
	server, trustDomain string
	roots               []*x509.Certificate
}

func (k *known) fill(server, trustDomain string, roots []*x509.Certificate) {
	k.server, k.trustDomain = cmp.Or(k.server, server), cmp.Or(k.trustDomain, trustDomain)
	if len(k.roots) == 0 {
		k.roots = roots
	}
}

func (k *known) complete() bool { return k.server != "" && k.trustDomain != "" && len(k.roots) > 0 }

// find returns the address and roots of the server. It takes them from flags, context and credential, in this order of
// precedence.
func (c *contact) find(cmd *cobra.Command) (known, error) {
	target, err := client.FindTarget(cmd, false)
	if err != nil {
		return known{}, err
	}
	k := known{server: target.Server, trustDomain: c.trustDomain}
	if c.root != "" {
		root, err := file.ReadCertificate(c.root)
		if err != nil {
			return k, err
		}
		k.roots = []*x509.Certificate{root}
	}
	if t := target.Context; t != nil {
		roots, err := t.RootCertificates()
		if err != nil {
			return k, err
		}
		k.fill(t.Server, t.TrustDomain, roots)
	}
	if k.complete() {
		return k, nil
	}
	pair, err := enroll.ReadPair(target.Directory)
	if errors.Is(err, enroll.ErrNoCredential) {
		return k, fmt.Errorf("no credential in %s says where the server is: name it with --server, --root and --trust-domain, or with --context", target.Directory)
	}
	if err != nil {
		return k, err
	}
	k.fill(pair.Origin.Server, pair.ID().TrustDomain(), pair.Roots)
	return k, nil
}

func newKeyRevoke() *cobra.Command {
	var c contact
	cmd := &cobra.Command{
		Use: "revoke FILE", Short: "Revoke every certificate of a private key that is compromised", Args: cobra.ExactArgs(1),
		Long: "revoke reads a private key in PEM and signs with it the statement that it is compromised. That is the proof: no\n" +
			"operator's credential is needed. Every certificate of the key is revoked for keyCompromise, and the key is never\n" +
			"certified again. The key itself is not sent. Without the key, an operator runs brevet revocation create --key-hash.",
		Example: "  brevet key revoke leaked.pem --server ca.fleet.example:7443 --root root.crt --trust-domain fleet.example",
		RunE:    func(cmd *cobra.Command, args []string) error { return revokeKey(cmd, args[0], c) },
	}
	output.Flag(cmd)
	c.flags(cmd)
	return cmd
}

// revokeKey sends a statement that a key is compromised. The key itself signs the statement.
func revokeKey(cmd *cobra.Command, path string, c contact) (err error) {
	p, err := output.New(cmd, "KEY HASH", "VALID CERTIFICATES REVOKED")
	if err != nil {
		return err
	}
	key, err := pemutil.Read(path)
	if err != nil {
		return fmt.Errorf("%s is not one private key: %w", path, err)
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return fmt.Errorf("%s holds no private key, which alone proves that it is compromised: without it, an operator runs brevet revocation create --key-hash", path)
	}
	k, err := c.find(cmd)
	if err != nil {
		return err
	}
	req, err := signCompromise(signer, k.trustDomain)
	if err != nil {
		return err
	}
	roots := x509.NewCertPool()
	for _, root := range k.roots {
		roots.AddCert(root)
	}
	conn, err := grpc.NewClient("dns:///"+k.server, grpc.WithDisableServiceConfig(), grpc.WithUnaryInterceptor(client.SetDeadline),
		grpc.WithTransportCredentials(credentials.NewTLS(enroll.AnonymousTLS(roots, k.trustDomain))))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	resp, err := brevetv1.NewRevocationServiceClient(conn).RevokeCompromisedKey(cmd.Context(), req)
	if err != nil {
		return client.Advise(enroll.CallError(k.server, err))
	}
	printAffected(cmd, "revoked", resp.GetAffected())
	warnUncopied(cmd, resp)
	return errors.Join(p.Record(resp, output.Hex(resp.GetKeyHash()), fmt.Sprint(resp.GetAffected().GetValid())), p.Close())
}

// signCompromise signs the statement that a key is compromised.
func signCompromise(key crypto.Signer, trustDomain string) (*brevetv1.RevokeCompromisedKeyRequest, error) {
	spki, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return nil, fmt.Errorf("keys of this kind are not certified: %w", err)
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
