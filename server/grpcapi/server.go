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
)

// Bounds of the gRPC listener. A connection keeps the identity of its handshake, so its age is bounded.
const (
	maxMessage       = 256 << 10 // bytes of a message; a longer one is refused by name
	maxReceived      = 1 << 20   // bytes of a message that gRPC reads at all, also after it has decompressed it
	maxHeaders       = 16 << 10  // bytes
	maxStreams       = 128
	window           = 64 << 10 // bytes that a connection may send ahead; fixed, or gRPC measures the line with a ping for each message
	connectionAge    = 30 * time.Minute
	connectionGrace  = time.Minute
	handshakeTimeout = 10 * time.Second
)

// Admission decides when a call may work, by its operation and its source. It is safe for concurrent use.
type Admission interface {
	// Admit counts a call whose headers have arrived, and refuses it if its source calls too often. The call may be
	// refused already: then Admit returns that refusal, or its own. It does not block.
	Admit(op authz.Operation, from admission.Source, refused error) error
	// Enter waits until the call may work, and returns what to call when it has ended. It returns a refusal if the call
	// would wait for too long.
	Enter(ctx context.Context, op authz.Operation, from admission.Source) (leave func(), err error)
}

// Meter counts what becomes of handshakes and calls. It is safe for concurrent use.
type Meter interface {
	// Handshake counts a TLS handshake, which failed if err is not nil.
	Handshake(err error)
	// Call counts a call that has ended with a status. The RPC is one that is served, or "unknown". err is what the
	// handler returned: nil, a refusal, or an error whose text the caller does not see.
	Call(ctx context.Context, rpc string, code codes.Code, took time.Duration, err error)
	// Failure counts a call that failed through the server's own fault. err is nil if the call panicked.
	Failure(err error)
}

// RefusalLog records refusals. It is safe for concurrent use.
type RefusalLog interface {
	// Record records err if it is a refusal that is not recorded yet, and returns it. If the caller is known, by and id name it.
	Record(ctx context.Context, by pki.Actor, id pki.SPIFFEID, err error) error
}

// Config holds what the front door needs from the server that it belongs to. All fields are needed, except Stats.
type Config struct {
	// Certificate returns the server's newest certificate, with the root in its chain. So an agent that knows only the
	// root's fingerprint can check it.
	Certificate func() (*tls.Certificate, error)
	Authorizer  *authz.Authorizer
	Admission   Admission
	// Handshakes bounds the handshakes that compute at once.
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
	CRLs         CRLs
	Log          Log
	Store        Store
}

// Server is the front door over gRPC. Its methods are safe for concurrent use.
type Server struct {
	config   Config
	grpc     *grpc.Server
	health   *health.Server
	unread   *admission.FairLimit // calls whose message has not arrived
	failures failureLog
	bulk     *bulk
	stopping chan struct{} // closed when the server stops
}

// New returns a server that serves nothing yet.
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
		grpc.UnknownServiceHandler(func(any, grpc.ServerStream) error { return authz.ErrUnserved }), // tap refuses it first
		grpc.ForceServerCodecV2(codec{protobuf}), grpc.MaxRecvMsgSize(maxReceived),
		grpc.MaxHeaderListSize(maxHeaders), grpc.MaxConcurrentStreams(maxStreams), grpc.ConnectionTimeout(handshakeTimeout),
		grpc.StaticConnWindowSize(window), grpc.StaticStreamWindowSize(window), grpc.NumStreamWorkers(maxStreams),
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
	g := gated{s.grpc, s}
	brevetv1.RegisterEnrollmentServiceServer(g, &services.Enrollment)
	brevetv1.RegisterIdentityServiceServer(g, &services.Identities)
	brevetv1.RegisterTokenServiceServer(g, &services.Tokens)
	brevetv1.RegisterCertificateServiceServer(g, &services.Certificates)
	brevetv1.RegisterRevocationServiceServer(g, &services.Revocations)
	brevetv1.RegisterCRLServiceServer(g, &services.CRLs)
	brevetv1.RegisterLogServiceServer(g, &services.Log)
	brevetv1.RegisterStoreServiceServer(g, &services.Store)
	healthv1.RegisterHealthServer(g, s.health)
	reflection.Register(g)
}

// tlsConfig asks for a client certificate without demanding one: a call without a good one is refused with a typed error,
// while a failed handshake would tell the client nothing.
func tlsConfig(certificate func() (*tls.Certificate, error)) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13, ClientAuth: tls.RequestClientCert,
		SessionTicketsDisabled: true, // a resumed session would skip nothing here, but keep an old identity for longer
		NextProtos:             []string{"h2"},
		VerifyPeerCertificate:  checkCertificates,
		GetCertificate:         func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return certificate() },
	}
}

// Serve serves the connections of a listener until the server stops.
func (s *Server) Serve(l net.Listener) error { return s.grpc.Serve(l) }

// SetServing has the health service say that the server serves.
func (s *Server) SetServing() { s.health.SetServingStatus("", healthv1.HealthCheckResponse_SERVING) }

// Orders returns how many orders of all streams are being carried out, and how many can be at once.
func (s *Server) Orders() (working, limit int) { return len(s.bulk.places), cap(s.bulk.places) }

// Shutdown ends the listeners and waits for the calls in flight. When ctx ends it cancels those that are left. Streams that
// never end by themselves, such as those that watch the health service, and responses that a client does not read cost it
// all of that time.
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

// Close cancels all calls and ends the workers, also of a server that has served nothing.
func (s *Server) Close() { s.grpc.Stop() }
