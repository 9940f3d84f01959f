package backups

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/brevet-pki/brevet/internal/cli/node"
	"github.com/brevet-pki/brevet/store/sqlite"
	"github.com/brevet-pki/brevet/store/transfer"
)

// NewMigrate returns brevet store migrate, which moves the store from SQLite to PostgreSQL.
func NewMigrate() *cobra.Command {
	var connection string
	cmd := &cobra.Command{
		Use: "migrate", Short: "Move the store from SQLite to PostgreSQL, while the server is stopped", Args: cobra.NoArgs,
		Long: "migrate copies the store of the configured state directory to an empty PostgreSQL database, in one transaction,\n" +
			"and compares the number of rows and a digest of each table. If it is interrupted, run it again. Afterwards it\n" +
			"renames the SQLite file, so that no server uses it by accident, and leaves its contents as they are.",
		Example: "  brevet store migrate --config /etc/brevet/brevet.yaml --postgres \"host=db.fleet.example dbname=brevet user=brevet_server sslmode=verify-full\"",
		RunE:    func(cmd *cobra.Command, _ []string) error { return migrate(cmd, connection) },
	}
	node.ConfigFlag(cmd)
	cmd.Flags().StringVar(&connection, "postgres", "", "connection to the PostgreSQL database, as in store.postgres of the configuration")
	_ = cmd.MarkFlagRequired("postgres")
	return cmd
}

func migrate(cmd *cobra.Command, connection string) error {
	c, err := node.LoadConfig(cmd)
	if err != nil {
		return err
	}
	if err := c.CheckOwner(); err != nil {
		return err
	}
	out := cmd.OutOrStdout()
	tables, err := transfer.Run(cmd.Context(), c.StorePath(), connection, func(table string) {
		fmt.Fprintf(cmd.ErrOrStderr(), "copying %s\n", table)
	})
	if err != nil && !errors.Is(err, transfer.ErrDone) {
		return err
	}
	for _, t := range tables {
		if _, err := fmt.Fprintf(out, "%-20s %9d rows  sha256 %x\n", t.Name, t.Rows, t.Digest); err != nil {
			return err
		}
	}
	kept, err := sqlite.Retire(cmd.Context(), c.StorePath())
	if err != nil {
		return fmt.Errorf("the store was moved, but its file is still in place: %w", err)
	}
	_, err = fmt.Fprintf(out, "Moved %s to PostgreSQL: all tables are the same in both. The old file is %s; never serve it again.\n"+
		"Next: set in the configuration, and run brevet serve --check:\n  store:\n    postgres: %q\n    server: NAME-OF-THIS-SERVER\n", c.StorePath(), kept, connection)
	return err
}
