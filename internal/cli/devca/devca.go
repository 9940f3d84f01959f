package devca

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	_ "embed"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/brevet-pki/brevet/ca/ceremony"
	"github.com/brevet-pki/brevet/enroll"
	"github.com/brevet-pki/brevet/hsm"
	"github.com/brevet-pki/brevet/internal/cli"
	"github.com/brevet-pki/brevet/internal/cli/client"
	"github.com/brevet-pki/brevet/internal/cli/file"
	"github.com/brevet-pki/brevet/internal/cli/node"
	"github.com/brevet-pki/brevet/internal/config"
	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/server"
)

// Names in a development CA. Its root and issuing CA share one HSM.
const (
	hsmLabel        = "brevet-dev"
	rootKeyLabel    = "root-g1"
	DefaultKeyLabel = "issuing-g1"
	operatorName    = "dev"

	DefaultTrustDomain = "dev.brevet.internal"
)

// actor is the actor in the log entries about the creation of a development CA.
var actor = pki.ActorCommand("dev")

// CA is a complete development CA in one directory.
type CA struct {
	Dir         string
	TrustDomain string
	GRPC, HTTP  string
	HTTPS       string // empty for none
	KeyLabel    string // label of the issuing key
	// Since is when the CA's certificates become valid. The zero value means when they are made.
	Since time.Time
}

// CeremonyDir returns the directory that contains the SoftHSM token and the results of the ceremony.
func (d CA) CeremonyDir() string { return filepath.Join(d.Dir, "ca") }

// IssuingFile returns the path of the issuing CA's certificate.
func (d CA) IssuingFile() string { return filepath.Join(d.CeremonyDir(), "issuing.crt") }

// OperatorDir returns the directory of the operator's credential.
func (d CA) OperatorDir() string { return filepath.Join(d.Dir, "operator") }

// Domain returns the trust domain with which the CA was created.
func (d CA) Domain() (string, error) {
	text, err := os.ReadFile(filepath.Join(d.CeremonyDir(), domainFile))
	if err != nil {
		return "", fmt.Errorf("read the trust domain of the development CA: %w: start with another --directory", err)
	}
	return strings.TrimSpace(string(text)), nil
}

// policyFile returns the path of the first policy.
func (d CA) policyFile() string { return filepath.Join(d.CeremonyDir(), policyName) }

// policyName is the name of the file with the first policy, in the CA's directory. A benchmark, which makes its CA
// itself, writes none.
const policyName = "policy.yaml"

// policy is the first policy: it allows EST with tokens, and ACME for names that only this machine has.
//
//go:embed policy.yaml
var policy []byte

// Ports to which the server of a development CA connects for ACME challenges. The servers of tests with Pebble use the
// same, and unlike 80 and 443 they need no root.
const httpChallengePort, tlsChallengePort = 5002, 5001

// domainFile is the name of the file with the trust domain, in the CA's directory.
const domainFile = "trust-domain"

// Flags adds the flags that specify the CA's directory, domain and addresses.
func (d *CA) Flags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&d.Dir, "directory", "", "state directory (default: $XDG_STATE_HOME/brevet)")
	cli.MovedFlags(cmd, map[string]string{"dir": "--directory"})
	f.StringVar(&d.GRPC, "grpc", "127.0.0.1:7443", "address of the gRPC listener")
	f.StringVar(&d.HTTP, "http", "127.0.0.1:7080", "address of the public HTTP listener")
	f.StringVar(&d.HTTPS, "https", "127.0.0.1:8443", "address of the HTTPS listener for EST and ACME; empty for none")
}

