package operator

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	"github.com/brevet-pki/brevet/internal/cli/client"
	"github.com/brevet-pki/brevet/internal/cli/file"
	"github.com/brevet-pki/brevet/internal/cli/output"
	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
)

// NewCRL returns brevet crl, with subcommands that list CRLs and import those of a root.
func NewCRL() *cobra.Command {
	cmd := &cobra.Command{Use: "crl", Short: "List the published CRLs, and import the root's"}
	client.Flags(cmd)
	cmd.AddCommand(newCRLList(), newCRLImport())
	return cmd
}

var crlHeading = []string{"ISSUER", "SCOPE", "NUMBER", "ENTRIES", "BYTES", "THIS UPDATE", "NEXT UPDATE", "PATH"}

// scopeOf describes the scope of a CRL: all certificates, those of a partition, or the changes since a base CRL.
func scopeOf(c *brevetv1.CRL) string {
	switch {
	case c.GetPartition() == 0:
		return "full"
	case c.GetDelta():
		return fmt.Sprintf("%d, delta to %s", c.GetPartition(), c.GetBaseNumber())
	default:
		return strconv.Itoa(int(c.GetPartition()))
	}
}

func printCRL(p *output.Printer, c *brevetv1.CRL) error {
	return p.Record(c, c.GetIssuerName(), scopeOf(c), c.GetNumber(), strconv.FormatInt(c.GetEntries(), 10), strconv.FormatInt(c.GetSize(), 10),
		c.GetThisUpdate().AsTime().UTC().Format(time.RFC3339), c.GetNextUpdate().AsTime().UTC().Format(time.RFC3339), c.GetPath())
}

func newCRLList() *cobra.Command {
	var issuer string
	cmd := &cobra.Command{
		Use: "list", Short: "List the CRLs that are published now", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			id, err := readHash("--issuer", issuer)
			if err != nil {
				return err
			}
			req := &brevetv1.ListCRLsRequest{PageSize: listPage, IssuerId: id}
			return list(cmd, crlHeading, func(ctx context.Context, conn *grpc.ClientConn, page string) ([]*brevetv1.CRL, string, error) {
				req.PageToken = page
				resp, err := brevetv1.NewCRLServiceClient(conn).ListCRLs(ctx, req)
				return resp.GetCrls(), resp.GetNextPageToken(), err
			}, printCRL)
		},
	}
	output.Flag(cmd)
	cmd.Flags().StringVar(&issuer, "issuer", "", "issuer ID of the CA, in hexadecimal")
	return cmd
}

func newCRLImport() *cobra.Command {
	cmd := &cobra.Command{
		Use: "import FILE", Short: "Publish a CRL that a ceremony signed (PEM or DER)", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			crl, err := file.ReadCRL(args[0])
			if err != nil {
				return err
			}
			p, err := output.New(cmd, crlHeading...)
			if err != nil {
				return err
			}
			return client.Call(cmd, func(ctx context.Context, conn *grpc.ClientConn) error {
				resp, err := brevetv1.NewCRLServiceClient(conn).ImportCRL(ctx, &brevetv1.ImportCRLRequest{Crl: crl.Raw})
				if err != nil {
					return err
				}
				return errors.Join(printCRL(p, resp.GetCrl()), p.Close())
			})
		},
	}
	output.Flag(cmd)
	return cmd
}
