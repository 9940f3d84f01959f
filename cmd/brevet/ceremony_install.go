package main

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/revocation/crl"
)

// installation is what a ceremony hands to the issuing machine.
type installation struct {
	certificate *x509.Certificate
	key         string // label of its key in a token of the configuration
	others      []*x509.Certificate
	crls        []*x509.RevocationList
}

func newCeremonyInstall() *cobra.Command {
	var certFile, key, operator, tokenOut string
	var others, crls []string
	cmd := &cobra.Command{
		Use: "install", Short: "Install an issuing CA into the store, and make the first operator's token", Args: cobra.NoArgs,
		Long: "install checks that the token's key, the certificate, its chain and the root's CRL belong together, records\n" +
			"them in the store, starts everything that the server starts, once, and writes a one-time token for the first\n" +
			"operator. The server must not be running.",
		Example: "  brevet ceremony install --config brevet.yaml --certificate issuing.crt --key-label issuing-g1 --root root.crt --crl root.crl \\\n" +
			"      --operator alice --token-out alice.token",
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := loadConfig(cmd)
			if err != nil {
				return err
			}
			inst, err := readInstallation(certFile, key, others, crls)
			if err != nil {
				return err
			}
			if tokenOut != "" {
				if err := vacant(tokenOut); err != nil {
					return err
				}
			}
			return install(cmd, c, inst, operator, tokenOut)
		},
	}
	configFlag(cmd)
	f := cmd.Flags()
	f.StringVar(&certFile, "certificate", "issuing.crt", "the issuing CA's certificate")
	f.StringVar(&key, "key-label", "", "label of its key in the token")
	f.StringArrayVar(&others, "root", []string{"root.crt"}, "the root's certificate, and any between; may be given again")
	f.StringArrayVar(&crls, "crl", []string{"root.crl"}, "the root's CRL; may be given again")
	f.StringVar(&operator, "operator", "", "name of the first operator, who gets a token")
	f.StringVar(&tokenOut, "token-out", "", "file for the operator's token")
	_ = cmd.MarkFlagRequired("key-label")
	cmd.MarkFlagsRequiredTogether("operator", "token-out")
	return cmd
}

func readInstallation(certFile, key string, others, crls []string) (installation, error) {
	inst := installation{key: key}
	if slices.Contains(crls, "") {
		return inst, &usage{"--crl: give the root's CRL, which brevet ceremony crl makes"}
	}
	var err error
	if inst.certificate, err = readCertificate(certFile); err != nil {
		return inst, err
	}
	for _, path := range others {
		cert, err := readCertificate(path)
		if err != nil {
			return inst, err
		}
		inst.others = append(inst.others, cert)
	}
	for _, path := range crls {
		crl, err := readCRL(path)
		if err != nil {
			return inst, err
		}
		inst.crls = append(inst.crls, crl)
	}
	return inst, nil
}

func install(cmd *cobra.Command, c Config, inst installation, operator, tokenOut string) (err error) {
	pin, err := c.pin()
	if err != nil {
		return err
	}
	if err := makeDirectory(c.Directory); err != nil {
		return err
	}
	ctx := cmd.Context()
	n, err := openNode(ctx, c, pin, c.logger(cmd))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, n.close()) }()
	by := pki.ActorCommand("ceremony install")
	if err := n.install(ctx, inst, by); err != nil {
		return err
	}
	s, err := n.server(ctx, ports{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close(ctx)) }()
	out := cmd.OutOrStdout()
	if _, err := fmt.Fprintf(out, "Installed %s with key %s.\n", inst.certificate.Subject, inst.key); err != nil {
		return err
	}
	if operator == "" {
		_, err := fmt.Fprintln(out, "Next: brevet serve")
		return err
	}
	text, err := s.OperatorToken(ctx, operator, by)
	if err != nil {
		return err
	}
	if err := writeNew(tokenOut, []byte(text+"\n"), 0o600); err != nil {
		return err
	}
	_, err = fmt.Fprintf(out, "The first operator's token is in %s and serves once, within 24 hours.\nNext: brevet serve, then brevet login --token-file %s\n", tokenOut, tokenOut)
	return err
}