// Ensure creates the HSM, keys and certificates if they do not exist. It creates them in a temporary directory, which
// it renames at the end. An interrupted attempt therefore leaves no incomplete CA. In any case it makes this process
// use the SoftHSM in the CA's directory.
func (d CA) Ensure(ctx context.Context) error {
	if _, err := os.Stat(d.CeremonyDir()); err != nil {
		if err := d.portsFree(ctx); err != nil {
			return err
		}
		unfinished := d.CeremonyDir() + ".unfinished"
		if err := os.RemoveAll(unfinished); err != nil {
			return err
		}
		if err := d.makeCA(ctx, unfinished); err != nil {
			return err
		}
		if err := keepToken(unfinished); err != nil {
			return err
		}
		if err := os.Rename(unfinished, d.CeremonyDir()); err != nil {
			return err
		}
	}
	if err := mendToken(d.CeremonyDir()); err != nil {
		return err
	}
	return UseSoftHSM(d.CeremonyDir())
}

// portsFree checks that the ports are free, before Ensure issues certificates that contain them.
func (d CA) portsFree(ctx context.Context) error {
	c := node.Config{Listen: node.ListenConfig{GRPC: d.GRPC, HTTP: d.HTTP, HTTPS: d.HTTPS}}
	p, err := c.OpenListeners(ctx)
	if err != nil {
		return err
	}
	return p.Close()
}

// UseSoftHSM makes this process use the SoftHSM configuration in a directory, instead of the user's.
func UseSoftHSM(dir string) error {
	conf, err := hsm.WriteSoftHSM(filepath.Join(dir, "softhsm"))
	if err != nil {
		return err
	}
	return os.Setenv(hsm.SoftHSMConfEnv, conf)
}

// makeCA performs a small ceremony: it creates the HSM, the root, the issuing CA and the root's CRL.
func (d CA) makeCA(ctx context.Context, dir string) (err error) {
	if err := UseSoftHSM(dir); err != nil {
		return err
	}
	pinText, pin, err := NewPIN()
	if err != nil {
		return err
	}
	_, soPIN, err := NewPIN() // not stored: the HSM is never initialized again
	if err != nil {
		return err
	}
	module, err := hsm.FindSoftHSM()
	if err != nil {
		return err
	}
	if _, err := hsm.Init(ctx, module, hsmLabel, soPIN, pin); err != nil {
		return err
	}
	token, err := node.OpenHSM(ctx, node.HSMConfig{Label: hsmLabel}, pin)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, token.Close()) }()
	root, err := token.Generate(ctx, rootKeyLabel, hsm.P384)
	if err != nil {
		return err
	}
	issuing, err := token.Generate(ctx, DefaultKeyLabel, hsm.P256)
	if err != nil {
		return err
	}
	return errors.Join(
		file.WriteNew(filepath.Join(dir, "pin"), []byte(pinText), 0o600),
		file.WriteNew(filepath.Join(dir, policyName), policy, 0o644),
		d.Certify(dir, root, issuing),
	)
}

// NewPIN returns a random PIN, once as text and once as an hsm.PIN.
func NewPIN() (string, hsm.PIN, error) {
	var random [16]byte
	_, _ = rand.Read(random[:]) // never fails: without randomness crypto/rand ends the process
	text := hex.EncodeToString(random[:])
	pin, err := hsm.NewPIN([]byte(text))
	return text, pin, err
}

// Lifetimes of the CA certificates in a development CA. They are long, because the development CA does not renew them.
const (
	rootLifetime    = 10 * 365 * 24 * time.Hour
	issuingLifetime = 5 * 365 * 24 * time.Hour
)

