package bench

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/brevet-pki/brevet/internal/cli"
)

// Values of --store.
const (
	storeSQLite   = "sqlite"
	storePostgres = "postgres"
)

// storeFlag adds the flag --store.
func (f *commonFlags) storeFlag(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.store, "store", storeSQLite, "where the server keeps its records: sqlite, or postgres, which is a new server of this machine's\n"+
		"PostgreSQL with its data below TMPDIR, over a Unix socket")
}

// checkStore checks the flag --store.
func (f *commonFlags) checkStore(cmd *cobra.Command) error {
	switch {
	case f.store != "" && f.store != storeSQLite && f.store != storePostgres:
		return cli.WrongUse(fmt.Sprintf("--store %s: give %s or %s", f.store, storeSQLite, storePostgres))
	case f.store == storePostgres && cmd.Flags().Changed("config"):
		return cli.WrongUse("--store postgres goes without --config, whose disk is that of state_dir")
	}
	return nil
}
