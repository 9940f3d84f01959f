package server

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"runtime/debug"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/reflection"

	"github.com/brevet-pki/brevet/enroll"
	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
)

// Bounds of the gRPC listener. A connection keeps the identity of its handshake, so it does not live for ever.
const (
	maxMessage       = 256 << 10 // of a message; a longer one is refused by name
	maxReceived      = 1 << 20   // of a message that gRPC reads at all, also after it has decompressed it
	maxHeaders       = 16 << 10
	maxStreams       = 128
	window           = 64 << 10 // octets that a connection may send ahead; fixed, or gRPC measures the line with a ping for each message
	maxConnections   = 4096     // on each of the ports for gRPC and HTTP
	maxProbes        = 64       // connections to the operations port
	connectionAge    = 30 * time.Minute
	connectionGrace  = time.Minute
	handshakeTimeout = 10 * time.Second
)

func (s *Server) newGRPC() *grpc.Server {
	g := grpc.NewServer(append(s.traces.serverOptions(),
		grpc.Creds(boundedTLS{credentials.NewTLS(s.tlsConfig()), s}),
		grpc.InTapHandle(s.tap), grpc.UnaryInterceptor(s.unary), grpc.StreamInterceptor(s.stream),
		grpc.UnknownServiceHandler(func(any, grpc.ServerStream) error { return errUnserved }), // tap refuses it first
		grpc.ForceServerCodecV2(codec{protobuf}), grpc.MaxRecvMsgSize(maxReceived),
		grpc.MaxHeaderListSize(maxHeaders), grpc.MaxConcurrentStreams(maxStreams), grpc.ConnectionTimeout(handshakeTimeout),
		grpc.StaticConnWindowSize(window), grpc.StaticStreamWindowSize(window), grpc.NumStreamWorkers(maxStreams),
		grpc.KeepaliveParams(keepalive.ServerParameters{MaxConnectionAge: connectionAge, MaxConnectionAgeGrace: connectionGrace, Time: time.Minute}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 30 * time.Second, PermitWithoutStream: true}),
	)...)
	services := gated{g, s}
	brevetv1.RegisterEnrollmentServiceServer(services, &enrollment{registrar: s.registrar, authority: s.authority, bulk: s.bulk})
	brevetv1.RegisterIdentityServiceServer(services, &identities{registrar: s.registrar, revocations: s.revocations, tokenText: s.tokenText})
	brevetv1.RegisterCertificateServiceServer(services, &certificates{registrar: s.registrar, revocations: s.revocations, trustDomain: s.config.TrustDomain})
	brevetv1.RegisterCRLServiceServer(services, &crls{
		store: s.config.Stores.CRLs, updater: s.crlUpdater, authorities: s.config.Authorities,
	})
	brevetv1.RegisterLogServiceServer(services, &logService{records: s.config.Stores.Log, sequencer: s.sequencer, archive: s.config.Archive, intake: s.intake})
	brevetv1.RegisterStoreServiceServer(services, &stores{records: s.config.Stores.Retention, sweeper: s.sweeper, disk: s.config.Disk, clock: s.config.Clock})
	s.health = health.NewServer()
	healthv1.RegisterHealthServer(services, s.health)
	reflection.Register(services)
	return g
}

// tlsConfig asks for a client certificate without demanding one: the gate refuses with a typed error, where a failed
// handshake would tell the client nothing. Every handshake gets the newest server certificate, with the root in its
// chain, so that an agent that knows nothing but the root's fingerprint can check it.
func (s *Server) tlsConfig() *tls.Config {
	base := &tls.Config{
		MinVersion: tls.VersionTLS13, ClientAuth: tls.RequestClientCert,
		SessionTicketsDisabled: true, // a resumed session would skip nothing here, but keep an old identity for longer
		NextProtos:             []string{"h2"},
		VerifyPeerCertificate:  checkCertificates,
	}
	base.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
		pair := s.own.Pair()
		if pair == nil {
			return nil, errors.New("server: no certificate of its own yet")
		}
		return pair.TLSWithRoot(), nil
	}
	return base
}

// Run serves until ctx ends, then finishes what is in flight and returns nil. It returns an error when a part that the
// others need has failed for good.
func (s *Server) Run(ctx context.Context) error {
	// The parts outlive ctx: calls in flight need them while the listeners stop.
	parts, stopParts := context.WithCancel(context.WithoutCancel(ctx))
	defer stopParts()
	group, failed := errgroup.WithContext(parts)
	part := func(run func(context.Context) error) { group.Go(func() error { return s.ended(failed, run(failed)) }) }
	part(s.sequencer.Run)
	part(func(ctx context.Context) error { return s.responder.Follow(ctx, s.config.Stores.Feed) })
	part(s.responder.Renew)
	part(s.crlUpdater.Run)
	part(s.revocations.Run)
	for _, t := range s.tokens {
		part(func(ctx context.Context) error { return s.watchToken(ctx, t) })
	}
	part(s.sweeper.Run)
	agents, stopAgents := context.WithCancel(failed)
	defer stopAgents()
	for _, a := range append([]*enroll.Agent{s.own}, s.delegates...) {
		part(func(context.Context) error { return s.keepEnrolled(agents, a) })
	}
	public := PublicHTTP(s.metrics.public(s.responder.Handler()))
	public.ErrorLog = slog.NewLogLogger(s.log.Handler(), slog.LevelWarn)
	public.BaseContext = func(net.Listener) context.Context { return parts }
	closeOperations := s.serveOperations(part)
	if s.caughtUp(ctx, failed) {
		debug.FreeOSMemory()  // what reading the statuses and linting the profiles took
		s.serving.Store(true) // the listeners hold who comes until they are served
		part(func(context.Context) error { return s.grpc.Serve(s.limit(s.config.GRPC, portGRPC, maxConnections)) })
		part(func(context.Context) error { return public.Serve(s.limit(s.config.HTTP, portHTTP, maxConnections)) })
		s.health.SetServingStatus("", healthv1.HealthCheckResponse_SERVING)
		if s.ready != nil {
			s.ready()
		}
		s.log.Info("serving", "grpc", s.config.GRPC.Addr().String(), "http", s.config.HTTP.Addr().String(), "trust_domain", s.config.TrustDomain)
	} else {
		_ = errors.Join(s.config.GRPC.Close(), s.config.HTTP.Close()) // nobody else will
	}
	select {
	case <-ctx.Done():
		s.log.Info("stopping: finishing what is in flight")
	case <-failed.Done():
	}
	stopAgents()
	err := s.stop(context.WithoutCancel(ctx), public)
	stopParts()
	s.traces.close(context.WithoutCancel(ctx), s.log)
	closeOperations() // as late as can be: a server that stops answers probes, as one that is not ready
	return errors.Join(group.Wait(), err, s.closeDirectories(), s.responder.Close())
}

