package operator

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	"github.com/brevet-pki/brevet/internal/cli"
	"github.com/brevet-pki/brevet/internal/cli/client"
	"github.com/brevet-pki/brevet/internal/cli/output"
	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
)

// NewRevocation returns brevet revocation, with subcommands that create, list and watch bulk revocations.
func NewRevocation() *cobra.Command {
	cmd := &cobra.Command{
		Use: "revocation", Short: "Revoke many certificates at once, and watch the work",
		Long: "A bulk revocation revokes every certificate that a selection matches at one moment. It is in effect for all of\n" +
			"them when create returns: OCSP and the server refuse them. The server then changes the records and the CRLs in\n" +
			"steps; a restart does not stop it. brevet cert revoke revokes one certificate.",
	}
	client.Flags(cmd)
	cmd.AddCommand(newRevocationCreate(), newRevocationList(), newRevocationShow(), newRevocationWatch())
	return cmd
}

var revocationHeading = []string{"REVOCATION", "STATE", "CERTIFICATES", "IN RECORDS AND CRL", "REASON", "CREATED", "CREATED BY", "SELECTION"}

// printRevocation prints a bulk revocation. With --dry-run it has no ID.
func printRevocation(p *output.Printer, b *brevetv1.BulkRevocation) error {
	id, state, total, applied, created := "-", "-", "-", "-", "-"
	if b.Total != nil {
		total = fmt.Sprint(b.GetTotal())
	}
	if b.GetId() != "" {
		id, state, applied = b.GetId(), output.Enum(b.GetState()), fmt.Sprint(b.GetApplied())
		created = b.GetCreateTime().AsTime().UTC().Format(time.RFC3339)
	}
	by := b.GetCreatedBy()
	if by == "" {
		by = "-"
	}
	return p.Record(b, id, state, total, applied, output.Enum(b.GetReason()), created, by, selectionText(b.GetSelection()))
}

const revocationCreateLong = `create counts what the selection matches, shows the number and asks; --dry-run stops there, and --yes does not ask.
Certificates that are issued afterwards are not revoked: to keep the holders from getting more, suspend or retire their
identities first (brevet identity).

%s

A whole issuing CA takes two steps: --issuer alone revokes what it has issued, and brevet ceremony crl has the root
revoke the CA's own certificate.

%s`

// creation holds the flags of brevet revocation create.
type creation struct {
	selection   selection
	reason      reason
	dryRun, yes bool
}

func newRevocationCreate() *cobra.Command {
	var c creation
	cmd := &cobra.Command{
		Use: "create", Short: "Revoke every certificate that a selection matches", Args: cobra.NoArgs,
		Long: fmt.Sprintf(revocationCreateLong, selectionHelp, reasonHelp()),
		Example: "  brevet revocation create --label batch=2026-07 --reason privilegeWithdrawn --dry-run\n" +
			"  brevet revocation create --issuer 5be1… --reason cACompromise\n" +
			"  brevet revocation create --lineage 0192F3A4… --reason keyCompromise --invalid-since 2026-03-01T04:00:00Z",
		RunE: func(cmd *cobra.Command, _ []string) error { return c.run(cmd) },
	}
	output.Flag(cmd)
	c.selection.flags(cmd)
	c.reason.flags(cmd)
	cmd.Flags().BoolVar(&c.dryRun, "dry-run", false, "count what the selection matches, and change nothing")
	cmd.Flags().BoolVar(&c.yes, "yes", false, "do not ask for confirmation")
	return cmd
}

func (c *creation) run(cmd *cobra.Command) error {
	p, err := output.New(cmd, revocationHeading...)
	if err != nil {
		return err
	}
	if !c.selection.given(cmd) {
		return cli.WrongUse("say what to revoke with flags that select certificates, such as --label or --issuer; brevet cert revoke SERIAL revokes one certificate")
	}
	req := &brevetv1.CreateBulkRevocationRequest{Comment: c.reason.comment}
	if req.Selection, err = c.selection.read(); err != nil {
		return err
	}
	if req.Reason, req.InvalidityTime, err = c.reason.read(); err != nil {
		return err
	}
	if !c.yes && !c.dryRun && !isTerminal(cmd.InOrStdin()) {
		return cli.WrongUse("standard input is not a terminal, so the command cannot ask: add --yes, or --dry-run to count")
	}
	sent := false // whether the second request was sent, which is not a dry run, but not yet answered
	err = client.Call(cmd, func(ctx context.Context, conn *grpc.ClientConn) error {
		rpc := brevetv1.NewRevocationServiceClient(conn)
		req.DryRun = true
		counted, err := rpc.CreateBulkRevocation(ctx, req)
		if err != nil {
			return err
		}
		if c.dryRun {
			printAffected(cmd, "would revoke", affectedBy(counted.GetBulkRevocation()))
			return errors.Join(printRevocation(p, counted.GetBulkRevocation()), p.Close())
		}
		if err := c.confirm(cmd, counted.GetBulkRevocation()); err != nil {
			return err
		}
		req.DryRun, sent = false, true
		resp, err := rpc.CreateBulkRevocation(ctx, req)
		if err != nil {
			return err
		}
		sent = false
		printAffected(cmd, "revoked", affectedBy(resp.GetBulkRevocation()))
		warnUncopied(cmd, resp)
		fmt.Fprintf(cmd.ErrOrStderr(), "Records and CRLs follow. Next: brevet revocation watch %s\n", resp.GetBulkRevocation().GetId())
		return errors.Join(printRevocation(p, resp.GetBulkRevocation()), p.Close())
	})
	if err != nil && sent {
		return fmt.Errorf("%w; see with brevet revocation list whether it was created all the same", err)
	}
	return err
}

