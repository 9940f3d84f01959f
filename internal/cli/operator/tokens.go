package operator

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	"github.com/brevet-pki/brevet/internal/cli"
	"github.com/brevet-pki/brevet/internal/cli/client"
	"github.com/brevet-pki/brevet/internal/cli/output"
	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
)

func newTokenList() *cobra.Command {
	req := &brevetv1.ListTokensRequest{PageSize: listPage}
	var state string
	cmd := &cobra.Command{
		Use: "list", Short: "List the enrollment tokens, the newest first", Args: cobra.NoArgs,
		Long: "list prints what is on record of enrollment tokens. Their secrets are not on record.\n" +
			"A token is open, spent, revoked, expired, or stale when its identity has changed since it was made.",
		Example: "  brevet token list --made-by brevet/operator/alice --state open",
		RunE: func(cmd *cobra.Command, _ []string) error {
			one, err := readTokenState("--state", state)
			if err != nil {
				return err
			}
			if req.States = nil; one != brevetv1.TokenState_TOKEN_STATE_UNSPECIFIED {
				req.States = []brevetv1.TokenState{one}
			}
			p, err := output.New(cmd, "TOKEN", "IDENTITY", "STATE", "EXPIRES", "MADE BY", "REVOKED BECAUSE")
			if err != nil {
				return err
			}
			return client.Call(cmd, func(ctx context.Context, conn *grpc.ClientConn) error {
				for c := brevetv1.NewTokenServiceClient(conn); ; {
					resp, err := c.ListTokens(ctx, req)
					if err != nil {
						return err
					}
					for _, t := range resp.GetTokens() {
						if err := printToken(p, t); err != nil {
							return err
						}
					}
					if req.PageToken = resp.GetNextPageToken(); req.GetPageToken() == "" {
						return p.Close()
					}
				}
			})
		},
	}
	output.Flag(cmd)
	f := cmd.Flags()
	f.StringVar(&req.CreatedBy, "made-by", "", "only those that this operator has made, such as brevet/operator/alice")
	f.StringVar(&req.Identity, "identity", "", "only those that enroll this identity")
	f.StringVar(&state, "state", "", "only those that are open, spent, revoked, expired or stale")
	return cmd
}

func printToken(p *output.Printer, t *brevetv1.EnrollmentToken) error {
	because := t.GetRevocationCause()
	if because == "" {
		because = "-"
	}
	return p.Record(t, t.GetId(), t.GetIdentity(), output.Enum(t.GetState()), t.GetExpireTime().AsTime().Local().Format(time.RFC3339), t.GetCreatedBy(), because)
}

func newTokenRevoke() *cobra.Command {
	req := &brevetv1.RevokeTokenRequest{}
	var createdBy string
	cmd := &cobra.Command{
		Use: "revoke (TOKEN | --made-by OPERATOR)", Short: "Revoke an enrollment token, or all that an operator has made so far", Args: cobra.MaximumNArgs(1),
		Long: "revoke has tokens serve nobody any more, for ever. What was issued for spent ones stays: brevet cert revoke takes that back.\n" +
			"Tokens are revoked with their maker, too: when it is suspended or retired, or one of its certificates is revoked\n" +
			"for keyCompromise or privilegeWithdrawn.",
		Example: "  brevet token revoke 5f2d0c9a77e1b340\n  brevet token revoke --made-by brevet/operator/alice",
		RunE: func(cmd *cobra.Command, args []string) error {
			if (len(args) == 1) == (createdBy != "") {
				return cli.WrongUse("name one token, or say --made-by")
			}
			req.Tokens = &brevetv1.RevokeTokenRequest_CreatedBy{CreatedBy: createdBy}
			if len(args) == 1 {
				req.Tokens = &brevetv1.RevokeTokenRequest_TokenId{TokenId: args[0]}
			}
			return client.Call(cmd, func(ctx context.Context, conn *grpc.ClientConn) error {
				resp, err := brevetv1.NewTokenServiceClient(conn).RevokeToken(ctx, req)
				if err != nil {
					return err
				}
				_, err = fmt.Fprintln(cmd.OutOrStdout(), revokedTokens(resp.GetRevoked()))
				return err
			})
		},
	}
	f := cmd.Flags()
	f.StringVar(&createdBy, "made-by", "", "all tokens that this operator has made so far, such as brevet/operator/alice")
	f.StringVar(&req.Comment, "comment", "", "why, in words, for the log")
	return cmd
}

// revokedTokens says how many tokens could have been used. The server counts up to 10000.
func revokedTokens(n int64) string {
	switch n {
	case 0:
		return "0 tokens could have been used: they were spent, revoked or expired before, or there are none."
	case 1:
		return "1 token revoked."
	case 10_000:
		return "10000 tokens or more revoked."
	default:
		return fmt.Sprintf("%d tokens revoked.", n)
	}
}
