package operator

import (
	"context"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	"github.com/brevet-pki/brevet/internal/cli/client"
	"github.com/brevet-pki/brevet/internal/cli/output"
)

// listPage is the number of records on a page that a list command requests.
const listPage = 500

// list prints all records of a list, page by page. next returns the records of one page and the token of the next page.
func list[R any](cmd *cobra.Command, heading []string, next func(context.Context, *grpc.ClientConn, string) ([]R, string, error),
	show func(*output.Printer, R) error,
) error {
	p, err := output.New(cmd, heading...)
	if err != nil {
		return err
	}
	return client.Call(cmd, func(ctx context.Context, conn *grpc.ClientConn) error {
		for page := ""; ; {
			records, following, err := next(ctx, conn, page)
			if err != nil {
				return err
			}
			for _, r := range records {
				if err := show(p, r); err != nil {
					return err
				}
			}
			if page = following; page == "" {
				return p.Close()
			}
		}
	})
}

// notRenewedFlag adds the flag that selects identities without a new certificate since a time.
func notRenewedFlag(cmd *cobra.Command, to *string) {
	cmd.Flags().StringVar(to, "not-renewed-since", "", "select identities to which no certificate was issued at this time or later")
}

// stateFlag adds the flag that selects records in one state. The help of the command lists the states.
func stateFlag(cmd *cobra.Command, to *string) {
	cmd.Flags().StringVar(to, "state", "", "select records in this state")
}
