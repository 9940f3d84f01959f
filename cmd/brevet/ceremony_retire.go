package main

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/server"
)

// authorityFlags name an installed CA.
type authorityFlags struct{ issuer, certificate string }

func (a *authorityFlags) add(cmd *cobra.Command) {
	configFlag(cmd)
	f := cmd.Flags()
	f.StringVar(&a.issuer, "issuer", "", "the CA's identifier: its first 16 digits, as in the URLs of its CRLs, or all 64")
	f.StringVar(&a.certificate, "certificate", "", "the CA's certificate")
	cmd.MarkFlagsOneRequired("issuer", "certificate")
	cmd.MarkFlagsMutuallyExclusive("issuer", "certificate")
}

// find returns the certificate of the CA that the flags name, among those that are installed, removed ones included.
func (a *authorityFlags) find(ctx context.Context, n *node) (*x509.Certificate, error) {
	want := strings.ToLower(a.issuer)
	if a.certificate != "" {
		cert, err := readCertificate(a.certificate)
		if err != nil {
			return nil, err
		}
		want = pki.IssuerOf(cert).String()
	}
	installed, err := n.store.CA().Installed(ctx)
	if err != nil {
		return nil, err
	}
	var known []string
	for _, i := range installed {
		cert, err := x509.ParseCertificate(i.Certificate)
		if err != nil {
			return nil, fmt.Errorf("read an installed CA certificate: %w", err)
		}
		if id := pki.IssuerOf(cert); want == id.String() || want == id.Short() {
			return cert, nil
		}
		known = append(known, fmt.Sprintf("%s (%s)", cert.Subject, pki.IssuerOf(cert).Short()))
	}
	return nil, fmt.Errorf("no CA with the identifier %q is installed: name one of %s", want, strings.Join(known, ", "))
}

func newCeremonyRetire() *cobra.Command {
	var named authorityFlags
	cmd := &cobra.Command{
		Use: "retire", Short: "Issue nothing more from an installed CA", Args: cobra.NoArgs,
		Long: "retire has the server issue nothing more from an issuing CA, but for its OCSP delegate. OCSP and CRLs go on, and\n" +
			"devices may renew the certificates that it issued at any time. Another installed CA has to be able to issue. The\n" +
			"server must not be running. Repeating it changes nothing.",
		Example: "  brevet ceremony retire --config brevet.yaml --certificate issuing.crt",
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			c, err := loadConfig(cmd)
			if err != nil {
				return err
			}
			pin, err := c.pin()
			if err != nil {
				return err
			}
			n, err := openNode(cmd.Context(), c, pin, c.logger(cmd))
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, n.close()) }()
			cert, err := named.find(cmd.Context(), n)
			if err != nil {
				return err
			}
			if err := n.retire(cmd.Context(), pki.IssuerOf(cert), pki.ActorCommand("ceremony retire")); err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "Retired %s: nothing is issued from it, and its certificates are answered for.\nNext: brevet serve\n", cert.Subject)
			return err
		},
	}
	named.add(cmd)
	return cmd
}

// retire checks that the server can issue without a CA, and retires it.
func (n *node) retire(ctx context.Context, id pki.IssuerID, by pki.Actor) error {
	all, err := n.authorities(ctx)
	if err != nil {
		return err
	}
	next := all.last(func(a *authority) bool { return a.issues() && a.id() != id })
	if next != nil {
		if err := n.config.checkIssues(*next.issuer); err != nil {
			return err
		}
		return n.store.CA().Retire(ctx, id, time.Now(), by)
	}
	return errors.New("no other CA is active and has its key in a token: install the next generation first, with brevet ceremony install")
}

func newCeremonyRemove() *cobra.Command {
	var named authorityFlags
	cmd := &cobra.Command{
		Use: "remove", Short: "Stop answering for an installed CA whose certificates have expired", Args: cobra.NoArgs,
		Long: "remove takes away the CRLs and the OCSP delegate of a CA: the server does not load it any more. Its certificates\n" +
			"stay on record. An issuing CA has to be retired first, and all that it issued has to have expired; a root has to\n" +
			"have no CA under it that is still installed. A CA whose own certificate has expired can be removed in any case.\n" +
			"The server must not be running. Repeating it changes nothing.",
		Example: "  brevet ceremony remove --config brevet.yaml --certificate issuing.crt",
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			c, err := loadConfig(cmd)
			if err != nil {
				return err
			}
			n, err := openKeyless(cmd.Context(), c, c.logger(cmd))
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, n.close()) }()
			cert, err := named.find(cmd.Context(), n)
			if err != nil {
				return err
			}
			if err := n.remove(cmd.Context(), pki.IssuerOf(cert), pki.ActorCommand("ceremony remove")); err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "Removed %s: it is not answered for any more, and its certificates stay on record.\nNext: brevet serve\n", cert.Subject)
			return err
		},
	}
	named.add(cmd)
	return cmd
}

// remove removes a CA, and then the files of what is no longer on record. If that fails, remove can be repeated.
func (n *node) remove(ctx context.Context, id pki.IssuerID, by pki.Actor) error {
	if err := n.store.CA().Remove(ctx, id, time.Now(), by); err != nil {
		return err
	}
	crls := filepath.Join(n.config.crlPath(), id.Short())
	return errors.Join(server.RemoveDelegate(n.config.ownPath(), id), os.RemoveAll(crls), os.RemoveAll(crls+".crl"))
}
