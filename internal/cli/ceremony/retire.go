package ceremony

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"strings"

	"github.com/spf13/cobra"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/internal/cli/file"
	"github.com/brevet-pki/brevet/internal/cli/node"
	"github.com/brevet-pki/brevet/pki"
)

// authorityFlags are the flags that identify an installed CA.
type authorityFlags struct{ issuer, certificate string }

func (a *authorityFlags) add(cmd *cobra.Command) {
	node.ConfigFlag(cmd)
	f := cmd.Flags()
	f.StringVar(&a.issuer, "issuer", "", "issuer ID of the CA, in hexadecimal")
	f.StringVar(&a.certificate, "certificate", "", "file that contains the certificate of the CA")
	cmd.MarkFlagsOneRequired("issuer", "certificate")
	cmd.MarkFlagsMutuallyExclusive("issuer", "certificate")
}

// find returns the certificate of the installed CA that the flags identify. It also finds removed CAs.
func (a *authorityFlags) find(ctx context.Context, n *node.Node) (*x509.Certificate, error) {
	if a.certificate == "" {
		return n.InstalledCA(ctx, strings.ToLower(a.issuer))
	}
	cert, err := file.ReadCertificate(a.certificate)
	if err != nil {
		return nil, err
	}
	installed, err := n.InstalledCA(ctx, pki.IssuerOf(cert).String())
	if err == nil && ca.IsRoot(installed) && !ca.IsRoot(cert) {
		return nil, fmt.Errorf("%s is a cross-certificate of the root %s: give the certificate of the CA that is meant",
			a.certificate, installed.Subject)
	}
	return installed, err
}

// act opens a node and calls do with the CA that the flags identify. Then it prints what done returns.
func (a *authorityFlags) act(
	cmd *cobra.Command, open func(context.Context, node.Config, *slog.Logger) (*node.Node, error),
	do func(*node.Node, context.Context, pki.IssuerID, pki.Actor) error, done func(*x509.Certificate) string,
) (err error) {
	c, err := node.LoadConfig(cmd)
	if err != nil {
		return err
	}
	ctx := cmd.Context()
	n, err := open(ctx, c, c.Logger(cmd))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, n.Close()) }()
	if err := n.CheckUnused(); err != nil {
		return err
	}
	cert, err := a.find(ctx, n)
	if err != nil {
		return err
	}
	if err := do(n, ctx, pki.IssuerOf(cert), pki.ActorCommand("ceremony "+cmd.Name())); err != nil {
		return err
	}
	_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s\nNext: brevet serve\n", done(cert))
	return err
}

// retired says what retiring a CA has changed.
func retired(cert *x509.Certificate) string {
	if ca.IsRoot(cert) {
		return fmt.Sprintf("Retired %s: it is not in the trust bundle any more.", cert.Subject)
	}
	return fmt.Sprintf("Retired %s: nothing is issued from it, and its certificates are answered for.", cert.Subject)
}

// removed says what removing a CA has changed.
func removed(cert *x509.Certificate) string {
	return fmt.Sprintf("Removed %s: it is not answered for any more, and its certificates stay on record.", cert.Subject)
}

// openNodeWithPIN opens a node with the PIN from the configured source.
func openNodeWithPIN(ctx context.Context, c node.Config, log *slog.Logger) (*node.Node, error) {
	pin, err := c.PIN()
	if err != nil {
		return nil, err
	}
	return node.Open(ctx, c, pin, log)
}

func newCeremonyRetire() *cobra.Command {
	var named authorityFlags
	var confirm int64
	cmd := &cobra.Command{
		Use: "retire", Short: "Issue nothing more from an installed CA", Args: cobra.NoArgs,
		Long: "retire has the server issue nothing more from an issuing CA, but for its OCSP delegate. OCSP and CRLs go on, and\n" +
			"devices may renew the certificates that it issued at any time. Another installed CA has to be able to issue.\n\n" +
			"A retired root is no longer in the trust bundle. Agents then trust it no longer, once their certificates are under\n" +
			"another root. All issuing CAs under it have to be retired, and one under another root has to be able to issue. A\n" +
			"device that trusts only the retired root has to enroll again, with the fingerprint of another one. Relying parties\n" +
			"refuse the certificates under the root: while one is neither expired nor revoked, retire says when the last one\n" +
			"expires and does nothing, unless --confirm gives their number, as in an emergency.\n\n" +
			"The server must not be running. Repeating it changes nothing.",
		Example: "  brevet ceremony retire --config brevet.yaml --certificate issuing.crt",
		RunE: func(cmd *cobra.Command, _ []string) error {
			retire := func(n *node.Node, ctx context.Context, id pki.IssuerID, by pki.Actor) error {
				return n.Retire(ctx, id, int(confirm), by)
			}
			return named.act(cmd, openNodeWithPIN, retire, retired)
		},
	}
	named.add(cmd)
	cmd.Flags().Int64Var(&confirm, "confirm", 0, "confirm that the command affects this number of certificates")
	return cmd
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
		RunE: func(cmd *cobra.Command, _ []string) error {
			return named.act(cmd, node.OpenKeyless, (*node.Node).Remove, removed)
		},
	}
	named.add(cmd)
	return cmd
}
