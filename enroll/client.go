package enroll

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"slices"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/brevet-pki/brevet/pki"
	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
)

const (
	callTimeout = 30 * time.Second // timeout of one RPC, including the time to connect
	maxMessage  = 256 << 10        // maximum bytes of a response: a certificate, its chain and some roots
	maxHeaders  = 64 << 10         // maximum bytes of a response's headers, which contain the details of a refusal
)

// Client is an Authority that sends its requests to a server over gRPC. RPCs are rare, so it connects for each RPC, and
// authenticates the connection with the credential for that RPC. A Client is safe for concurrent use.
type Client struct {
	// Dial connects to the server at an address, for instance from a source address of the machine's choice. If it is nil,
	// the Client uses TCP, or the proxy in the environment.
	Dial func(ctx context.Context, address string) (net.Conn, error)

	server string
}

// NewClient returns a Client of the server at host:port. If the address is empty, the Client uses the address in the
// token or in the credential.
func NewClient(server string) (*Client, error) {
	if server != "" {
		if err := CheckServer(server); err != nil {
			return nil, err
		}
	}
	return &Client{server: server}, nil
}

// Enroll presents the evidence of the request and sends both, over one connection. It accepts a server only if it
// presents the root that the bootstrap names, or has a certificate under a root of the credential to recover.
func (c *Client) Enroll(ctx context.Context, r EnrollRequest) (Credential, error) {
	var answer *brevetv1.EnrollResponse
	server, config := c.serverOr(r.Bootstrap.Server), r.Bootstrap.TLS()
	if r.Expired != nil {
		config = AnonymousTLS(r.Expired.RootPool(), r.Expired.ID().TrustDomain())
	}
	err := c.call(ctx, server, config, func(ctx context.Context, s brevetv1.EnrollmentServiceClient) error {
		presented, err := r.Present(ctx, challenger{server, s})
		if err != nil {
			return err
		}
		evidence, err := wireEvidence(presented)
		if err != nil {
			return err
		}
		answer, err = s.Enroll(ctx, &brevetv1.EnrollRequest{
			RequestId: r.RequestID.Bytes(), Evidence: evidence, Csr: r.CSR, Lifetime: wireLifetime(r.Lifetime),
			Identity: r.Identity,
		})
		return err
	})
	if err != nil {
		return Credential{}, err
	}
	credential, err := fromWire(server, answer.GetCredential())
	if err != nil || r.Expired != nil {
		return credential, err
	}
	named := func(root *x509.Certificate) bool { return sha256.Sum256(root.Raw) == r.Bootstrap.RootFingerprint }
	if !slices.ContainsFunc(credential.Roots, named) {
		return Credential{}, errors.New("the expected root is not among the roots of the credential: make a new token, or " +
			"correct root_fingerprint")
	}
	return credential, nil
}