// Certify issues the root, the issuing CA and the root's CRL, and writes them to a directory.
func (d CA) Certify(dir string, rootKey, issuingKey crypto.Signer) error {
	now := d.Since
	if now.IsZero() {
		now = time.Now()
	}
	rootName, err := ceremony.ParseSubject("CN=Brevet Development Root G1")
	if err != nil {
		return err
	}
	issuingName, err := ceremony.ParseSubject("CN=Brevet Development Issuing G1")
	if err != nil {
		return err
	}
	root, err := ceremony.Root(rootKey, ceremony.RootSpec{Subject: rootName, Lifetime: rootLifetime, PathLength: 2, Now: now})
	if err != nil {
		return err
	}
	rootCert, err := x509.ParseCertificate(root)
	if err != nil {
		return err
	}
	csr, err := ceremony.Request(issuingKey, ceremony.RequestSpec{Subject: issuingName})
	if err != nil {
		return err
	}
	id := pki.IssuerOf(rootCert).Short()
	issuing, err := ceremony.Sign(rootCert, rootKey, csr, ceremony.SignSpec{
		Lifetime: issuingLifetime, TrustDomain: d.TrustDomain, Now: now,
		CRLURL: "http://" + d.HTTP + "/crl/" + id + ".crl", IssuerURL: "http://" + d.HTTP + "/ca/" + id + ".cer",
	})
	if err != nil {
		return err
	}
	crl, err := ceremony.RootCRL(rootCert, rootKey, ceremony.CRLSpec{Number: big.NewInt(1), NextUpdate: now.Add(issuingLifetime), Now: now})
	if err != nil {
		return err
	}
	return errors.Join(
		file.WriteNew(filepath.Join(dir, "root.crt"), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: root}), 0o644),
		file.WriteNew(filepath.Join(dir, "issuing.crt"), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: issuing}), 0o644),
		file.WriteNew(filepath.Join(dir, domainFile), []byte(d.TrustDomain+"\n"), 0o644),
		file.WriteNew(filepath.Join(dir, "root.crl"), pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: crl}), 0o644),
	)
}

// Config returns the configuration of a server for the CA.
func (d CA) Config() (node.Config, error) {
	domain, err := d.Domain()
	if err != nil {
		return node.Config{}, err
	}
	server, err := d.server()
	if err != nil {
		return node.Config{}, err
	}
	c := node.DefaultConfig()
	c.TrustDomain, c.StateDir, c.ServerNames = domain, d.Dir, []string{"localhost", "127.0.0.1", "::1"}
	c.AdvertiseAddress, c.PublicURL = server, "http://"+d.HTTP
	c.Listen = node.ListenConfig{GRPC: d.GRPC, HTTP: d.HTTP, HTTPS: d.HTTPS}
	c.HSM.Label, c.Log.Level = hsmLabel, config.LogLevel(slog.LevelWarn)
	endless := node.RateConfig{PerSecond: 1e6, Burst: 1e6} // a benchmark may simulate all devices on one machine
	c.RateLimits = node.RateLimitsConfig{Identity: endless, Address: endless}
	c.EST.MinTLS, c.ACME.MinTLS = "1.2", "1.2"           // for clients such as strongSwan
	c.ACME.Networks = []string{"127.0.0.0/8", "::1/128"} // clients cannot make the server connect to another machine
	c.ACME.HTTPPort, c.ACME.TLSPort = httpChallengePort, tlsChallengePort
	if _, err := os.Stat(d.policyFile()); err == nil {
		c.Policy = d.policyFile()
	} else if !errors.Is(err, fs.ErrNotExist) {
		return node.Config{}, err
	}
	err = c.Check() // also sets defaults that depend on other values
	return c, err
}

// server returns the address at which clients call the server.
func (d CA) server() (string, error) {
	_, port, err := net.SplitHostPort(d.GRPC)
	return net.JoinHostPort("localhost", port), err
}

// WarnMoved logs which addresses in earlier certificates and credentials differ from those of the flags.
func (d CA) WarnMoved(ctx context.Context, log *slog.Logger) {
	server, err := d.server()
	if pair, perr := enroll.ReadPair(d.OperatorDir()); errors.Join(err, perr) == nil && pair.Origin.Server != server {
		log.WarnContext(ctx, "the operator's credential names another address of the server until its renewal: give commands --server",
			"credential", pair.Origin.Server, "server", server)
	}
	issuing, err := file.ReadCertificate(d.IssuingFile())
	if err != nil || len(issuing.CRLDistributionPoints) == 0 {
		return
	}
	at, err := url.Parse(issuing.CRLDistributionPoints[0])
	if err == nil && at.Host != d.HTTP {
		log.WarnContext(ctx, "certificates that were issued before name another address for CRLs and OCSP, which is not served",
			"certificates", "http://"+at.Host, "server", "http://"+d.HTTP)
	}
}

