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
	var n newToken
	cmd := &cobra.Command{
		Use: "create (NAME | --pattern PATTERN | --identities FILE) --out FILE", Args: cobra.MaximumNArgs(1),
		Short: "Create a one-time enrollment token for an identity, or many of them",
		Long: "create writes the token to a new file that only you can read, or to standard output with --out -.\n" +
			"Hand it to the machine: it enrolls the identity once, within --lifetime (at most 30d, by default 1h).\n\n" +
			"With --replace, the token may enroll an identity that is enrolled already: when it is used, the certificates that\n" +
			"the identity has are revoked as superseded.\n\n" +
			"With --pattern, the machine says which identity it enrolls (brevet-agent enroll --identity). The whole path must\n" +
			"match the pattern, a regular expression (RE2) that begins with a path segment. The server registers the identity\n" +
			"with --kind, --profile and --label. An identity that is enrolled already is refused.\n\n" +
			"--network and --key-hash limit where and for which key the token can be used. The server sees the address of the\n" +
			"last proxy or NAT gateway before it.\n\n" +
			"With --count or --identities, create writes many tokens to --out, in CSV with a heading: token_id, token, identity,\n" +
			"pattern and expire_time. If it is interrupted, repeat the same command: it continues, and revokes the tokens that it\n" +
			"did not write to the file.",
		Example: "  brevet token create device/42 --out device42.token\n" +
			"  brevet token create --pattern 'sensor/S[0-9]{6}' --count 10000 --format csv --lifetime 30d --network 10.2.0.0/16 --out line7.csv",
		RunE: func(cmd *cobra.Command, args []string) error {
			p, err := output.New(cmd)
			if err != nil {
				return err
			}
			req, err := n.read(cmd, args)
			if err != nil {
				return err
			}
			if n.batch(cmd) {
				return createTokens(cmd, p, req, &n)
			}
			if n.out != "-" {
				if err := file.Vacant(n.out); err != nil {
					return err
				}
			}
			return client.Call(cmd, func(ctx context.Context, conn *grpc.ClientConn) error {
				resp, err := brevetv1.NewTokenServiceClient(conn).CreateToken(ctx, req)
				if err != nil {
					return err
				}
				return writeToken(p, req, n.out, resp)
			})
		},
	}
	output.Flag(cmd)
	n.flags(cmd)
	return cmd
}

// newToken holds the flags of brevet token create.
type newToken struct {
	lifetime, out          string
	replace                bool
	pattern, kind, profile string
	labels                 labels
	networks               []string
	keyHash                string
	count                  int64
	identities, format     string
}

// onlyPattern are the flags that describe the identities of a pattern.
var onlyPattern = []string{"kind", "profile", "label", "count"}

func (n *newToken) flags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&n.lifetime, "lifetime", "", "how long the token, external key, certificate or CRL is valid, such as 15m or 90d")
	f.BoolVar(&n.replace, "replace", false, "allow the token to enroll an identity that is already enrolled; its old certificates are revoked then")
	f.StringVar(&n.out, "out", "", "file that the command writes; it must not exist")
	_ = cmd.MarkFlagRequired("out")
	f.StringVar(&n.pattern, "pattern", "", "regular expression for the path of the identity, such as 'sensor/S[0-9]{6}'")
	f.StringVar(&n.kind, "kind", "device", "kind of the identity: device, workload or operator")
	f.StringVar(&n.profile, "profile", "", "certificate profile")
	f.Var(&n.labels, "label", "label of the identity")
	f.StringArrayVar(&n.networks, "network", nil, "network from which the token can be used, such as 10.2.0.0/16; may be given again")
	f.StringVar(&n.keyHash, "key-hash", "", "SHA-256 of a public key, in hexadecimal")
	f.Int64Var(&n.count, "count", 0, "number of tokens to create for the pattern")
	f.StringVar(&n.identities, "identities", "", "file with the name of an identity on each line, or - for standard input")
	f.StringVar(&n.format, "format", "csv", "format of many tokens: csv")
}

