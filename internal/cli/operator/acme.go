package operator

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
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

// NewACME returns brevet acme, with subcommands for the accounts and external keys of ACME clients.
func NewACME() *cobra.Command {
	cmd := &cobra.Command{Use: "acme", Short: "Manage the accounts and external keys of ACME clients"}
	client.Flags(cmd)
	eab := &cobra.Command{Use: "eab", Short: "Create, list and revoke the keys of external account bindings"}
	eab.AddCommand(newExternalKeyCreate(), newExternalKeyList(), newExternalKeyRevoke())
	account := &cobra.Command{Use: "account", Short: "List and revoke accounts"}
	account.AddCommand(newAccountList(), newAccountRevoke())
	cmd.AddCommand(eab, account)
	return cmd
}

func newExternalKeyCreate() *cobra.Command {
	req := &brevetv1.CreateExternalKeyRequest{}
	var lifetime, out string
	cmd := &cobra.Command{
		Use: "create (--identity NAME | --rule RULE) --out FILE", Short: "Create the key of an external account binding", Args: cobra.NoArgs,
		Long: "create writes the HMAC key to a new file that only you can read, or to standard output with --out -. Give the client\n" +
			"the key ID and the HMAC key: it creates one account with them, within --lifetime (at most and by default 30d).\n\n" +
			"With --identity, all certificates of the account are for this identity. With --rule, only this rule of the policy\n" +
			"decides, and forms an identity from the one name of each order.",
		Example: "  brevet acme eab create --identity web/shop --out shop.hmac\n" +
			"  brevet acme eab create --rule web --lifetime 7d --out web.hmac",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if (req.GetIdentity() == "") == (req.GetRule() == "") {
				return cli.WrongUse("name an identity with --identity, or a rule with --rule")
			}
			if lifetime != "" {
				d, err := pki.ParseDuration(lifetime)
				if err != nil {
					return cli.WrongFlag("--lifetime", err)
				}
				req.Lifetime = durationpb.New(d)
			}
			p, err := output.New(cmd)
			if err != nil {
				return err
			}
			if out != "-" {
				if err := file.Vacant(out); err != nil {
					return err
				}
			}
			return client.Call(cmd, func(ctx context.Context, conn *grpc.ClientConn) error {
				resp, err := brevetv1.NewACMEServiceClient(conn).CreateExternalKey(ctx, req)
				if err != nil {
					return err
				}
				return writeExternalKey(p, out, resp)
			})
		},
	}
	output.Flag(cmd)
	f := cmd.Flags()
	f.StringVar(&req.Identity, "identity", "", "identity that the command is about, such as device/42")
	f.StringVar(&req.Rule, "rule", "", "rule of the policy that decides about the account's orders")
	f.StringVar(&lifetime, "lifetime", "",
		"how long the token, external key, certificate or CRL is valid, such as 15m or 90d (default 30d)")
	f.StringVar(&out, "out", "", "file that the command writes; it must not exist")
	_ = cmd.MarkFlagRequired("out")
	return cmd
}

// externalKeyRecord is a new external key as --output json prints it. HMACKey is the secret. It is set only with --out -.
type externalKeyRecord struct {
	KeyID      string    `json:"key_id"`
	Identity   string    `json:"identity,omitempty"`
	Rule       string    `json:"rule,omitempty"`
	ExpireTime time.Time `json:"expire_time"`
	Out        string    `json:"out"`
	HMACKey    string    `json:"hmac_key,omitempty"`
}

