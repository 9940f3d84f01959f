package ceremony

import (
	"errors"
	"fmt"
	"slices"

	"github.com/spf13/cobra"

	"github.com/brevet-pki/brevet/internal/cli"
	"github.com/brevet-pki/brevet/internal/cli/file"
	"github.com/brevet-pki/brevet/internal/cli/node"
	"github.com/brevet-pki/brevet/pki"
)

func newCeremonyInstall() *cobra.Command {
	var certFile, key, root, operator, out string
	var between, crls []string
	cmd := &cobra.Command{
		Use: "install", Short: "Install an issuing CA into the store, and make the first operator's token", Args: cobra.NoArgs,
		Long: "install checks that the HSM's key, the certificate, its chain and the root's CRL belong together, records\n" +
			"them in the store, starts everything that the server starts, once, and writes a one-time token for the first\n" +
			"operator. The server must not be running.",
		Example: "  brevet ceremony install --config brevet.yaml --certificate issuing.crt --key-label issuing-g1 --root root.crt --crl root.crl \\\n" +
			"      --operator alice --out alice.token",
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := node.LoadConfig(cmd)
			if err != nil {
				return err
			}
			if slices.Contains(crls, "") {
				return cli.WrongUse("--crl: give the root's CRL, which brevet ceremony crl makes")
			}
			inst, err := node.ReadInstallation(certFile, key, append([]string{root}, between...), crls)
			if err != nil {
				return err
			}
			if out != "" {
				if err := file.Vacant(out); err != nil {
					return err
				}
			}
			return install(cmd, c, inst, operator, out)
		},
	}
	node.ConfigFlag(cmd)
	f := cmd.Flags()
	f.StringVar(&certFile, "certificate", "issuing.crt", "file that contains the certificate of the CA")
	f.StringVar(&key, "key-label", "", "label of the key in the HSM")
	f.StringVar(&root, "root", "root.crt", "file that contains the root certificate")
	f.StringArrayVar(&between, "intermediate", nil, "file that contains a CA certificate between the root and the issuing CA; may be given again")
	f.StringArrayVar(&crls, "crl", []string{"root.crl"}, "file that contains the CRL of a CA; may be given again")
	f.StringVar(&operator, "operator", "", "name of the operator for whom the command creates a token")
	f.StringVar(&out, "out", "", "file that the command writes; it must not exist")
	_ = cmd.MarkFlagRequired("key-label")
	cmd.MarkFlagsRequiredTogether("operator", "out")
	cli.MovedFlags(cmd, map[string]string{"token-out": "--out"})
	return cmd
}

func install(cmd *cobra.Command, c node.Config, inst node.Installation, operator, tokenOut string) (err error) {
	pin, err := c.PIN()
	if err != nil {
		return err
	}
	if err := node.MakeDirectory(c.StateDir); err != nil {
		return err
	}
	ctx := cmd.Context()
	n, err := node.Open(ctx, c, pin, c.Logger(cmd))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, n.Close()) }()
	if err := n.CheckUnused(); err != nil {
		return err
	}
	by := pki.ActorCommand("ceremony install")
	if err := n.Install(ctx, inst, by); err != nil {
		return err
	}
	s, err := n.Server(ctx, node.Ports{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close(ctx)) }()
	out := cmd.OutOrStdout()
	if _, err := fmt.Fprintf(out, "Installed %s with key %s.\n", inst.Certificate.Subject, inst.Key); err != nil {
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
	if err := file.WriteNew(tokenOut, []byte(text+"\n"), 0o600); err != nil {
		return err
	}
	_, err = fmt.Fprintf(out, "The first operator's token is in %s and serves once, within 24 hours.\nNext: brevet serve, then brevet login --token-file %s\n", tokenOut, tokenOut)
	return err
}
