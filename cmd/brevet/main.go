// Command brevet is the certificate authority: the server process, and the command line with which operators call it
// over gRPC. The binary also contains the offline commands for ceremonies, which use root keys and the store itself.
//
// It refuses secrets on the command line and in the environment. It reads PINs and tokens from files, systemd
// credentials, standard input or a terminal.
package main

import (
	"os"

	"github.com/spf13/cobra"

	"github.com/brevet-pki/brevet/internal/cli"
	"github.com/brevet-pki/brevet/internal/cli/backups"
	"github.com/brevet-pki/brevet/internal/cli/ceremony"
	"github.com/brevet-pki/brevet/internal/cli/operator"
	"github.com/brevet-pki/brevet/internal/cli/serve"
)

// version is set by the linker (-X main.version=…).
var version = "dev"

func main() { os.Exit(cli.Run(newRoot())) }

func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:   "brevet",
		Short: "An internal certificate authority for machines",
		Long:  "Brevet gives every machine an identity: a short-lived X.509 certificate, signed by a key that never\nleaves its HSM, renewed without a person's help, and revoked within a second.",
	}
	return cli.New(root, version,
		serve.NewDev(), serve.New(), ceremony.New(),
		operator.NewContext(), operator.NewLogin(), operator.NewIdentity(), operator.NewToken(), operator.NewACME(), operator.NewCert(),
		operator.NewRevocation(), operator.NewRotation(), operator.NewKey(), operator.NewCRL(), operator.NewPolicy(), operator.NewLog(), newStore(),
		ceremony.NewHSM(), backups.NewBackup(), backups.NewRestore(),
		cli.MovedCommand("bench", "brevet-bench, with the same commands and flags"),
	)
}

// newStore returns brevet store: its statistics, from a server, and its migration, without one.
func newStore() *cobra.Command {
	cmd := operator.NewStore()
	cmd.AddCommand(backups.NewMigrate())
	return cmd
}