// install checks that everything belongs together and that relying parties will accept what is issued, and records it.
// The issuing CA's certificate is recorded last: until then nothing uses the rest. It can be repeated.
func (n *node) install(ctx context.Context, inst installation, by pki.Actor) error {
	if err := n.config.checkOwnTrustDomain(); err != nil {
		return err
	}
	_, key, err := findKey(ctx, n.tokens, inst.key, inst.certificate.PublicKey)
	if err != nil {
		absent, _ := absence(n.tokens)
		return errors.Join(err, absent)
	}
	iss, err := ca.NewIssuer(inst.certificate, key, inst.others)
	if err != nil {
		return err
	}
	for _, cert := range inst.others {
		if !cert.Equal(iss.Root) && !slices.ContainsFunc(iss.Chain, cert.Equal) {
			return fmt.Errorf("--root %s did not sign %s, nor what signed it: give the certificates of its chain alone", cert.Subject, inst.certificate.Subject)
		}
	}
	if err := n.config.checkIssues(iss); err != nil {
		return err
	}
	if err := n.newGeneration(ctx, inst.certificate); err != nil {
		return err
	}
	now := time.Now()
	for _, list := range inst.crls {
		if _, err := signerOf(list, inst.others); err != nil {
			return err
		}
		if err := crl.CheckImport(list, now); err != nil {
			return err
		}
	}
	for _, cert := range inst.others {
		if err := n.store.CA().Install(ctx, ca.Installed{Certificate: cert.Raw, At: now}, by); err != nil {
			return err
		}
	}
	for _, list := range inst.crls {
		if err := n.importCRL(ctx, list, inst.others, by); err != nil {
			return err
		}
	}
	return n.store.CA().Install(ctx, ca.Installed{Certificate: inst.certificate.Raw, Key: inst.key, At: now}, by)
}

// newGeneration refuses a subject or a key that an installed CA has with another key or subject: relying parties find an
// issuer by its name (RFC 5280 section 4.1.2.4). Both together are a renewed certificate.
func (n *node) newGeneration(ctx context.Context, cert *x509.Certificate) error {
	installed, err := n.store.CA().Installed(ctx)
	if err != nil {
		return err
	}
	for _, i := range installed {
		other, err := x509.ParseCertificate(i.Certificate)
		if err != nil {
			return fmt.Errorf("read an installed CA certificate: %w", err)
		}
		sameName, sameKey := bytes.Equal(other.RawSubject, cert.RawSubject), bytes.Equal(other.RawSubjectPublicKeyInfo, cert.RawSubjectPublicKeyInfo)
		if sameName && !sameKey {
			return fmt.Errorf("a CA with another key is installed as %s already: every generation has its own subject, so ask and sign again with another", cert.Subject)
		}
		if sameKey && !sameName {
			return fmt.Errorf("the key of %s is installed for %s already: every generation has its own key, so make a new one", cert.Subject, other.Subject)
		}
	}
	return nil
}

func signerOf(crl *x509.RevocationList, among []*x509.Certificate) (*x509.Certificate, error) {
	for _, cert := range among {
		if crl.CheckSignatureFrom(cert) == nil {
			return cert, nil
		}
	}
	return nil, fmt.Errorf("none of the given CA certificates signed the CRL of %s: give its CA's certificate with --root", crl.Issuer)
}

func (n *node) importCRL(ctx context.Context, list *x509.RevocationList, signers []*x509.Certificate, by pki.Actor) error {
	signer, err := signerOf(list, signers)
	if err != nil {
		return err
	}
	err = n.store.Revocation().PutCRLs(ctx, []crl.CRL{crl.Imported(pki.IssuerOf(signer), list)}, by, time.Now())
	if refusal, ok := pki.AsRefusal(err); ok && refusal.Rule == pki.RuleCRL {
		return nil // an installation that is repeated has this CRL, or a newer one, already
	}
	return err
}
