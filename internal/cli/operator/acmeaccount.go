package operator

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	"github.com/brevet-pki/brevet/internal/cli/client"
	"github.com/brevet-pki/brevet/internal/cli/output"
	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
)

var accountHeading = []string{"ACCOUNT", "STATUS", "KEY ID", "UNEXPIRED CERTIFICATES", "CREATED", "CONTACTS"}

func newAccountList() *cobra.Command {
	req := &brevetv1.ListAccountsRequest{PageSize: listPage}
	cmd := &cobra.Command{
		Use: "list", Short: "List the accounts of ACME clients, the newest first", Args: cobra.NoArgs,
		Long: "list prints all accounts, also those that were created without an external key (binding: optional in the policy).\n" +
			"The statuses are valid, deactivated (by its holder) and revoked (by an operator). Certificates are counted up to 1000.\n" +
			"Nobody has verified the contacts.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			return list(cmd, accountHeading, func(ctx context.Context, conn *grpc.ClientConn, page string) ([]*brevetv1.ACMEAccount, string, error) {
				req.PageToken = page
				resp, err := brevetv1.NewACMEServiceClient(conn).ListAccounts(ctx, req)
				return resp.GetAccounts(), resp.GetNextPageToken(), err
			}, printAccount)
		},
	}
	output.Flag(cmd)
	return cmd
}

func printAccount(p *output.Printer, a *brevetv1.ACMEAccount) error {
	key, contacts := "-", "-"
	if a.GetExternalKeyId() != "" {
		key = a.GetExternalKeyId()
	}
	if len(a.GetContacts()) > 0 {
		contacts = strings.Join(a.GetContacts(), " ")
	}
	return p.Record(a, a.GetId(), a.GetStatus(), key, strconv.FormatInt(a.GetUnexpiredCertificates(), 10),
		a.GetCreateTime().AsTime().Local().Format(time.RFC3339), contacts)
}

func newAccountRevoke() *cobra.Command {
	req := &brevetv1.RevokeAccountRequest{}
	cmd := &cobra.Command{
		Use: "revoke ACCOUNT", Short: "Revoke an account, and its external key if it has one", Args: cobra.ExactArgs(1),
		Long: "The account can do nothing any more. Its certificates stay valid, unless --revoke revokes them,\n" +
			"with the reason privilegeWithdrawn. The command can be repeated.",
		Example: "  brevet acme account revoke 3q2-7wAAAAAAAAAAAAAAAA --revoke",
		RunE: func(cmd *cobra.Command, args []string) error {
			req.Id = args[0]
			p, err := output.New(cmd)
			if err != nil {
				return err
			}
			return client.Call(cmd, func(ctx context.Context, conn *grpc.ClientConn) error {
				resp, err := brevetv1.NewACMEServiceClient(conn).RevokeAccount(ctx, req)
				if err != nil {
					return err
				}
				text := fmt.Sprintf("The account %s is revoked, and %d of its certificates.", resp.GetAccount().GetId(), resp.GetRevoked())
				return errors.Join(p.Record(resp, text), p.Close())
			})
		},
	}
	output.Flag(cmd)
	cmd.Flags().BoolVar(&req.RevokeCertificates, "revoke", false, "revoke the certificates of the account, too")
	commentFlag(cmd, &req.Comment)
	return cmd
}
