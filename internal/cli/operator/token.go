package operator

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/brevet-pki/brevet/internal/cli"
	"github.com/brevet-pki/brevet/internal/cli/client"
	"github.com/brevet-pki/brevet/internal/cli/file"
	"github.com/brevet-pki/brevet/pki"
	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
	"github.com/brevet-pki/brevet/server/authz"
)

// NewToken returns brevet token: enrollment tokens.
func NewToken() *cobra.Command {
	cmd := &cobra.Command{Use: "token", Short: "Make, list and revoke one-time enrollment tokens"}
	client.Flags(cmd)
	cmd.AddCommand(newTokenCreate(), newTokenList(), newTokenRevoke())
	return cmd
}

func newTokenCreate() *cobra.Command {
	req := &brevetv1.CreateTokenRequest{}
	var lifetime, out string
	cmd := &cobra.Command{
		Use: "create NAME --out FILE", Short: "Make a one-time enrollment token for an identity", Args: cobra.ExactArgs(1),
		Long: "create writes the token to a new file that only you can read, or to standard output with --out -.\n" +
			"Hand it to the machine; it serves once, and within its lifetime.",
		RunE: func(cmd *cobra.Command, args []string) error {
			req.Identity = args[0]
			if lifetime != "" {
				d, err := pki.ParseDuration(lifetime)
				if err != nil {
					return cli.WrongFlag("--lifetime", err)
				}
				req.Lifetime = durationpb.New(d)
			}
			if out != "-" {
				if err := file.Vacant(out); err != nil {
					return err
				}
			}
			return client.Call(cmd, func(ctx context.Context, conn *grpc.ClientConn) error {
				resp, err := brevetv1.NewTokenServiceClient(conn).CreateToken(ctx, req)
				if err != nil {
					return err
				}
				return writeToken(cmd, args[0], out, resp)
			})
		},
	}
	f := cmd.Flags()
	f.StringVar(&lifetime, "lifetime", "", "how long it serves, such as 15m; at most 30d (default 1h)")
	f.BoolVar(&req.Replace, "replace", false, "may enroll an identity that is enrolled already: its certificates are then revoked as superseded")
	f.StringVar(&out, "out", "", "file to write, or - for standard output")
	_ = cmd.MarkFlagRequired("out")
	return cmd
}

func writeToken(cmd *cobra.Command, name, out string, resp *brevetv1.CreateTokenResponse) error {
	if out == "-" {
		_, err := fmt.Fprintln(cmd.OutOrStdout(), resp.GetToken())
		return err
	}
	if err := file.WriteNew(out, []byte(resp.GetToken()+"\n"), 0o600); err != nil {
		return err
	}
	next := "on the machine: brevet-agent enroll"
	path := name
	if id, err := pki.ParseSPIFFEID(name); err == nil {
		path = id.Path()
	}
	if strings.HasPrefix(path, authz.OperatorPath) {
		next = "as the operator: brevet login"
	}
	_, err := fmt.Fprintf(cmd.OutOrStdout(), "Token %s in %s serves once, until %s.\nNext, %s --token-file %s\n",
		resp.GetTokenId(), out, resp.GetExpireTime().AsTime().Local().Format(time.RFC1123), next, out)
	return err
}
