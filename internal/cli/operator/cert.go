package operator

import (
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/brevet-pki/brevet/internal/cli"
	"github.com/brevet-pki/brevet/internal/cli/client"
	"github.com/brevet-pki/brevet/internal/cli/output"
	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
)

// NewCert returns brevet cert, with subcommands that list, show, hold and revoke certificates.
func NewCert() *cobra.Command {
	cmd := &cobra.Command{Use: "cert", Short: "List, show, hold and revoke certificates"}
	client.Flags(cmd)
	cmd.AddCommand(newCertList(), newCertShow(), newCertRevoke(), newCertHold(), newCertUnhold())
	return cmd
}

var certHeading = []string{"SERIAL", "IDENTITY", "PROFILE", "NOT AFTER", "STATE"}

func printCert(p *output.Printer, c *brevetv1.Certificate) error {
	state := output.Enum(c.GetState())
	if c.GetState() != brevetv1.CertificateState_CERTIFICATE_STATE_GOOD {
		state += " (" + output.Enum(c.GetReason()) + ")"
	}
	identity, profile := c.GetIdentity(), c.GetProfile()
	if !c.GetDelivered() {
		identity, profile = "(never delivered)", "-"
	}
	return p.Record(c, output.Hex(c.GetSerial()), identity, profile, c.GetNotAfter().AsTime().UTC().Format(time.RFC3339), state)
}

func newCertList() *cobra.Command {
	var filter certFilter
	cmd := &cobra.Command{
		Use: "list", Short: "List the certificates, the newest first", Args: cobra.NoArgs,
		Long: "list prints what is on record of certificates. The states are good, hold and revoked. The list of a selection is what\n" +
			"brevet revocation create revokes with the same flags, as far as it is not revoked already.\n\n" + selectionHelp + "\n\n" +
			"--expires-from and --expires-until select by the end of validity in the same way. --without-successor leaves out\n" +
			"certificates that were renewed. --not-renewed-since selects those whose holder was issued none since.",
		Example: "  brevet cert list --identity device/42\n  brevet cert list --label site=plant-7 --state good --expires-until 2026-03-01",
		RunE: func(cmd *cobra.Command, _ []string) error {
			req, err := filter.read(cmd)
			if err != nil {
				return err
			}
			return list(cmd, certHeading, func(ctx context.Context, conn *grpc.ClientConn, page string) ([]*brevetv1.Certificate, string, error) {
				req.PageToken = page
				resp, err := brevetv1.NewCertificateServiceClient(conn).ListCertificates(ctx, req)
				return resp.GetCertificates(), resp.GetNextPageToken(), err
			}, printCert)
		},
	}
	output.Flag(cmd)
	filter.flags(cmd)
	return cmd
}

// certFilter holds the flags of brevet cert list.
type certFilter struct {
	selection                 selection
	state                     string
	expiresFrom, expiresUntil string
	withoutSuccessor          bool
	notRenewedSince           string
}

func (c *certFilter) flags(cmd *cobra.Command) {
	c.selection.flags(cmd)
	stateFlag(cmd, &c.state)
	f := cmd.Flags()
	f.StringVar(&c.expiresFrom, "expires-from", "", "select certificates that expire at this time or later")
	f.StringVar(&c.expiresUntil, "expires-until", "", "select certificates that expire before this time")
	f.BoolVar(&c.withoutSuccessor, "without-successor", false, "select certificates that were not renewed")
	notRenewedFlag(cmd, &c.notRenewedSince)
}

// read returns the request for the first page.
func (c *certFilter) read(cmd *cobra.Command) (*brevetv1.ListCertificatesRequest, error) {
	req := &brevetv1.ListCertificatesRequest{PageSize: listPage, WithoutSuccessor: c.withoutSuccessor}
	var err error
	if c.selection.given(cmd) {
		if req.Selection, err = c.selection.read(); err != nil {
			return nil, err
		}
	}
	state, err := enumNumber("--state", brevetv1.CertificateState(0).Descriptor(), c.state)
	if err != nil {
		return nil, err
	}
	if state != 0 {
		req.States = []brevetv1.CertificateState{brevetv1.CertificateState(state)}
	}
	if req.ExpireStartTime, err = readTime("--expires-from", c.expiresFrom); err != nil {
		return nil, err
	}
	if req.ExpireEndTime, err = readTime("--expires-until", c.expiresUntil); err != nil {
		return nil, err
	}
	req.NotRenewedSinceTime, err = readTime("--not-renewed-since", c.notRenewedSince)
	return req, err
}

// certificatesOf returns the request for the certificates of an identity.
func certificatesOf(identity string) *brevetv1.ListCertificatesRequest {
	return &brevetv1.ListCertificatesRequest{PageSize: listPage, Selection: &brevetv1.CertificateSelection{Identity: identity}}
}

