package operator

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/brevet-pki/brevet/internal/cli"
	"github.com/brevet-pki/brevet/internal/cli/client"
	"github.com/brevet-pki/brevet/internal/cli/output"
	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
)

// NewRotation returns brevet rotation, with subcommands that start, list, show and stop rotations.
func NewRotation() *cobra.Command {
	cmd := &cobra.Command{
		Use: "rotation", Short: "Have many certificates renewed early, at a chosen pace",
		Long: "A rotation makes the holders of certificates renew them over a chosen time, for instance before the issuing CA is\n" +
			"retired. It revokes nothing. Agents poll the server for the time of their renewal, at least every six hours. A\n" +
			"rotation is open until no certificate is due: each was renewed, has expired or is revoked.",
	}
	client.Flags(cmd)
	cmd.AddCommand(newRotationStart(), newRotationList(), newRotationShow(), newRotationStop())
	return cmd
}

var rotationHeading = []string{"ROTATION", "STATE", "CERTIFICATES", "RENEWED", "GONE", "DUE", "OVER", "STARTED", "STARTED BY", "SELECTION"}

// printRotation prints a rotation. With --dry-run it has no ID, and in a list an open one has no progress.
func printRotation(p *output.Printer, r *brevetv1.Rotation) error {
	id, state, started, renewed, gone, due := "-", "-", "-", "-", "-", "-"
	if r.GetId() != "" {
		id, state, started = r.GetId(), output.Enum(r.GetState()), r.GetStartTime().AsTime().UTC().Format(time.RFC3339)
	}
	if r.GetProgress() != nil {
		renewed, gone, due = fmt.Sprint(r.GetProgress().GetRenewed()), fmt.Sprint(r.GetProgress().GetGone()), fmt.Sprint(r.GetProgress().GetDue())
	}
	by := r.GetStartedBy()
	if by == "" {
		by = "-"
	}
	return p.Record(r, id, state, fmt.Sprint(r.GetAffected()), renewed, gone, due, r.GetOver().AsDuration().String(), started, by, selectionText(r.GetSelection()))
}

const rotationStartLong = `start begins the rotation of every certificate that the selection matches now. Certificates that are issued afterwards
are not rotated. Each certificate gets a time of its own in the period --over, so that renewals come at an even pace.
A holder that polls the server after its time renews at once. For an even pace, choose more than six hours.

Over a tenth of all living certificates, the number must be confirmed: start shows it and asks, or --confirm N says it.
--dry-run only counts.

%s`

// rotationStart holds the flags of brevet rotation start.
type rotationStart struct {
	selection selection
	over      time.Duration
	confirm   int64
	comment   string
	dryRun    bool
}

func newRotationStart() *cobra.Command {
	var s rotationStart
	cmd := &cobra.Command{
		Use: "start", Short: "Have every certificate that a selection matches renewed", Args: cobra.NoArgs,
		Long: fmt.Sprintf(rotationStartLong, selectionHelp),
		Example: "  brevet rotation start --label site=plant-7 --over 12h --dry-run\n" +
			"  brevet rotation start --issuer 5be1… --over 48h --confirm 48210 --comment 'the CA is retired in May'",
		RunE: func(cmd *cobra.Command, _ []string) error { return s.run(cmd) },
	}
	output.Flag(cmd)
	s.selection.flags(cmd)
	f := cmd.Flags()
	f.DurationVar(&s.over, "over", 0, "period over which the renewals are spread, such as 12h (1s to 2160h)")
	f.Int64Var(&s.confirm, "confirm", 0, "confirm that the command affects this number of certificates")
	f.BoolVar(&s.dryRun, "dry-run", false, "count what the selection matches, and change nothing")
	commentFlag(cmd, &s.comment)
	return cmd
}

// request returns the request to count the certificates.
func (s *rotationStart) request(cmd *cobra.Command) (*brevetv1.StartRotationRequest, error) {
	if !s.selection.given(cmd) {
		return nil, cli.WrongUse("say what to rotate with flags that select certificates, such as --label or --issuer")
	}
	if !cmd.Flags().Changed("over") {
		return nil, cli.WrongUse("say with --over how long the rotation may take, such as --over 12h")
	}
	sel, err := s.selection.read()
	return &brevetv1.StartRotationRequest{Selection: sel, Over: durationpb.New(s.over), Confirm: s.confirm, Comment: s.comment, DryRun: true}, err
}