// Reach connects to a server with a TLS configuration, such as [Bootstrap.TLS], and disconnects. It returns the
// address: that of the client, or else the given one. It does not use a proxy.
func (c *Client) Reach(ctx context.Context, server string, config *tls.Config) (string, error) {
	server = c.serverOr(server)
	if err := checkKnown(server); err != nil {
		return server, err
	}
	if through := via(server); through != server {
		return server, fmt.Errorf("%s is not checked: this check does not use proxies", through)
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	config.NextProtos = []string{"h2"} // gRPC requires it
	dialer := tls.Dialer{Config: config}
	conn, err := dialer.DialContext(ctx, "tcp", server)
	if err != nil {
		return server, fmt.Errorf("connect to %s: %w", server, err)
	}
	return server, conn.Close()
}

// challenger is a Challenger over a connection to a server.
type challenger struct {
	server string
	client brevetv1.EnrollmentServiceClient
}

// Challenge implements Challenger.
func (c challenger) Challenge(ctx context.Context, r ChallengeRequest) ([]byte, error) {
	answer, err := c.client.CreateChallenge(ctx, &brevetv1.CreateChallengeRequest{
		Kind: wireKinds[r.Kind], RequestId: r.RequestID.Bytes(), KeyHash: r.KeyHash.Bytes(), PublicEvidence: r.Public,
	})
	return answer.GetChallenge(), CallError(c.server, err)
}

// Renew requests a certificate over a mutual-TLS connection that it authenticates with the current credential. If the
// server refuses a challenge for the evidence, Renew sends the request without evidence, because only the server knows
// whether the enrollment requires it.
func (c *Client) Renew(ctx context.Context, r RenewRequest) (Credential, error) {
	config := ClientTLS(func() *Pair { return r.Current })
	var answer *brevetv1.RenewResponse
	server := c.serverOr(r.Current.Origin.Server)
	err := c.call(ctx, server, config, func(ctx context.Context, s brevetv1.EnrollmentServiceClient) (err error) {
		req := &brevetv1.RenewRequest{RequestId: r.RequestID.Bytes(), Csr: r.CSR, Lifetime: wireLifetime(r.Lifetime)}
		if r.Evidence != nil {
			presented, err := r.present(ctx, challenger{server, s})
			if _, refused := pki.AsRefusal(err); err != nil && !refused {
				return err
			}
			if err == nil {
				evidence, err := wireEvidence([]pki.Evidence{presented})
				if err != nil {
					return err
				}
				req.Evidence = evidence[0]
			}
		}
		answer, err = s.Renew(ctx, req)
		return err
	})
	if err != nil {
		return Credential{}, err
	}
	return fromWire(server, answer.GetCredential())
}

// RenewalInfo sends its request over a mutual-TLS connection that it authenticates with the pair.
func (c *Client) RenewalInfo(ctx context.Context, p *Pair) (RenewalInfo, error) {
	var answer *brevetv1.GetRenewalInfoResponse
	err := c.call(ctx, c.serverOr(p.Origin.Server), ClientTLS(func() *Pair { return p }), func(ctx context.Context, s brevetv1.EnrollmentServiceClient) (err error) {
		answer, err = s.GetRenewalInfo(ctx, &brevetv1.GetRenewalInfoRequest{})
		return err
	})
	if err != nil {
		return RenewalInfo{}, err
	}
	window, ok := windowFromWire(answer.GetRenewalWindow())
	if !ok {
		return RenewalInfo{}, errors.New("the server's answer holds no renewal window: update the agent or the server")
	}
	return RenewalInfo{
		Window: window, BundleRevision: hex.EncodeToString(answer.GetTrustBundleRevision()), RetryAfter: max(0, answer.GetRetryAfter().AsDuration()),
	}, nil
}

// TrustBundle gets the trust bundle over a mutual-TLS connection that it authenticates with a credential. It accepts
// only a server whose certificate is under a root of that credential.
func (c *Client) TrustBundle(ctx context.Context, current *Pair) (TrustBundle, error) {
	server, config := c.serverOr(current.Origin.Server), ClientTLS(func() *Pair { return current })
	var answer *brevetv1.GetTrustBundleResponse
	err := c.call(ctx, server, config, func(ctx context.Context, s brevetv1.EnrollmentServiceClient) (err error) {
		answer, err = s.GetTrustBundle(ctx, &brevetv1.GetTrustBundleRequest{})
		return err
	})
	if err != nil {
		return TrustBundle{}, err
	}
	return ParseTrustBundle(answer.GetTrustBundle().GetRoots(), answer.GetTrustBundle().GetRevision())
}

// serverOr returns the configured address, or other if none is configured.
func (c *Client) serverOr(other string) string {
	if c.server != "" {
		return c.server
	}
	return other
}

// checkKnown returns an error if the server's address is missing or malformed.
func checkKnown(server string) error {
	if err := CheckServer(server); err != nil {
		return fmt.Errorf("no server is known: set server in the configuration: %w", err)
	}
	return nil
}

// call connects to the server, calls do, and disconnects. If the verification of the server fails, gRPC reports the
// error only as text. Therefore call stores the error itself, and returns it as the cause.
func (c *Client) call(ctx context.Context, server string, config *tls.Config,
	do func(context.Context, brevetv1.EnrollmentServiceClient) error,
) error {
	if err := checkKnown(server); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	distrust := make(chan error, 1)
	verify := config.VerifyConnection
	config.VerifyConnection = func(state tls.ConnectionState) error {
		err := verify(state)
		if err != nil {
			select {
			case distrust <- err:
			default:
			}
		}
		return err
	}
	options := []grpc.DialOption{
		grpc.WithTransportCredentials(credentials.NewTLS(config)),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage)),
		grpc.WithMaxHeaderListSize(maxHeaders), grpc.WithDisableServiceConfig(), grpc.WithDisableRetry(),
	}
	if c.Dial != nil {
		options = append(options, grpc.WithContextDialer(c.Dial))
	}
	conn, err := grpc.NewClient("dns:///"+server, options...)
	if err != nil {
		return fmt.Errorf("connect to %s: %w", server, err)
	}
	defer func() { _ = conn.Close() }()
	err = do(ctx, brevetv1.NewEnrollmentServiceClient(conn))
	if err == nil {
		return nil
	}
	select {
	case cause := <-distrust:
		return fmt.Errorf("%s is not to be trusted: %w", via(server), cause)
	default:
		return CallError(server, err)
	}
}

func wireLifetime(d time.Duration) *durationpb.Duration {
	if d == 0 {
		return nil
	}
	return durationpb.New(d)
}

func fromWire(server string, c *brevetv1.Credential) (Credential, error) {
	if len(c.GetCertificate()) == 0 {
		return Credential{}, errors.New("the server's answer holds no certificate: update the agent or the " +
			"server")
	}
	credential, err := ParseCredential(c.GetCertificate(), c.GetChain().GetCertificates(), c.GetTrustBundle().GetRoots())
	credential.Server, credential.BundleRevision = server, hex.EncodeToString(c.GetTrustBundle().GetRevision())
	credential.Renewal, _ = windowFromWire(c.GetRenewalWindow())
	return credential, err
}

// windowFromWire converts a renewal window. It returns false if a time is missing or invalid.
func windowFromWire(w *brevetv1.RenewalWindow) (RenewalWindow, bool) {
	if !w.GetStartTime().IsValid() || !w.GetEndTime().IsValid() {
		return RenewalWindow{}, false
	}
	return RenewalWindow{Start: w.GetStartTime().AsTime(), End: w.GetEndTime().AsTime()}, true
}
