package operator

import (
	"context"
	"encoding/pem"
	"errors"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	"github.com/brevet-pki/brevet/internal/cli/client"
	"github.com/brevet-pki/brevet/internal/cli/output"
	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
)

// NewCert returns brevet cert: list, show and revoke certificates.
func NewCert() *cobra.Command {
	cmd := &cobra.Command{Use: "cert", Short: "List, show and revoke certificates"}
	client.Flags(cmd)
	cmd.AddCommand(newCertList(), newCertShow(), newCertRevoke())
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
	var identity string
	cmd := &cobra.Command{
		Use: "list", Short: "List the certificates, the newest first", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			p, err := output.New(cmd, certHeading...)
			if err != nil {
				return err
			}
			return client.Call(cmd, func(ctx context.Context, conn *grpc.ClientConn) error {
				c := brevetv1.NewCertificateServiceClient(conn)
				for req := certificatesOf(identity); ; {
					resp, err := c.ListCertificates(ctx, req)
					if err != nil {
						return err
					}
					for _, cert := range resp.GetCertificates() {
						if err := printCert(p, cert); err != nil {
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
	cmd.Flags().StringVar(&identity, "identity", "", "only this identity's")
	return cmd
}

// certificatesOf asks for the certificates of an identity; of all if it is empty.
func certificatesOf(identity string) *brevetv1.ListCertificatesRequest {
	req := &brevetv1.ListCertificatesRequest{PageSize: listPage}
	if identity != "" {
		req.Selection = &brevetv1.CertificateSelection{Identity: identity}
	}
	return req
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