func newCertShow() *cobra.Command {
	cmd := &cobra.Command{
		Use: "show SERIAL", Short: "Show one certificate, as PEM", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			serial, err := readSerial(args[0])
			if err != nil {
				return err
			}
			p, err := output.New(cmd, certHeading...)
			if err != nil {
				return err
			}
			return client.Call(cmd, func(ctx context.Context, conn *grpc.ClientConn) error {
				resp, err := brevetv1.NewCertificateServiceClient(conn).GetCertificate(ctx, &brevetv1.GetCertificateRequest{Serial: serial})
				if err != nil {
					return err
				}
				c := resp.GetCertificate()
				if err := errors.Join(printCert(p, c), p.Close()); err != nil || p.JSON || len(c.GetDer()) == 0 {
					return err
				}
				return pem.Encode(cmd.OutOrStdout(), &pem.Block{Type: "CERTIFICATE", Bytes: c.GetDer()})
			})
		},
	}
	output.Flag(cmd)
	return cmd
}

func newCertRevoke() *cobra.Command {
	var r reason
	cmd := certChange("revoke SERIAL", "Revoke one certificate, now and for ever", "revoked",
		func(ctx context.Context, c brevetv1.RevocationServiceClient, serial []byte) (changedCertificate, error) {
			code, since, err := r.read()
			if err != nil {
				return nil, err
			}
			return c.RevokeCertificate(ctx, &brevetv1.RevokeCertificateRequest{Serial: serial, Reason: code, InvalidityTime: since, Comment: r.comment})
		})
	cmd.Long = "revoke is in effect when it returns: OCSP and the server refuse the certificate, and a CRL follows within a second.\n" +
		"After keyCompromise the other certificates of the key are revoked too.\n\n" + reasonHelp() + "\n\n" +
		"Several certificates at once: brevet revocation create. A private key that has leaked: brevet key revoke."
	cmd.Example = "  brevet cert revoke 0192F3A4… --reason keyCompromise --invalid-since 2026-03-01T04:00:00Z"
	r.flags(cmd)
	const create = "brevet revocation create --%s"
	cli.MovedFlags(cmd, map[string]string{
		"issuer": fmt.Sprintf(create, "issuer"), "identity": fmt.Sprintf(create, "identity"), "lineage-of": fmt.Sprintf(create, "lineage"),
		"key": fmt.Sprintf(create, "key-hash"), "profile": fmt.Sprintf(create, "profile"), "label": fmt.Sprintf(create, "label"),
		"issued-from": fmt.Sprintf(create, "issued-from"), "issued-until": fmt.Sprintf(create, "issued-until"),
		"dry-run": fmt.Sprintf(create, "dry-run"), "yes": fmt.Sprintf(create, "yes"),
		"set": "brevet revocation watch ID", "compromised-key": "brevet key revoke FILE",
		"root": "brevet key revoke FILE --root", "trust-domain": "brevet key revoke FILE --trust-domain",
	})
	return cmd
}

func newCertHold() *cobra.Command {
	var comment string
	cmd := certChange("hold SERIAL", "Put one certificate on hold", "put on hold",
		func(ctx context.Context, c brevetv1.RevocationServiceClient, serial []byte) (changedCertificate, error) {
			return c.HoldCertificate(ctx, &brevetv1.HoldCertificateRequest{Serial: serial, Comment: comment})
		})
	cmd.Long = "A certificate on hold is not to be relied on: OCSP and CRLs list it as revoked for certificateHold. brevet cert unhold\n" +
		"undoes it. To put all certificates of an identity on hold, and to keep it from getting more: brevet identity suspend."
	commentFlag(cmd, &comment)
	return cmd
}

func newCertUnhold() *cobra.Command {
	var comment string
	cmd := certChange("unhold SERIAL", "Take one certificate off hold: it is good again", "taken off hold",
		func(ctx context.Context, c brevetv1.RevocationServiceClient, serial []byte) (changedCertificate, error) {
			return c.UnholdCertificate(ctx, &brevetv1.UnholdCertificateRequest{Serial: serial, Comment: comment})
		})
	commentFlag(cmd, &comment)
	return cmd
}

// changedCertificate is the response to a request that changes one certificate.
type changedCertificate interface {
	proto.Message
	GetCertificate() *brevetv1.Certificate
	GetAffected() *brevetv1.AffectedCertificates
}

// certChange returns a command that changes one certificate and then prints its record. The verb says in the output
// what happened to the affected certificates, such as "revoked".
func certChange(use, short, verb string, do func(context.Context, brevetv1.RevocationServiceClient, []byte) (changedCertificate, error)) *cobra.Command {
	cmd := &cobra.Command{
		Use: use, Short: short, Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			serial, err := readSerial(args[0])
			if err != nil {
				return err
			}
			p, err := output.New(cmd, certHeading...)
			if err != nil {
				return err
			}
			return client.Call(cmd, func(ctx context.Context, conn *grpc.ClientConn) error {
				resp, err := do(ctx, brevetv1.NewRevocationServiceClient(conn), serial)
				if err != nil {
					return err
				}
				printAffected(cmd, verb, resp.GetAffected())
				warnUncopied(cmd, resp)
				return errors.Join(printCert(p, resp.GetCertificate()), p.Close())
			})
		},
	}
	output.Flag(cmd)
	return cmd
}