// batch reports whether the command creates many tokens.
func (n *newToken) batch(cmd *cobra.Command) bool {
	return cmd.Flags().Changed("count") || n.identities != ""
}

// read returns the request for a token. Requests of a batch have no identity yet.
func (n *newToken) read(cmd *cobra.Command, args []string) (*brevetv1.CreateTokenRequest, error) {
	if err := n.check(cmd, len(args)); err != nil {
		return nil, err
	}
	req := &brevetv1.CreateTokenRequest{Pattern: n.pattern, Replace: n.replace, Networks: n.networks}
	if len(args) == 1 {
		req.Identity = args[0]
	}
	if n.lifetime != "" {
		d, err := pki.ParseDuration(n.lifetime)
		if err != nil {
			return nil, cli.WrongFlag("--lifetime", err)
		}
		req.Lifetime = durationpb.New(d)
	}
	if n.pattern != "" {
		kind, err := readKind("--kind", n.kind)
		if err != nil {
			return nil, err
		}
		req.Spec = &brevetv1.IdentitySpec{Kind: kind, Profile: n.profile, Labels: n.labels}
	}
	var err error
	req.KeyHash, err = readHash("--key-hash", n.keyHash)
	return req, err
}

// check returns an error for flags that do not belong together.
func (n *newToken) check(cmd *cobra.Command, names int) error {
	for _, given := range []bool{n.pattern != "", n.identities != ""} {
		if given {
			names++
		}
	}
	if names != 1 {
		return cli.WrongUse("name one identity, or give --pattern or --identities")
	}
	for _, name := range onlyPattern {
		if n.pattern == "" && cmd.Flags().Changed(name) {
			return cli.WrongUse("--" + name + " needs --pattern: other identities are registered already")
		}
	}
	switch {
	case !n.batch(cmd) && cmd.Flags().Changed("format"):
		return cli.WrongUse("--format needs --count or --identities: it is for many tokens")
	case !n.batch(cmd):
		return nil
	case n.format != "csv":
		return cli.WrongUse(fmt.Sprintf("--format %q: use csv", n.format))
	case n.keyHash != "":
		return cli.WrongUse("--key-hash is for one token: leave out --count and --identities")
	case n.out == "-":
		return cli.WrongUse("--out -: name a file for many tokens, with which the command can continue after an interruption")
	case cmd.Flags().Changed("count") && (n.count < 1 || n.count > maxBatch):
		return cli.WrongUse(fmt.Sprintf("--count %d: use 1 to %d", n.count, maxBatch))
	}
	return nil
}

// tokenRecord is a new token as --output json prints it. Token is the secret. It is set only with --out -.
type tokenRecord struct {
	TokenID    string    `json:"token_id"`
	Identity   string    `json:"identity,omitempty"`
	Pattern    string    `json:"pattern,omitempty"`
	ExpireTime time.Time `json:"expire_time"`
	Out        string    `json:"out"`
	Token      string    `json:"token,omitempty"`
}

func writeToken(p *output.Printer, req *brevetv1.CreateTokenRequest, out string, resp *brevetv1.CreateTokenResponse) error {
	name := req.GetIdentity()
	r := tokenRecord{TokenID: resp.GetTokenId(), Identity: name, Pattern: req.GetPattern(), ExpireTime: resp.GetExpireTime().AsTime(), Out: out}
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
	switch {
	case req.GetPattern() != "":
		next += " --identity NAME"
	case strings.HasPrefix(path, pki.OperatorPath):
		next = "as the operator: brevet login"
	}
	return p.Sentence(r, fmt.Sprintf("Token %s in %s serves once, until %s.\nNext, %s --token-file %s",
		resp.GetTokenId(), out, resp.GetExpireTime().AsTime().Local().Format(time.RFC1123), next, out))
}
