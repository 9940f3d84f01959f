package enrollment

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"net"
	"os"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/protobuf/proto"

	"github.com/brevet-pki/brevet/enroll"
	"github.com/brevet-pki/brevet/pki"
	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
)

// Device is a device with evidence and the key to certify.
type Device struct {
	csr       []byte
	key       pki.KeyHash           // of the CSR
	challenge brevetv1.EvidenceKind // zero if the evidence responds to no challenge
	public    []byte                // what the challenge is made for; may be empty
	prove     func(request pki.RequestID, challenge []byte) (*brevetv1.Evidence, error)
}

// Client enrolls devices at one server. It is safe for concurrent use.
type Client struct {
	Server string // host:port
	// From is the source address. A server limits the concurrent enrollments of one address.
	From net.IP
	TLS  *tls.Config
}

// Exchange is what the server sent to a device.
type Exchange struct {
	Challenge []byte // nil if the evidence responds to no challenge
	Response  *brevetv1.EnrollResponse
}

const (
	callTimeout = 30 * time.Second // of one enrollment
	// window is the HTTP/2 flow-control window in bytes. It is fixed, because grpc's dynamic windows send a ping with
	// each response.
	window = 64 << 10
)

// Enroll requests a certificate for a device over a new TLS connection without a client certificate, and closes the
// connection.
func (c *Client) Enroll(ctx context.Context, d *Device) (Exchange, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: c.From}}
	conn, err := grpc.NewClient("passthrough:///"+c.Server, grpc.WithTransportCredentials(credentials.NewTLS(c.TLS)),
		grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) {
			return dialer.DialContext(ctx, "tcp", address)
		}),
		grpc.WithStaticConnWindowSize(window), grpc.WithStaticStreamWindowSize(window), grpc.WithDisableServiceConfig(), grpc.WithDisableRetry())
	if err != nil {
		return Exchange{}, err
	}
	made, err := request(ctx, brevetv1.NewEnrollmentServiceClient(conn), d)
	return made, errors.Join(enroll.CallError(c.Server, err), conn.Close())
}

// request makes the RPCs of one enrollment.
func request(ctx context.Context, server brevetv1.EnrollmentServiceClient, d *Device) (Exchange, error) {
	var made Exchange
	var random [16]byte
	_, _ = rand.Read(random[:]) // never fails
	id, err := pki.RequestIDFromBytes(random[:])
	if err != nil {
		return made, err
	}
	if d.challenge != 0 {
		c, err := server.CreateChallenge(ctx, &brevetv1.CreateChallengeRequest{
			Kind: d.challenge, RequestId: id.Bytes(), KeyHash: d.key.Bytes(), PublicEvidence: d.public,
		})
		if err != nil {
			return made, err
		}
		made.Challenge = c.GetChallenge()
	}
	evidence, err := d.prove(id, made.Challenge)
	if err != nil {
		return made, err
	}
	made.Response, err = server.Enroll(ctx, &brevetv1.EnrollRequest{
		RequestId: id.Bytes(), Evidence: []*brevetv1.Evidence{evidence}, Csr: d.csr,
	})
	if err == nil && len(made.Response.GetCredential().GetCertificate()) == 0 {
		err = errors.New("the server responded without a certificate")
	}
	return made, err
}

// Write writes the messages to two files, whose names begin with prefix.
func (e Exchange) Write(prefix string) error {
	response, err := proto.Marshal(e.Response)
	if err != nil {
		return err
	}
	return errors.Join(os.WriteFile(prefix+challengeFile, e.Challenge, 0o600), os.WriteFile(prefix+responseFile, response, 0o600))
}

const (
	challengeFile = ".challenge"
	responseFile  = ".response"
)

// ReadExchange reads what Write has written.
func ReadExchange(prefix string) (Exchange, error) {
	e := Exchange{Response: &brevetv1.EnrollResponse{}}
	response, err := os.ReadFile(prefix + responseFile)
	if err != nil {
		return e, err
	}
	if e.Challenge, err = os.ReadFile(prefix + challengeFile); err != nil {
		return e, err
	}
	return e, proto.Unmarshal(response, e.Response)
}

// bareService responds to every device with the same messages.
type bareService struct {
	brevetv1.UnimplementedEnrollmentServiceServer
	messages Exchange
}

// NewBareServer returns a server that responds to every device with the messages of another enrollment. Like Brevet's
// server, it requests a client certificate without requiring one.
func NewBareServer(certificate *tls.Certificate, messages Exchange) *grpc.Server {
	s := grpc.NewServer(grpc.Creds(credentials.NewTLS(&tls.Config{
		MinVersion: tls.VersionTLS13, ClientAuth: tls.RequestClientCert, SessionTicketsDisabled: true, NextProtos: []string{"h2"},
		Certificates: []tls.Certificate{*certificate},
	})))
	brevetv1.RegisterEnrollmentServiceServer(s, &bareService{messages: messages})
	return s
}

// CreateChallenge implements brevetv1.EnrollmentServiceServer.
func (s *bareService) CreateChallenge(context.Context, *brevetv1.CreateChallengeRequest) (*brevetv1.CreateChallengeResponse, error) {
	return &brevetv1.CreateChallengeResponse{Challenge: s.messages.Challenge}, nil
}

// Enroll implements brevetv1.EnrollmentServiceServer.
func (s *bareService) Enroll(context.Context, *brevetv1.EnrollRequest) (*brevetv1.EnrollResponse, error) {
	return s.messages.Response, nil
}
