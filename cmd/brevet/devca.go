package main

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/brevet-pki/brevet/ca/ceremony"
	"github.com/brevet-pki/brevet/enroll"
	"github.com/brevet-pki/brevet/hsm"
	"github.com/brevet-pki/brevet/internal/config"
	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/server"
)

// Names in a development CA, which has one token for root and issuing CA.
const (
	devLabel      = "brevet-dev"
	devRootKey    = "root-g1"
	devIssuingKey = "issuing-g1"
	devOperator   = "dev"

	devTrustDomain = "dev.brevet.internal"
)

// devActor is who the log says made a development CA.
var devActor = pki.ActorCommand("dev")

// dev is a whole CA in one directory.
type dev struct {
	dir         string
	trustDomain string
	grpc, http  string
	key         string // the label of the issuing key
}

func (d dev) ca() string       { return filepath.Join(d.dir, "ca") }
func (d dev) issuing() string  { return filepath.Join(d.ca(), "issuing.crt") }
func (d dev) operator() string { return filepath.Join(d.dir, "operator") }

// domain reads the trust domain that the CA was made for.
func (d dev) domain() (string, error) {
	text, err := os.ReadFile(filepath.Join(d.ca(), domainFile))
	if err != nil {
		return "", fmt.Errorf("read the trust domain of the development CA: %w: start with another --dir", err)
	}
	return strings.TrimSpace(string(text)), nil
}

// domainFile names the file, in the CA's directory, that holds the trust domain that the CA was made for.
const domainFile = "trust-domain"

// flags adds the flags that say where the CA is.
func (d *dev) flags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&d.dir, "dir", "", "state directory (default: $XDG_STATE_HOME/brevet)")
	f.StringVar(&d.grpc, "grpc", "127.0.0.1:7443", "address of the gRPC listener")
	f.StringVar(&d.http, "http", "127.0.0.1:7080", "address of the public HTTP listener")
}

// ensureCA makes token, keys and certificates once: in a directory beside the final one, so that an interrupted
// attempt leaves nothing that looks like a CA. It points SoftHSM at the directory.
func (d dev) ensureCA(ctx context.Context) error {
	if _, err := os.Stat(d.ca()); err != nil {
		if err := d.portsFree(ctx); err != nil {
			return err
		}
		unfinished := d.ca() + ".unfinished"
		if err := os.RemoveAll(unfinished); err != nil {
			return err
		}
		if err := d.makeCA(ctx, unfinished); err != nil {
			return err
		}
		if err := keepToken(unfinished); err != nil {
			return err
		}
		if err := os.Rename(unfinished, d.ca()); err != nil {
			return err
		}
	}
	if err := mendToken(d.ca()); err != nil {
		return err
	}
	return useSoftHSM(d.ca())
}

// portsFree refuses early what would be refused after certificates were made that name the ports.
func (d dev) portsFree(ctx context.Context) error {
	c := Config{Listen: ListenConfig{GRPC: d.grpc, HTTP: d.http}}
	p, err := c.listen(ctx)
	if err != nil {
		return err
	}
	return p.close()
}

// useSoftHSM makes a directory the home of this process's SoftHSM, whatever the user's own configuration says.
func useSoftHSM(dir string) error {
	conf, err := hsm.WriteSoftHSM(filepath.Join(dir, "softhsm"))
	if err != nil {
		return err
	}
	return os.Setenv(hsm.SoftHSMConfEnv, conf)
}

// makeCA is a small ceremony: token, root, issuing CA and the root's CRL.
func (d dev) makeCA(ctx context.Context, dir string) (err error) {
	if err := useSoftHSM(dir); err != nil {
		return err
	}
	pinText, pin, err := newPIN()
	if err != nil {
		return err
	}
	_, soPIN, err := newPIN() // nobody needs it again: the token is thrown away with the directory
	if err != nil {
		return err
	}
	module, err := hsm.FindSoftHSM()
	if err != nil {
		return err
	}
	if _, err := hsm.InitToken(ctx, module, devLabel, soPIN, pin); err != nil {
		return err
	}
	token, err := openToken(ctx, TokenConfig{Label: devLabel}, pin)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, token.Close()) }()
	root, err := token.Generate(ctx, devRootKey, hsm.P384)
	if err != nil {
		return err
	}
	issuing, err := token.Generate(ctx, devIssuingKey, hsm.P256)
	if err != nil {
		return err
	}
	return errors.Join(writeNew(filepath.Join(dir, "pin"), []byte(pinText), 0o600), d.certify(dir, root, issuing))
}

func newPIN() (string, hsm.PIN, error) {
	var random [16]byte
	_, _ = rand.Read(random[:]) // never fails: crypto/rand ends the process where there is no randomness
	text := hex.EncodeToString(random[:])
	pin, err := hsm.NewPIN([]byte(text))
	return text, pin, err
}

// Lifetimes in a development CA: nobody should have to think of them.
const (
	devRootLifetime    = 10 * 365 * 24 * time.Hour
	devIssuingLifetime = 5 * 365 * 24 * time.Hour
)

