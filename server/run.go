package server

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"runtime/debug"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"

	"github.com/brevet-pki/brevet/enroll"
	"github.com/brevet-pki/brevet/server/telemetry"
)

// Bounds of the listeners.
const (
	maxConnections = 4096     // on each of the ports for gRPC and HTTP
	maxProbes      = 64       // connections to the operations port
	maxHeaders     = 16 << 10 // bytes of an HTTP request's headers
)

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
	part(s.telemetry.WatchTokens)
	part(s.sweeper.Run)
	agents, stopAgents := context.WithCancel(failed)
	defer stopAgents()
	part(func(context.Context) error { return s.keepEnrolled(agents, s.own) })
	for _, d := range s.delegates {
		part(func(context.Context) error { return s.keepEnrolled(agents, d.Agent) })
		part(func(context.Context) error { return s.watchDelegate(agents, d) })
	}
	public := PublicHTTP(s.telemetry.HTTP(s.responder.Handler()))
	public.ErrorLog = slog.NewLogLogger(s.log.Handler(), slog.LevelWarn)
	public.BaseContext = func(net.Listener) context.Context { return parts }
	closeOperations := s.serveOperations(part)
	if s.caughtUp(ctx, failed) {
		debug.FreeOSMemory()  // what reading the statuses and linting the profiles took
		s.serving.Store(true) // the listeners hold who comes until they are served
		part(func(context.Context) error {
			return s.api.Serve(s.limit(s.config.GRPC, telemetry.PortGRPC, maxConnections))
		})
		part(func(context.Context) error {
			return public.Serve(s.limit(s.config.HTTP, telemetry.PortHTTP, maxConnections))
		})
		s.api.SetServing()
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
	s.telemetry.Close(context.WithoutCancel(ctx))
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
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
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
		Handler: s.telemetry.Operations(s.health), ReadHeaderTimeout: 10 * time.Second, ReadTimeout: 10 * time.Second,
		WriteTimeout: 30 * time.Second, IdleTimeout: time.Minute, MaxHeaderBytes: maxHeaders,
		ErrorLog: slog.NewLogLogger(s.log.Handler(), slog.LevelWarn),
	}
	part(func(context.Context) error {
		return operations.Serve(s.limit(s.config.Operations, telemetry.PortOperations, maxProbes))
	})
	return func() { _ = operations.Close() } // nobody is left to be told
}

// limit bounds the connections of a port, and counts them.
func (s *Server) limit(l net.Listener, port string, most int) net.Listener {
	open, refused := s.telemetry.Connections(port)
	return newSharedListener(l, most, open, refused)
}

// caughtUp waits until the responder knows every status, which callers and relying parties need, and the CRLs are
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
	err := s.drain(ctx, public)
	ctx, cancel := context.WithTimeout(ctx, stopPatience)
	defer cancel()
	s.auditor.Close(ctx)
	return errors.Join(err, s.authority.Close(ctx), s.sequencer.Sync(ctx))
}

func (s *Server) drain(ctx context.Context, public *http.Server) error {
	ctx, cancel := context.WithTimeout(ctx, drainPatience)
	defer cancel()
	s.api.Shutdown(ctx)
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