// confirm shows what will be revoked. Without --yes, it asks the user to confirm.
func (c *creation) confirm(cmd *cobra.Command, b *brevetv1.BulkRevocation) error {
	fmt.Fprintf(cmd.ErrOrStderr(), "%s will be revoked for ever, reason %s: %s.\n", certificates(b.GetTotal()), output.Enum(b.GetReason()), selectionText(b.GetSelection()))
	if c.yes {
		return nil
	}
	return confirm(cmd, b.GetTotal(), "revoke")
}

// affectedBy returns how many certificates a bulk revocation affects.
func affectedBy(b *brevetv1.BulkRevocation) *brevetv1.AffectedCertificates {
	return &brevetv1.AffectedCertificates{Valid: b.GetTotal() - b.GetExpired(), Expired: b.GetExpired()}
}

func newRevocationList() *cobra.Command {
	var state string
	cmd := &cobra.Command{
		Use: "list", Short: "List the bulk revocations, the newest first", Args: cobra.NoArgs,
		Long: "list prints bulk revocations, and the changes of many certificates that suspending and resuming an identity makes.\n" +
			"The states are selecting (the server is finding the certificates), applying (it is changing the records) and done.",
		Example: "  brevet revocation list --state applying",
		RunE: func(cmd *cobra.Command, _ []string) error {
			n, err := enumNumber("--state", brevetv1.BulkRevocationState(0).Descriptor(), state)
			if err != nil {
				return err
			}
			req := &brevetv1.ListBulkRevocationsRequest{PageSize: listPage}
			if n != 0 {
				req.States = []brevetv1.BulkRevocationState{brevetv1.BulkRevocationState(n)}
			}
			return list(cmd, revocationHeading, func(ctx context.Context, conn *grpc.ClientConn, page string) ([]*brevetv1.BulkRevocation, string, error) {
				req.PageToken = page
				resp, err := brevetv1.NewRevocationServiceClient(conn).ListBulkRevocations(ctx, req)
				return resp.GetBulkRevocations(), resp.GetNextPageToken(), err
			}, printRevocation)
		},
	}
	output.Flag(cmd)
	stateFlag(cmd, &state)
	return cmd
}

func newRevocationShow() *cobra.Command {
	cmd := &cobra.Command{
		Use: "show ID", Short: "Show one bulk revocation, and how many records it has changed", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			p, err := output.New(cmd, revocationHeading...)
			if err != nil {
				return err
			}
			return client.Call(cmd, func(ctx context.Context, conn *grpc.ClientConn) error {
				resp, err := brevetv1.NewRevocationServiceClient(conn).GetBulkRevocation(ctx, &brevetv1.GetBulkRevocationRequest{Id: args[0]})
				if err != nil {
					return err
				}
				return errors.Join(printRevocation(p, resp.GetBulkRevocation()), p.Close())
			})
		},
	}
	output.Flag(cmd)
	return cmd
}

func newRevocationWatch() *cobra.Command {
	cmd := &cobra.Command{
		Use: "watch ID", Short: "Show the progress of a bulk revocation until it is done", Args: cobra.ExactArgs(1),
		Long: "watch shows how many records have changed, and ends when all have. Interrupting it stops only the watching.",
		RunE: func(cmd *cobra.Command, args []string) error {
			p, err := output.New(cmd, revocationHeading...)
			if err != nil {
				return err
			}
			found := false
			err = client.Call(cmd, func(ctx context.Context, conn *grpc.ClientConn) error {
				c := brevetv1.NewRevocationServiceClient(conn)
				resp, err := c.GetBulkRevocation(ctx, &brevetv1.GetBulkRevocationRequest{Id: args[0]})
				if err != nil {
					return err
				}
				found = true
				b, err := watch(ctx, cmd, c, resp.GetBulkRevocation())
				if err != nil {
					return err
				}
				return errors.Join(printRevocation(p, b), p.Close())
			})
			if err != nil && found {
				return fmt.Errorf("%w; the server goes on, and brevet revocation watch %s shows it again", err, args[0])
			}
			return err
		},
	}
	output.Flag(cmd)
	return cmd
}
