package grpcapi

import (
	"context"
	"crypto/tls"
	"log/slog"
	"net"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/reflection"
	"google.golang.org/grpc/stats"

	"github.com/brevet-pki/brevet/pki"
	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
	"github.com/brevet-pki/brevet/server/admission"
	"github.com/brevet-pki/brevet/server/authz"
	"github.com/brevet-pki/brevet/server/handshake"
)

// Limits of the gRPC listener. The age of a connection is limited, because it keeps the certificate of its handshake.
const (
	maxMessage      = 256 << 10 // size of a message in bytes; a larger one is refused with the rule request.size
	maxReceived     = 1 << 20   // size of a message in bytes, also decompressed, above which gRPC itself refuses it
	maxHeaders      = 16 << 10  // size of an RPC's headers in bytes
	maxStreams      = 128       // concurrent RPCs on a connection
	window          = 64 << 10  // flow-control window in bytes; if it were not fixed, gRPC would send pings to adapt it
	readBuffer      = 4 << 10   // bytes, on top of the buffers of TLS; a request for a certificate fits into it
	connectionAge   = 30 * time.Minute
	connectionGrace = time.Minute
)

// Admission decides when an RPC may run, depending on its operation and its source. It is safe for concurrent use.
type Admission interface {
	// Admit counts an RPC whose headers have arrived, and refuses it if its source calls too often. refused is the error
	// by which the RPC is already refused, or nil. Admit returns its own refusal, or else refused. It does not block.
	Admit(op authz.Operation, from admission.Source, refused error) error
	// Enter waits until the RPC may run. The caller of Enter calls leave when the RPC has ended. Enter returns a refusal
	// if the RPC would wait for too long.
	Enter(ctx context.Context, op authz.Operation, from admission.Source, until time.Time) (leave func(), err error)
}

// Meter counts handshakes and RPCs with their results. It is safe for concurrent use.
type Meter interface {
	// Handshake counts a TLS handshake, which failed if err is not nil.
	Handshake(err error)
	// Call counts an RPC that has ended with a status. rpc is its full method, or "unknown" if the server does not have
	// the method. err is the error of the handler: nil, a refusal, or an error whose text the client does not get.
	Call(ctx context.Context, rpc string, code codes.Code, took time.Duration, err error)
	// Failure counts an RPC that failed because of the server. err is nil if the handler panicked.
	Failure(err error)
}

// RefusalLog records refusals. It is safe for concurrent use.
type RefusalLog interface {
	// Record records err if it is a refusal that is not recorded yet, and returns it. by and id name the caller; they are
	// zero if the caller is unknown.
	Record(ctx context.Context, by pki.Actor, id pki.SPIFFEID, err error) error
}

// Config holds the configuration of a Server. All fields except Stats are required.
type Config struct {
	// Certificate returns the server's newest certificate. Its chain includes the root, so that an agent that knows only
	// the root's fingerprint can verify the chain.
	Certificate func() (*tls.Certificate, error)
	Authorizer  *authz.Authorizer
	Admission   Admission
	// Handshakes limits how many handshakes use the CPU at the same time.
	Handshakes *admission.Queue
	Meter      Meter
	Refusals   RefusalLog
	// Stats traces calls; nil for no traces.
	Stats stats.Handler
	Log   *slog.Logger
}

// Services are the handlers of brevet.v1.
type Services struct {
	Enrollment   Enrollment
	Identities   Identities
	Tokens       Tokens
	Certificates Certificates
	Revocations  Revocations
	Rotations    Rotations
	CRLs         CRLs
	Log          Log
	Policies     Policies
	Accounts     Accounts
	Store        Store
}

// Server serves the gRPC API. Its methods are safe for concurrent use.
type Server struct {
	config   Config
	grpc     *grpc.Server
	health   *health.Server
	unread   *admission.FairLimit // RPCs whose first message has not arrived
	failures failureLog
	bulk     *bulk
	stopping chan struct{} // closed when the server stops
}

