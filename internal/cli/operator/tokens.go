package operator

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	"github.com/brevet-pki/brevet/internal/cli"
	"github.com/brevet-pki/brevet/internal/cli/client"
	"github.com/brevet-pki/brevet/internal/cli/output"
	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
)

var tokenHeading = []string{"TOKEN", "IDENTITY", "STATE", "EXPIRES", "CREATED BY", "LIMITED TO", "REVOKED BECAUSE"}

func newTokenList() *cobra.Command {
	req := &brevetv1.ListTokensRequest{PageSize: listPage}
	var state, from, until string
	cmd := &cobra.Command{
		Use: "list", Short: "List the enrollment tokens, the newest first", Args: cobra.NoArgs,
		Long: "list prints what is on record of enrollment tokens. Their secrets are not on record. The states are open, spent,\n" +
			"revoked, expired, and stale: the identity has changed since the token was created. A token with a pattern is listed\n" +
			"with the pattern until a machine has presented it.",
		Example: "  brevet token list --created-by brevet/operator/alice --state open",
		RunE: func(cmd *cobra.Command, _ []string) error {
			one, err := readTokenState("--state", state)
			if err != nil {
				return err
			}
			if req.States = nil; one != brevetv1.TokenState_TOKEN_STATE_UNSPECIFIED {
				req.States = []brevetv1.TokenState{one}
			}
			if req.CreateStartTime, err = readTime("--created-from", from); err != nil {
				return err
			}
			if req.CreateEndTime, err = readTime("--created-until", until); err != nil {
				return err
			}
			return list(cmd, tokenHeading, func(ctx context.Context, conn *grpc.ClientConn, page string) ([]*brevetv1.EnrollmentToken, string, error) {
				req.PageToken = page
				resp, err := brevetv1.NewTokenServiceClient(conn).ListTokens(ctx, req)
				return resp.GetTokens(), resp.GetNextPageToken(), err
			}, printToken)
		},
	}
	output.Flag(cmd)
	f := cmd.Flags()
	createdByFlag(cmd, &req.CreatedBy)
	f.StringVar(&req.Identity, "identity", "", "identity that the command is about, such as device/42")
	stateFlag(cmd, &state)
	f.StringVar(&from, "created-from", "", "select tokens created at this time or later")
	f.StringVar(&until, "created-until", "", "select tokens created before this time")
	return cmd
}

// createdByFlag adds the flag that names the operator who created tokens.
func createdByFlag(cmd *cobra.Command, to *string) {
	cmd.Flags().StringVar(to, "created-by", "", "select tokens that this operator created, such as brevet/operator/alice")
	cli.MovedFlags(cmd, map[string]string{"made-by": "--created-by"})
}

func printToken(p *output.Printer, t *brevetv1.EnrollmentToken) error {
	because := t.GetRevocationCause()
	if because == "" {
		because = "-"
	}
	identity := t.GetIdentity()
	if identity == "" {
		identity = t.GetPattern()
	}
	limits := slices.Clone(t.GetNetworks())
	if len(t.GetKeyHash()) > 0 {
		limits = append(limits, "key "+hex.EncodeToString(t.GetKeyHash()))
	}
	return p.Record(t, t.GetId(), identity, output.Enum(t.GetState()), t.GetExpireTime().AsTime().Local().Format(time.RFC3339), t.GetCreatedBy(),
		dash(limits), because)
}

func newTokenRevoke() *cobra.Command {
	req := &brevetv1.RevokeTokenRequest{}
	var createdBy string
	cmd := &cobra.Command{
		Use: "revoke (TOKEN | --created-by OPERATOR)", Short: "Revoke an enrollment token, or all that an operator has created", Args: cobra.MaximumNArgs(1),
		Long: "A revoked token enrolls no identity any more. Certificates that were issued for spent tokens stay: revoke them with\n" +
			"brevet cert revoke. The tokens of an operator are also revoked when the operator is suspended or retired, or when\n" +
			"one of its certificates is revoked for keyCompromise or privilegeWithdrawn.",
		Example: "  brevet token revoke 5f2d0c9a77e1b340\n  brevet token revoke --created-by brevet/operator/alice",
		RunE: func(cmd *cobra.Command, args []string) error {
			if (len(args) == 1) == (createdBy != "") {
				return cli.WrongUse("name one token, or an operator with --created-by")
			}
			req.Tokens = &brevetv1.RevokeTokenRequest_CreatedBy{CreatedBy: createdBy}
			if len(args) == 1 {
				req.Tokens = &brevetv1.RevokeTokenRequest_TokenId{TokenId: args[0]}
			}
			p, err := output.New(cmd)
			if err != nil {
				return err
			}
			return client.Call(cmd, func(ctx context.Context, conn *grpc.ClientConn) error {
				resp, err := brevetv1.NewTokenServiceClient(conn).RevokeToken(ctx, req)
				if err != nil {
					return err
				}
				return errors.Join(p.Record(resp, revokedTokens(resp.GetRevoked())), p.Close())
			})
		},
	}
	output.Flag(cmd)
	createdByFlag(cmd, &createdBy)
	commentFlag(cmd, &req.Comment)
	return cmd
}

// revokedTokens returns a sentence with the number of revoked tokens. The server counts at most 10,000.
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