func (s *rotationStart) run(cmd *cobra.Command) error {
	p, err := output.New(cmd, rotationHeading...)
	if err != nil {
		return err
	}
	req, err := s.request(cmd)
	if err != nil {
		return err
	}
	sent := false // whether the second request was sent, which is not a dry run, but not yet answered
	err = client.Call(cmd, func(ctx context.Context, conn *grpc.ClientConn) error {
		rpc := brevetv1.NewRotationServiceClient(conn)
		counted, err := rpc.StartRotation(ctx, req)
		if err != nil {
			return err
		}
		fmt.Fprintf(cmd.ErrOrStderr(), "%s of %d that are valid: %s.\n", certificates(counted.GetRotation().GetAffected()), counted.GetLiving(), selectionText(req.GetSelection()))
		if s.dryRun {
			return errors.Join(printRotation(p, counted.GetRotation()), p.Close())
		}
		if req.Confirm, err = s.confirmed(cmd, counted); err != nil {
			return err
		}
		req.DryRun, sent = false, true
		resp, err := rpc.StartRotation(ctx, req)
		if err != nil {
			return err
		}
		sent = false
		fmt.Fprintf(cmd.ErrOrStderr(), "The rotation has started. Next: brevet rotation show %s\n", resp.GetRotation().GetId())
		return errors.Join(printRotation(p, resp.GetRotation()), p.Close())
	})
	if err != nil && sent {
		return fmt.Errorf("%w; see with brevet rotation list whether it was started all the same", err)
	}
	return err
}

// confirmed returns the number of certificates that the user confirms. It asks if the number is needed and --confirm does
// not give it.
func (s *rotationStart) confirmed(cmd *cobra.Command, counted *brevetv1.StartRotationResponse) (int64, error) {
	n := counted.GetRotation().GetAffected()
	if !counted.GetNeedsConfirmation() || s.confirm != 0 {
		return s.confirm, nil
	}
	if !isTerminal(cmd.InOrStdin()) {
		return 0, cli.WrongUse(fmt.Sprintf("the rotation affects more than a tenth of the valid certificates, and standard input is not a terminal: add --confirm %d", n))
	}
	return n, confirm(cmd, n, "rotate")
}

func newRotationList() *cobra.Command {
	cmd := &cobra.Command{
		Use: "list", Short: "List the rotations, the newest first", Args: cobra.NoArgs,
		Long: "list prints rotations. The states are open, completed (none of the certificates is due) and stopped. brevet rotation\n" +
			"show counts the progress of an open one.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			req := &brevetv1.ListRotationsRequest{PageSize: listPage}
			return list(cmd, rotationHeading, func(ctx context.Context, conn *grpc.ClientConn, page string) ([]*brevetv1.Rotation, string, error) {
				req.PageToken = page
				resp, err := brevetv1.NewRotationServiceClient(conn).ListRotations(ctx, req)
				return resp.GetRotations(), resp.GetNextPageToken(), err
			}, printRotation)
		},
	}
	output.Flag(cmd)
	return cmd
}

func newRotationShow() *cobra.Command {
	cmd := rotationCommand("show ID", "Show one rotation, and how many certificates are renewed and due",
		func(ctx context.Context, c brevetv1.RotationServiceClient, id string) (*brevetv1.Rotation, error) {
			resp, err := c.GetRotation(ctx, &brevetv1.GetRotationRequest{Id: id})
			return resp.GetRotation(), err
		})
	cmd.Long = "show counts the certificates of the rotation. RENEWED are those whose identity got a newer one since. GONE are those\n" +
		"that expired or were revoked instead. DUE are the rest."
	return cmd
}

func newRotationStop() *cobra.Command {
	cmd := rotationCommand("stop ID", "Stop a rotation",
		func(ctx context.Context, c brevetv1.RotationServiceClient, id string) (*brevetv1.Rotation, error) {
			resp, err := c.StopRotation(ctx, &brevetv1.StopRotationRequest{Id: id})
			return resp.GetRotation(), err
		})
	cmd.Long = "Certificates that are not renewed yet get their usual times of renewal back. An agent may renew before its next\n" +
		"poll. Stopping a rotation that has ended changes nothing."
	return cmd
}

// rotationCommand returns a command that makes a request about one rotation and prints it.
func rotationCommand(use, short string, do func(context.Context, brevetv1.RotationServiceClient, string) (*brevetv1.Rotation, error)) *cobra.Command {
	cmd := &cobra.Command{
		Use: use, Short: short, Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			p, err := output.New(cmd, rotationHeading...)
			if err != nil {
				return err
			}
			return client.Call(cmd, func(ctx context.Context, conn *grpc.ClientConn) error {
				r, err := do(ctx, brevetv1.NewRotationServiceClient(conn), args[0])
				if err != nil {
					return err
				}
				return errors.Join(printRotation(p, r), p.Close())
			})
		},
	}
	output.Flag(cmd)
	return cmd
}
