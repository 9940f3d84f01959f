package ceremony

import (
	"errors"
	"fmt"
	"slices"

	"github.com/spf13/cobra"

	"github.com/brevet-pki/brevet/internal/cli"
	"github.com/brevet-pki/brevet/internal/cli/node"
	"github.com/brevet-pki/brevet/pki"
)

func newCeremonyInstallRoot() *cobra.Command {
	var root string
	var crls, cross []string
	cmd := &cobra.Command{
		Use: "install-root", Short: "Install the next root into the trust bundle, with its cross-certificates", Args: cobra.NoArgs,
		Long: "install-root records a root and cross-certificates in the store. Agents and EST clients then trust the root, before\n" +
			"an issuing CA under it issues. The server sends the cross-certificates with the chains of certificates, so that\n" +
			"relying parties with only the other root accept them. The server must not be running. Repeating it changes nothing.",
		Example: "  brevet ceremony install-root --config brevet.yaml --root root-g2.crt --crl root-g2.crl \\\n" +
			"      --cross-certificate root-g2-by-g1.crt --cross-certificate root-g1-by-g2.crt",
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			c, err := node.LoadConfig(cmd)
			if err != nil {
				return err
			}
			if slices.Contains(crls, "") {
				return cli.WrongUse("--crl: give the root's CRL, which brevet ceremony crl makes")
			}
			inst, err := node.ReadRootInstallation(root, crls, cross)
			if err != nil {
				return err
			}
			n, err := node.OpenKeyless(cmd.Context(), c, c.Logger(cmd))
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, n.Close()) }()
			if err := n.CheckUnused(); err != nil {
				return err
			}
			if err := n.InstallRoot(cmd.Context(), inst, pki.ActorCommand("ceremony install-root")); err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "Installed %s with %d cross-certificates.\nNext: brevet serve\n",
				inst.Root.Subject, len(inst.Cross))
			return err
		},
	}
	node.ConfigFlag(cmd)
	f := cmd.Flags()
	f.StringVar(&root, "root", "root.crt", "file that contains the root certificate")
	f.StringArrayVar(&crls, "crl", []string{"root.crl"}, "file that contains the CRL of a CA; may be given again")
	f.StringArrayVar(&cross, "cross-certificate", nil, "file that contains a cross-certificate; may be given again")
	return cmd
}
