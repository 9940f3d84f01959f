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
	"github.com/brevet-pki/brevet/internal/cli/output"
	"github.com/brevet-pki/brevet/pki"
	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
)

// NewToken returns brevet token, with subcommands that create, list and revoke enrollment tokens.
func NewToken() *cobra.Command {
	cmd := &cobra.Command{Use: "token", Short: "Create, list and revoke one-time enrollment tokens"}
	client.Flags(cmd)
	cmd.AddCommand(newTokenCreate(), newTokenList(), newTokenRevoke())
	return cmd
}

func newTokenCreate() *cobra.Command {
	req := &brevetv1.CreateTokenRequest{}
	var lifetime, out string
	cmd := &cobra.Command{
		Use: "create NAME --out FILE", Short: "Create a one-time enrollment token for an identity", Args: cobra.ExactArgs(1),
		Long: "create writes the token to a new file that only you can read, or to standard output with --out -.\n" +
			"Hand it to the machine: it enrolls the identity once, within --lifetime (at most 30d, by default 1h).\n\n" +
			"With --replace, the token may enroll an identity that is enrolled already: when it is used, the certificates that\n" +
			"the identity has are revoked as superseded.",
		RunE: func(cmd *cobra.Command, args []string) error {
			p, err := output.New(cmd)
			if err != nil {
				return err
			}
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
				return writeToken(p, args[0], out, resp)
			})
		},
	}
	output.Flag(cmd)
	f := cmd.Flags()
	f.StringVar(&lifetime, "lifetime", "", "how long the token, certificate or CRL is valid, such as 15m or 90d")
	f.BoolVar(&req.Replace, "replace", false, "allow the token to enroll an identity that is already enrolled; its old certificates are revoked then")
	f.StringVar(&out, "out", "", "file that the command writes; it must not exist")
	_ = cmd.MarkFlagRequired("out")
	return cmd
}

// tokenRecord is a new token as --output json prints it. Token is the secret. It is set only with --out -.
type tokenRecord struct {
	TokenID    string    `json:"token_id"`
	Identity   string    `json:"identity"`
	ExpireTime time.Time `json:"expire_time"`
	Out        string    `json:"out"`
	Token      string    `json:"token,omitempty"`
}

func writeToken(p *output.Printer, name, out string, resp *brevetv1.CreateTokenResponse) error {
	r := tokenRecord{TokenID: resp.GetTokenId(), Identity: name, ExpireTime: resp.GetExpireTime().AsTime(), Out: out}
	if out == "-" {
		r.Token = resp.GetToken()
		return p.Sentence(r, resp.GetToken())
	}
	if err := file.WriteNew(out, []byte(resp.GetToken()+"\n"), 0o600); err != nil {
		return err
	}
	next := "on the machine: brevet-agent enroll --directory DIR"
	path := name
	if id, err := pki.ParseSPIFFEID(name); err == nil {
		path = id.Path()
	}
	if strings.HasPrefix(path, pki.OperatorPath) {
		next = "as the operator: brevet login"
	}
	return p.Sentence(r, fmt.Sprintf("Token %s in %s serves once, until %s.\nNext, %s --token-file %s",
		resp.GetTokenId(), out, resp.GetExpireTime().AsTime().Local().Format(time.RFC1123), next, out))
}