// ended returns what a part of the server ended with, or nil for the orderly end of a part while the server stops. Parts
// start and stop in any order: one may be told to stop before its goroutine has run for the first time.
func (s *Server) ended(failed context.Context, err error) error {
	select {
	case <-s.stopping:
		return Orderly(err)
	case <-failed.Done():
		return Orderly(err)
	default:
		return err
	}
}

// Orderly returns nil for an error that only reports a requested stop, and any other error as it is. Of joined errors it
// returns those that report something else.
func Orderly(err error) error {
	if joined, ok := err.(interface{ Unwrap() []error }); ok { //nolint:errorlint // what wraps joined errors has words of its own
		var others []error
		for _, e := range joined.Unwrap() {
			others = append(others, Orderly(e))
		}
		return errors.Join(others...)
	}
	for _, end := range []error{context.Canceled, http.ErrServerClosed, grpc.ErrServerStopped} {
		if errors.Is(err, end) {
			return nil
		}
	}
	return err
}

// PublicHTTP is a server with the bounds of the public port. What is compared with a Server has the same.
func PublicHTTP(h http.Handler) *http.Server {
	return &http.Server{
		Handler: h, ReadHeaderTimeout: 10 * time.Second, ReadTimeout: 20 * time.Second,
		WriteTimeout: time.Minute, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: maxHeaders,
	}
}

// serveOperations serves the operations port, where there is one, and returns what ends it.
func (s *Server) serveOperations(part func(func(context.Context) error)) (end func()) {
	if s.config.Operations == nil {
		return func() {}
	}
	operations := &http.Server{
		Handler: s.operations(), ReadHeaderTimeout: 10 * time.Second, ReadTimeout: 10 * time.Second,
		WriteTimeout: 30 * time.Second, IdleTimeout: time.Minute, MaxHeaderBytes: maxHeaders,
		ErrorLog: slog.NewLogLogger(s.log.Handler(), slog.LevelWarn),
	}
	part(func(context.Context) error {
		return operations.Serve(s.limit(s.config.Operations, portOperations, maxProbes))
	})
	return func() { _ = operations.Close() } // nobody is left to be told
}

// limit bounds the connections of a port, and counts them.
func (s *Server) limit(l net.Listener, port string, most int) net.Listener {
	return newSharedListener(l, most, s.metrics.open.WithLabelValues(port), s.metrics.closed.WithLabelValues(port))
}

// caughtUp waits until the responder knows every status, which the gate and relying parties ask for, and the CRLs are
// published, or cannot be for now; it returns false when ctx ends or a part fails first.
func (s *Server) caughtUp(ctx, failed context.Context) bool {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for s.responder.CurrentAt().IsZero() || !s.crlUpdater.Ready() {
		select {
		case <-ctx.Done():
			return false
		case <-failed.Done():
			return false
		case <-tick.C:
		}
	}
	return true
}

// stop ends the listeners and the calls in flight, and then what they led to. Streams that never end by themselves,
// such as watching the health service, cost the first step its patience and the second one nothing.
func (s *Server) stop(ctx context.Context, public *http.Server) error {
	s.serving.Store(false)
	close(s.stopping)
	s.health.Shutdown()
	err := s.drain(ctx, public)
	ctx, cancel := context.WithTimeout(ctx, stopPatience)
	defer cancel()
	s.auditor.Close(ctx)
	return errors.Join(err, s.authority.Close(ctx), s.sequencer.Sync(ctx))
}

func (s *Server) drain(ctx context.Context, public *http.Server) error {
	ctx, cancel := context.WithTimeout(ctx, drainPatience)
	defer cancel()
	drained := make(chan struct{})
	go func() { s.grpc.GracefulStop(); close(drained) }()
	select {
	case <-drained:
	case <-ctx.Done():
		s.grpc.Stop()
	}
	if err := public.Shutdown(ctx); err != nil {
		return public.Close() // slow readers have had their time
	}
	return nil
}

// keepEnrolled runs an agent of the server's own. Its tokens are the server's to make, so it has no reason to give up.
func (s *Server) keepEnrolled(ctx context.Context, a *enroll.Agent) error {
	for ctx.Err() == nil {
		if err := a.Run(ctx); err != nil && ctx.Err() == nil {
			s.log.Error("a certificate of the server's own could not be renewed: trying again", "error", err)
			select {
			case <-ctx.Done():
			case <-time.After(time.Second):
			}
		}
	}
	return nil
}