// New returns a Server. It accepts connections once Serve is called.
func New(c Config, services Services) *Server {
	s := &Server{
		config: c, health: health.NewServer(), unread: admission.NewFairLimit("calls without a message", maxUnread),
		failures: newFailureLog(), stopping: make(chan struct{}),
	}
	s.bulk = newBulk(s)
	services.Certificates.bulk, services.Log.stopping = s.bulk, s.stopping
	options := []grpc.ServerOption{
		grpc.Creds(boundedTLS{credentials.NewTLS(tlsConfig(c.Certificate)), c.Handshakes, c.Meter}),
		grpc.InTapHandle(s.tap), grpc.UnaryInterceptor(s.unary), grpc.StreamInterceptor(s.stream),
		grpc.UnknownServiceHandler(func(any, grpc.ServerStream) error { return authz.ErrNoOperation }), // tap refuses it first
		grpc.ForceServerCodecV2(codec{protobuf}), grpc.MaxRecvMsgSize(maxReceived),
		grpc.MaxHeaderListSize(maxHeaders), grpc.MaxConcurrentStreams(maxStreams), grpc.ConnectionTimeout(handshake.Timeout),
		grpc.StaticConnWindowSize(window), grpc.StaticStreamWindowSize(window), grpc.NumStreamWorkers(maxStreams),
		grpc.ReadBufferSize(readBuffer), // an open connection needs little memory
		grpc.KeepaliveParams(keepalive.ServerParameters{MaxConnectionAge: connectionAge, MaxConnectionAgeGrace: connectionGrace, Time: time.Minute}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 30 * time.Second, PermitWithoutStream: true}),
	}
	if c.Stats != nil {
		options = append(options, grpc.StatsHandler(c.Stats))
	}
	s.grpc = grpc.NewServer(options...)
	s.register(services)
	return s
}

func (s *Server) register(services Services) {
	r := serviceRegistrar{s.grpc, s}
	brevetv1.RegisterEnrollmentServiceServer(r, &services.Enrollment)
	brevetv1.RegisterIdentityServiceServer(r, &services.Identities)
	brevetv1.RegisterTokenServiceServer(r, &services.Tokens)
	brevetv1.RegisterCertificateServiceServer(r, &services.Certificates)
	brevetv1.RegisterRevocationServiceServer(r, &services.Revocations)
	brevetv1.RegisterRotationServiceServer(r, &services.Rotations)
	brevetv1.RegisterCRLServiceServer(r, &services.CRLs)
	brevetv1.RegisterLogServiceServer(r, &services.Log)
	brevetv1.RegisterPolicyServiceServer(r, &services.Policies)
	brevetv1.RegisterACMEServiceServer(r, &services.Accounts)
	brevetv1.RegisterStoreServiceServer(r, &services.Store)
	healthv1.RegisterHealthServer(r, s.health)
	reflection.Register(r)
}

// tlsConfig returns a configuration that requests a client certificate, but neither requires nor verifies it in the
// handshake. Package authz verifies it for each RPC and refuses the RPC with a typed error, while a failed handshake
// would give the client no reason.
func tlsConfig(certificate func() (*tls.Certificate, error)) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13, ClientAuth: tls.RequestClientCert,
		SessionTicketsDisabled: true, // resumption saves little, and would prolong the use of an old certificate
		NextProtos:             []string{"h2"},
		VerifyPeerCertificate:  handshake.CheckCertificates,
		GetCertificate:         func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return certificate() },
	}
}

// Serve serves the connections of a listener until the server stops.
func (s *Server) Serve(l net.Listener) error { return s.grpc.Serve(l) }

// SetServing makes the health service report that the server serves.
func (s *Server) SetServing() { s.health.SetServingStatus("", healthv1.HealthCheckResponse_SERVING) }

// IssueRequests returns how many issue requests of all streams are being processed, and their maximum.
func (s *Server) IssueRequests() (active, limit int) { return len(s.bulk.slots), cap(s.bulk.slots) }

// Shutdown closes the listeners and waits for the RPCs in flight. When ctx ends, it cancels the remaining RPCs.
// Shutdown waits until then if a stream never ends by itself, such as a watch of the health service, or if a client
// does not read a response.
func (s *Server) Shutdown(ctx context.Context) {
	close(s.stopping)
	s.health.Shutdown()
	drained := make(chan struct{})
	go func() { s.grpc.GracefulStop(); close(drained) }()
	select {
	case <-drained:
	case <-ctx.Done():
		s.grpc.Stop()
	}
}

// Close cancels all RPCs and stops the worker goroutines, which New starts even if Serve is never called.
func (s *Server) Close() { s.grpc.Stop() }
