package enroll

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
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
	return &Client{server}, nil
}

// Enroll sends the request with its evidence. It accepts a server only if it presents the root that the bootstrap
// names.
func (c *Client) Enroll(ctx context.Context, r EnrollRequest) (Credential, error) {
	return c.EnrollWith(ctx, r)
}

// EnrollWith is Enroll with further evidence. On the same connection, each prover first gets a challenge for the
// request. A repeated request gets new challenges, so that it is not refused because the first challenge is too old.
func (c *Client) EnrollWith(ctx context.Context, r EnrollRequest, provers ...Prover) (Credential, error) {
	evidence, err := wireEvidence(r.Evidence)
	if err != nil {
		return Credential{}, err
	}
	var answer *brevetv1.EnrollResponse
	server := c.serverOr(r.Bootstrap.Server)
	err = c.call(ctx, server, firstContactTLS(r.Bootstrap), func(ctx context.Context, s brevetv1.EnrollmentServiceClient) (err error) {
		proven, err := prove(ctx, s, r, provers)
		if err != nil {
			return err
		}
		answer, err = s.Enroll(ctx, &brevetv1.EnrollRequest{
			RequestId: r.RequestID.Bytes(), Evidence: append(evidence, proven...), Csr: r.CSR, Lifetime: wireLifetime(r.Lifetime),
			Identity: r.Identity,
		})
		return err
	})
	if err != nil {
		return Credential{}, err
	}
	credential, err := fromWire(server, answer.GetCredential())
	if err != nil {
		return Credential{}, err
	}
	named := func(root *x509.Certificate) bool { return sha256.Sum256(root.Raw) == r.Bootstrap.RootFingerprint }
	if !slices.ContainsFunc(credential.Roots, named) {
		return Credential{}, errors.New("the root that the token names is not among the roots of the " +
			"credential: make a new token")
	}
	return credential, nil
}

// Renew requests a certificate over a mutual-TLS connection that it authenticates with the current credential. If the
// server refuses a challenge for the Prover, Renew sends the request without evidence, because only the server knows
// whether the enrollment requires it.
func (c *Client) Renew(ctx context.Context, r RenewRequest) (Credential, error) {
	config := ClientTLS(func() *Pair { return r.Current })
	var answer *brevetv1.RenewResponse
	server := c.serverOr(r.Current.Origin.Server)
	err := c.call(ctx, server, config, func(ctx context.Context, s brevetv1.EnrollmentServiceClient) (err error) {
		req := &brevetv1.RenewRequest{RequestId: r.RequestID.Bytes(), Csr: r.CSR, Lifetime: wireLifetime(r.Lifetime)}
		if r.Prover != nil {
			proven, err := prove(ctx, s, EnrollRequest{RequestID: r.RequestID, CSR: r.CSR}, []Prover{r.Prover})
			if _, refused := pki.AsRefusal(CallError(server, err)); err != nil && !refused {
				return err
			}
			if err == nil {
				req.Evidence = proven[0]
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

// serverOr returns the configured address, or other if none is configured.
func (c *Client) serverOr(other string) string {
	if c.server != "" {
		return c.server
	}
	return other
}

// call connects to the server, calls do, and disconnects. If the verification of the server fails, gRPC reports the
// error only as text. Therefore call stores the error itself, and returns it as the cause.
func (*Client) call(ctx context.Context, server string, config *tls.Config,
	do func(context.Context, brevetv1.EnrollmentServiceClient) error,
) error {
	if err := CheckServer(server); err != nil {
		return fmt.Errorf("no server is known: set server in the configuration: %w", err)
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
	conn, err := grpc.NewClient("dns:///"+server,
		grpc.WithTransportCredentials(credentials.NewTLS(config)),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage)),
		grpc.WithMaxHeaderListSize(maxHeaders), grpc.WithDisableServiceConfig(), grpc.WithDisableRetry())
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

func wireEvidence(all []pki.Evidence) ([]*brevetv1.Evidence, error) {
	var wire []*brevetv1.Evidence
	for _, e := range all {
		switch e.Kind {
		case pki.EvidenceToken:
			wire = append(wire, &brevetv1.Evidence{Kind: &brevetv1.Evidence_Token{Token: &brevetv1.TokenEvidence{Secret: e.Value}}})
		case pki.EvidenceTPM:
			wire = append(wire, &brevetv1.Evidence{Kind: &brevetv1.Evidence_Tpm{Tpm: &brevetv1.TPMEvidence{Response: e.Value}}})
		case pki.EvidenceX5C:
			x, err := pki.ParseX5CEvidence(e.Value)
			if err != nil {
				return nil, err
			}
			wire = append(wire, &brevetv1.Evidence{Kind: &brevetv1.Evidence_X5C{X5C: &brevetv1.X5CEvidence{
				Certificates: x.Certificates, Challenge: x.Challenge, Signature: x.Signature,
			}}})
		case pki.EvidenceRecovery:
			r, err := pki.ParseRecoveryEvidence(e.Value)
			if err != nil {
				return nil, err
			}
			wire = append(wire, &brevetv1.Evidence{Kind: &brevetv1.Evidence_Recovery{Recovery: &brevetv1.RecoveryEvidence{
				IssuerId: r.IssuerID, Serial: r.Serial, PublicKey: r.PublicKey, Challenge: r.Challenge, Signature: r.Signature,
			}}})
		case pki.EvidenceJWT:
			wire = append(wire, &brevetv1.Evidence{Kind: &brevetv1.Evidence_Jwt{Jwt: &brevetv1.JWTEvidence{Token: e.Value}}})
		default:
			return nil, fmt.Errorf("this client cannot send evidence of the kind %s", e.Kind)
		}
	}
	return wire, nil
}

func fromWire(server string, c *brevetv1.Credential) (Credential, error) {
	if len(c.GetCertificate()) == 0 {
		return Credential{}, errors.New("the server's answer holds no certificate: update the agent or the " +
			"server")
	}
	credential, err := ParseCredential(c.GetCertificate(), c.GetChain().GetCertificates(), c.GetTrustBundle().GetRoots())
	credential.Server, credential.BundleRevision = server, hex.EncodeToString(c.GetTrustBundle().GetRevision())
	if w := c.GetRenewalWindow(); w.GetStartTime().IsValid() && w.GetEndTime().IsValid() {
		credential.Renewal = RenewalWindow{Start: w.GetStartTime().AsTime(), End: w.GetEndTime().AsTime()}
	}
	return credential, err
}
