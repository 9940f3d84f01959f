// Command brevet-bench measures how many signatures, certificates, revocations, CRLs and OCSP responses a machine and
// its PKCS#11 token can process per second. It needs no configuration, and removes the files and keys that it created.
package main

import (
	"os"

	"github.com/spf13/cobra"

	"github.com/brevet-pki/brevet/internal/bench"
	"github.com/brevet-pki/brevet/internal/cli"
)

// version is set by the linker (-X main.version=…).
var version = "dev"

func main() { os.Exit(cli.Run(newRoot())) }

func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:   "brevet-bench",
		Short: "Measure what this machine and its token can do",
		Long: "brevet-bench needs no configuration: it makes a token, a store and a server process of its own, and removes them. JSON\n" +
			"alone goes to standard output, progress to standard error.",
	}
	return cli.New(root, version, bench.Commands()...)
}