// certify writes root, issuing CA and the root's CRL to a directory.
func (d dev) certify(dir string, rootKey, issuingKey crypto.Signer) error {
	now := time.Now()
	rootName, err := ceremony.ParseSubject("CN=Brevet Development Root G1")
	if err != nil {
		return err
	}
	issuingName, err := ceremony.ParseSubject("CN=Brevet Development Issuing G1")
	if err != nil {
		return err
	}
	root, err := ceremony.Root(rootKey, ceremony.RootSpec{Subject: rootName, Lifetime: devRootLifetime, PathLength: 1, Now: now})
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
		Lifetime: devIssuingLifetime, TrustDomain: d.trustDomain, Now: now,
		CRLURL: "http://" + d.http + "/crl/" + id + ".crl", IssuerURL: "http://" + d.http + "/ca/" + id + ".cer",
	})
	if err != nil {
		return err
	}
	crl, err := ceremony.RootCRL(rootCert, rootKey, ceremony.CRLSpec{Number: big.NewInt(1), NextUpdate: now.Add(devIssuingLifetime), Now: now})
	if err != nil {
		return err
	}
	return errors.Join(
		writeNew(filepath.Join(dir, "root.crt"), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: root}), 0o644),
		writeNew(filepath.Join(dir, "issuing.crt"), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: issuing}), 0o644),
		writeNew(filepath.Join(dir, domainFile), []byte(d.trustDomain+"\n"), 0o644),
		writeNew(filepath.Join(dir, "root.crl"), pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: crl}), 0o644),
	)
}

// config is what brevet.yaml says for other servers. The trust domain is the one that the CA was made for.
func (d dev) config() (Config, error) {
	domain, err := d.domain()
	if err != nil {
		return Config{}, err
	}
	_, port, err := net.SplitHostPort(d.grpc)
	if err != nil {
		return Config{}, err
	}
	c := defaultConfig()
	c.TrustDomain, c.Directory, c.Names = domain, d.dir, []string{"localhost", "127.0.0.1", "::1"}
	c.Address, c.PublicURL = net.JoinHostPort("localhost", port), "http://"+d.http
	c.Listen = ListenConfig{GRPC: d.grpc, HTTP: d.http}
	c.Token.Label, c.Log.Level = devLabel, config.LogLevel(slog.LevelWarn)
	endless := RateConfig{PerSecond: 1e6, Burst: 1e6} // one machine plays the whole fleet here, as fast as it can
	c.Limits = LimitsConfig{Identity: endless, Address: endless}
	err = c.check() // which fills in what follows from others
	return c, err
}

// install records the ceremony's results in the store; it finds them there on every start but the first.
func (d dev) install(ctx context.Context, n *node) error {
	inst, err := readInstallation(d.issuing(), d.key,
		[]string{filepath.Join(d.ca(), "root.crt")}, []string{filepath.Join(d.ca(), "root.crl")})
	if err != nil {
		return err
	}
	return n.install(ctx, inst, devActor)
}

// open opens token and store, and installs the CA there.
func (d dev) open(ctx context.Context, c Config, pin hsm.PIN, log *slog.Logger) (*node, error) {
	n, err := openNode(ctx, c, pin, log)
	if err != nil {
		return nil, err
	}
	if err := d.install(ctx, n); err != nil {
		return nil, errors.Join(err, n.close())
	}
	return n, nil
}

// serve runs a server of the CA, and beside it the agent that keeps the operator's credential.
func (d dev) serve(cmd *cobra.Command, s *server.Server) error {
	ctx, stop := context.WithCancel(cmd.Context())
	defer stop()
	var operator errgroup.Group
	s.OnReady(func() {
		operator.Go(func() error {
			defer stop()
			err := d.keepOperator(ctx, cmd, s)
			if ctx.Err() != nil { // the server stops, which can end any step of enrolling
				return nil
			}
			return err
		})
	})
	err := s.Run(ctx)
	stop()
	return errors.Join(err, operator.Wait())
}

// keepOperator enrolls the operator where that is needed, says what to do next, and renews the credential for as long
// as the server runs.
func (d dev) keepOperator(ctx context.Context, cmd *cobra.Command, s *server.Server) error {
	agent, closeDir, err := operatorAgent(cmd, d.operator(), "", func() (enroll.Token, error) {
		text, err := s.OperatorToken(ctx, devOperator, devActor)
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

// quote makes one word of a path, for a shell.
func quote(path string) string {
	if strings.Trim(path, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/._-+@:=,") == "" {
		return path
	}
	return "'" + strings.ReplaceAll(path, "'", `'\''`) + "'"
}

func (d dev) sayNext(cmd *cobra.Command) {
	flag := ""
	if home, err := stateHome(); err != nil || d.dir != home {
		flag = " --operator " + quote(d.operator())
	}
	self := os.Args[0]
	agent := filepath.Join(filepath.Dir(self), "brevet-agent")
	if !strings.Contains(self, "/") {
		agent = "brevet-agent"
	}
	fmt.Fprintf(cmd.OutOrStdout(), `The development CA is up: gRPC %s, OCSP and CRLs http://%s, root certificate %s.
State is kept in %s. Stop with Ctrl-C; start again and it goes on.

Next, in another terminal:
  %s identity create device/1%s
  %s token create device/1 --out device1.token%s
  %s run --directory device1 --token-file device1.token
`, d.grpc, d.http, filepath.Join(d.ca(), "root.crt"), d.dir, quote(self), flag, quote(self), flag, quote(agent))
}