func writeExternalKey(p *output.Printer, out string, resp *brevetv1.CreateExternalKeyResponse) error {
	k, secret := resp.GetKey(), base64.RawURLEncoding.EncodeToString(resp.GetHmacKey())
	r := externalKeyRecord{KeyID: k.GetId(), Identity: k.GetIdentity(), Rule: k.GetRule(), ExpireTime: k.GetExpireTime().AsTime(), Out: out}
	until := k.GetExpireTime().AsTime().Local().Format(time.RFC1123)
	if out == "-" {
		r.HMACKey = secret
		return p.Sentence(r, fmt.Sprintf("Key ID: %s\nHMAC key: %s\nThe key can create one account, until %s.", k.GetId(), secret, until))
	}
	if err := file.WriteNew(out, []byte(secret+"\n"), 0o600); err != nil {
		return err
	}
	return p.Sentence(r, fmt.Sprintf("The external key %s can create one account, until %s.\nIts HMAC key is in %s.", k.GetId(), until, out))
}

var externalKeyHeading = []string{"KEY ID", "IDENTITY OR RULE", "STATE", "ACCOUNT", "ACCOUNT STATUS", "EXPIRES", "CREATED BY"}

func newExternalKeyList() *cobra.Command {
	req := &brevetv1.ListExternalKeysRequest{PageSize: listPage}
	cmd := &cobra.Command{
		Use: "list", Short: "List the external keys with their accounts, the newest first", Args: cobra.NoArgs,
		Long: "list prints the external keys, without their HMAC keys. The states are open, used, expired and revoked.\n" +
			"If the identity is suspended or retired, its state follows in brackets: the key and its account get no certificates.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			return list(cmd, externalKeyHeading, func(ctx context.Context, conn *grpc.ClientConn, page string) ([]*brevetv1.ExternalKey, string, error) {
				req.PageToken = page
				resp, err := brevetv1.NewACMEServiceClient(conn).ListExternalKeys(ctx, req)
				return resp.GetKeys(), resp.GetNextPageToken(), err
			}, printExternalKey)
		},
	}
	output.Flag(cmd)
	return cmd
}

func printExternalKey(p *output.Printer, k *brevetv1.ExternalKey) error {
	owner := k.GetIdentity()
	if owner == "" {
		owner = "rule " + k.GetRule()
	}
	if state := k.GetIdentityState(); state == pki.Suspended.String() || state == pki.Retired.String() {
		owner += " (" + state + ")" // the key creates no account, and its account gets no certificates
	}
	account, status := "-", "-"
	if k.GetAccountId() != "" {
		account, status = k.GetAccountId(), k.GetAccountStatus()
	}
	return p.Record(k, k.GetId(), owner, output.Enum(k.GetState()), account, status,
		k.GetExpireTime().AsTime().Local().Format(time.RFC3339), k.GetCreatedBy())
}

func newExternalKeyRevoke() *cobra.Command {
	req := &brevetv1.RevokeExternalKeyRequest{}
	cmd := &cobra.Command{
		Use: "revoke KEY-ID", Short: "Revoke an external key and its account", Args: cobra.ExactArgs(1),
		Long: "The account can do nothing any more. Its certificates stay valid, unless --revoke revokes them,\n" +
			"with the reason privilegeWithdrawn. The command can be repeated.",
		Example: "  brevet acme eab revoke 3q2-7wAAAAAAAAAAAAAAAA --revoke",
		RunE: func(cmd *cobra.Command, args []string) error {
			req.Id = args[0]
			p, err := output.New(cmd)
			if err != nil {
				return err
			}
			return client.Call(cmd, func(ctx context.Context, conn *grpc.ClientConn) error {
				resp, err := brevetv1.NewACMEServiceClient(conn).RevokeExternalKey(ctx, req)
				if err != nil {
					return err
				}
				text := fmt.Sprintf("The external key %s is revoked.", resp.GetKey().GetId())
				if resp.GetKey().GetAccountId() != "" {
					text = fmt.Sprintf("The external key %s and its account are revoked, and %d of its certificates.",
						resp.GetKey().GetId(), resp.GetRevoked())
				}
				return errors.Join(p.Record(resp, text), p.Close())
			})
		},
	}
	output.Flag(cmd)
	cmd.Flags().BoolVar(&req.RevokeCertificates, "revoke", false, "revoke the certificates of the account, too")
	commentFlag(cmd, &req.Comment)
	return cmd
}
