package bench

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strconv"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/brevet-pki/brevet/enroll"
	"github.com/brevet-pki/brevet/internal/cli/node"
	"github.com/brevet-pki/brevet/pki"
	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
)

// exchangeMethod is the full name of the bare RPC.
const exchangeMethod = "/brevet.bench.Bare/Exchange"

// bytesValueOverhead is the size of a BytesValue beside its bytes: a tag, and a length of two bytes for 128 to 16383
// bytes.
const bytesValueOverhead = 3

// bareRPC is a process with a bare gRPC server, and the callers of its RPC. The server only responds.
type bareRPC struct {
	server  *bareServer
	callers []*caller
}

func (r *bareRPC) close() error {
	if r == nil {
		return nil
	}
	var err error
	for _, c := range r.callers {
		err = errors.Join(err, c.close())
	}
	return errors.Join(err, r.server.stop())
}

// openBareRPC starts a bare gRPC server with the certificate of the measured server, and connects callers with the
// operator's. Its messages have the sizes of a request for a certificate and of the response.
func (r *issueRig) openBareRPC(ctx context.Context, callers int) (rpc *bareRPC, err error) {
	dev := r.server.Dev
	operator, err := enroll.ReadPair(dev.OperatorDir())
	if err != nil {
		return nil, err
	}
	request, response, err := messageSizes(ctx, operator)
	if err != nil {
		return nil, fmt.Errorf("measure the messages of one certificate: %w", err)
	}
	server, err := r.startBareServer(ctx, "bare-rpc", "--credential", filepath.Join(dev.Dir, "own", "server"), "--size", strconv.Itoa(response))
	if err != nil {
		return nil, err
	}
	rpc = &bareRPC{server: server}
	bare := *operator
	bare.Origin.Server = server.address
	for range callers {
		c := &caller{pair: &bare, payload: make([]byte, max(0, request-bytesValueOverhead))}
		rpc.callers = append(rpc.callers, c)
		if err := c.open(ctx); err != nil {
			return nil, errors.Join(fmt.Errorf("connect to the bare gRPC server: %w", err), rpc.close())
		}
	}
	return rpc, nil
}

// messageSizes requests one certificate, and returns the sizes of request and response in bytes.
func messageSizes(ctx context.Context, operator *enroll.Pair) (request, response int, err error) {
	c := &caller{pair: operator, devices: &deviceSupply{prefix: "device/size"}}
	if err := c.open(ctx); err != nil {
		return 0, 0, err
	}
	defer func() { err = errors.Join(err, c.close()) }()
	id, err := newRequestID()
	if err != nil {
		return 0, 0, err
	}
	device, err := c.devices.next()
	if err != nil {
		return 0, 0, err
	}
	req := requestFor(id, device)
	resp, err := c.requestOne(ctx, req)
	if err != nil {
		return 0, 0, enroll.CallError(operator.Origin.Server, err)
	}
	if f := resp.GetError(); f != nil {
		return 0, 0, errors.New(f.GetMessage())
	}
	return proto.Size(req), proto.Size(resp), nil
}

// requestFor returns a request for a certificate of a device that is registered with it.
func requestFor(id pki.RequestID, device requestedDevice) *brevetv1.IssueCertificatesRequest {
	return &brevetv1.IssueCertificatesRequest{
		RequestId: id.Bytes(), Identity: device.id, Csr: device.csr, Registration: &brevetv1.IdentitySpec{Kind: brevetv1.IdentityKind_IDENTITY_KIND_DEVICE},
	}
}

// exchange makes one bare RPC, and returns its duration.
func (c *caller) exchange(ctx context.Context) (time.Duration, error) {
	begin := time.Now()
	var response wrapperspb.BytesValue
	err := c.conn.Invoke(ctx, exchangeMethod, wrapperspb.Bytes(c.payload), &response)
	return time.Since(begin), err
}

// exchangeOverNewConnection makes one bare RPC over a new connection.
func (c *caller) exchangeOverNewConnection(ctx context.Context) (time.Duration, error) {
	return c.newConnection(ctx, func(c *caller) error {
		_, err := c.exchange(ctx)
		return err
	})
}

// newBareRPC returns the hidden command that is the bare gRPC server of brevet-bench issue.
func newBareRPC() *cobra.Command {
	var credential string
	size := 0
	cmd := &cobra.Command{
		Use: "bare-rpc", Short: "Serve a bare RPC, for bench issue to compare with", Args: cobra.NoArgs, Hidden: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			pair, err := enroll.ReadPair(credential)
			if err != nil {
				return err
			}
			tls := enroll.PeerServerTLS(func() *enroll.Pair { return pair }, func(pki.SPIFFEID) error { return nil })
			s := grpc.NewServer(grpc.Creds(credentials.NewTLS(tls)))
			s.RegisterService(exchangeService(max(0, size-bytesValueOverhead)), nil)
			return serveBare(cmd, s)
		},
	}
	cmd.Flags().StringVar(&credential, "credential", "", "directory of the server's credential")
	cmd.Flags().IntVar(&size, "size", 0, "bytes of a response")
	return cmd
}

// serveBare serves on a free port until the context ends. It prints the address first.
func serveBare(cmd *cobra.Command, s *grpc.Server) error {
	ctx := cmd.Context()
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	node.BoundGarbage(ctx)
	defer context.AfterFunc(ctx, s.Stop)()
	fmt.Fprintln(cmd.OutOrStdout(), l.Addr())
	return s.Serve(l)
}

// exchangeService returns a service that responds to each request with size bytes.
func exchangeService(size int) *grpc.ServiceDesc {
	response := wrapperspb.Bytes(make([]byte, size))
	return &grpc.ServiceDesc{
		ServiceName: "brevet.bench.Bare",
		Methods: []grpc.MethodDesc{{
			MethodName: "Exchange",
			Handler: func(_ any, _ context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
				return response, decode(new(wrapperspb.BytesValue))
			},
		}},
	}
}