// install records the results of the ceremony in the store, unless they are already recorded.
func (d CA) install(ctx context.Context, n *node.Node) error {
	inst, err := node.ReadInstallation(d.IssuingFile(), d.KeyLabel,
		[]string{filepath.Join(d.CeremonyDir(), "root.crt")}, []string{filepath.Join(d.CeremonyDir(), "root.crl")})
	if err != nil {
		return err
	}
	return n.Install(ctx, inst, actor)
}

// Open opens the HSM and the store, and installs the CA.
func (d CA) Open(ctx context.Context, c node.Config, pin hsm.PIN, log *slog.Logger) (*node.Node, error) {
	n, err := node.Open(ctx, c, pin, log)
	if err != nil {
		return nil, err
	}
	if err := d.install(ctx, n); err != nil {
		return nil, errors.Join(err, n.Close())
	}
	return n, nil
}

// Serve runs a server for the CA, together with the agent that renews the operator's credential.
func (d CA) Serve(cmd *cobra.Command, s *server.Server) error {
	ctx, stop := context.WithCancel(cmd.Context())
	defer stop()
	var operator errgroup.Group
	s.OnReady(func() {
		operator.Go(func() error {
			defer stop()
			err := d.keepOperator(ctx, cmd, s)
			if ctx.Err() != nil { // the server is stopping, which may interrupt enrollment
				return nil
			}
			return err
		})
	})
	err := s.Run(ctx)
	stop()
	return errors.Join(err, operator.Wait())
}

// keepOperator enrolls the operator if necessary, prints the next steps, and renews the operator's credential while the
// server runs.
func (d CA) keepOperator(ctx context.Context, cmd *cobra.Command, s *server.Server) error {
	server, err := d.server()
	if err != nil {
		return err
	}
	agent, closeDir, err := client.OperatorAgent(cmd, d.OperatorDir(), server, func() (enroll.Token, error) {
		text, err := s.OperatorToken(ctx, operatorName, actor)
		if err != nil {
			return enroll.Token{}, err
		}
		return enroll.ParseToken(text)
	})
	if err != nil {
		return err
	}
	defer closeDir()
	if err := agent.Ensure(ctx); err != nil {
		return fmt.Errorf("enroll the operator: %w", err)
	}
	d.sayNext(cmd)
	return agent.Run(ctx)
}

// quote quotes a path for a shell if necessary.
func quote(path string) string {
	if strings.Trim(path, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/._-+@:=,") == "" {
		return path
	}
	return "'" + strings.ReplaceAll(path, "'", `'\''`) + "'"
}

func (d CA) sayNext(cmd *cobra.Command) {
	flag := ""
	contexts, err := client.ReadContexts()
	if home, homeErr := client.StateHome(); errors.Join(err, homeErr) != nil || d.Dir != home || contexts.Current != "" {
		flag = " --directory " + quote(d.OperatorDir())
	}
	self := os.Args[0]
	agent := filepath.Join(filepath.Dir(self), "brevet-agent")
	if !strings.Contains(self, "/") {
		agent = "brevet-agent"
	}
	doors := ""
	if _, port, err := net.SplitHostPort(d.HTTPS); err == nil {
		doors = fmt.Sprintf(`EST:  https://localhost:%s/.well-known/est, with an enrollment token
ACME: https://localhost:%s/acme/directory, for names such as web.localhost, http-01 at port %d or tls-alpn-01 at port %d
`, port, port, httpChallengePort, tlsChallengePort)
	}
	fmt.Fprintf(cmd.OutOrStdout(), `The development CA is up: gRPC %s, OCSP and CRLs http://%s, root certificate %s.
%sState is kept in %s. Stop with Ctrl-C; start again and it goes on.

Next, in another terminal:
  %s identity create device/1%s
  %s token create device/1 --out device1.token%s
  %s run --directory device1 --token-file device1.token
`, d.GRPC, d.HTTP, filepath.Join(d.CeremonyDir(), "root.crt"), doors, d.Dir, quote(self), flag, quote(self), flag, quote(agent))
}
