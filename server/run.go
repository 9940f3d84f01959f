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
	"github.com/brevet-pki/brevet/server/frontdoor"
	"github.com/brevet-pki/brevet/server/telemetry"
	"github.com/brevet-pki/brevet/translog"
)

// Limits of the listeners.
const (
	maxConnections = 4096     // connections to each of the ports for gRPC, HTTP and HTTPS
	maxProbes      = 64       // connections to the operations port
	maxHeaders     = 16 << 10 // size of an HTTP request's headers, in bytes
)

// Run serves until ctx ends, then completes the requests in flight and returns nil. It returns an error if a part that
// the server needs has failed permanently.
func (s *Server) Run(ctx context.Context) error {
	// The parts outlive ctx, because requests in flight need them while the listeners stop.
	parts, stopParts := context.WithCancel(context.WithoutCancel(ctx))
	defer stopParts()
	group, failed := errgroup.WithContext(parts)
	part := func(run func(context.Context) error) { group.Go(func() error { return s.ended(failed, run(failed)) }) }
	part(s.sequencer.Run)
	if s.config.Copy != nil {
		part(s.config.Copy.Run)
	}
	part(func(ctx context.Context) error { return s.responder.Follow(ctx, s.config.Stores.Feed) })
	part(s.responder.Renew)
	part(s.policy.Run)
	part(s.crlUpdater.Run)
	part(s.revocations.Run)
	part(s.rotations.Run)
	part(s.telemetry.WatchHSMs)
	part(s.sweeper.Run)
	agents, stopAgents := context.WithCancel(failed)
	defer stopAgents()
	part(func(context.Context) error { return s.keepEnrolled(agents, s.own) })
	for _, d := range s.delegates {
		part(func(context.Context) error { return s.keepDelegated(agents, d) })
		part(func(context.Context) error { return s.watchDelegate(agents, d) })
	}
	if s.config.Stores.Delegates != nil {
		part(func(context.Context) error { return s.answerDelegates(agents) })
	}
	public := PublicHTTP(s.telemetry.HTTP(s.responder.Handler()))
	public.ErrorLog = slog.NewLogLogger(s.log.Handler(), slog.LevelWarn)
	public.BaseContext = func(net.Listener) context.Context { return parts }
	closeOperations := s.serveOperations(part)
	if s.caughtUp(ctx, failed) {
		debug.FreeOSMemory() // returns the memory that was used to read the statuses and lint the profiles
		s.serving.Store(true)
		part(func(context.Context) error {
			return s.api.Serve(s.limit(s.config.GRPC, telemetry.PortGRPC, maxConnections))
		})
		part(func(context.Context) error {
			return public.Serve(s.limit(s.config.HTTP, telemetry.PortHTTP, maxConnections))
		})
		if s.doors != nil {
			part(func(context.Context) error {
				return s.doors.Serve(s.limit(s.config.HTTPS, telemetry.PortHTTPS, maxConnections))
			})
		}
		s.api.SetServing()
		if s.ready != nil {
			s.ready()
		}
		s.log.Info("serving", "grpc", s.config.GRPC.Addr().String(), "http", s.config.HTTP.Addr().String(), "trust_domain", s.config.TrustDomain)
	} else {
		s.closeListeners() // Serve, which would close them, is never called
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
	closeOperations() // last, so that /readyz reports that the server is stopping
	return errors.Join(group.Wait(), err, s.closeDirectories(), s.responder.Close())
}

func (s *Server) closeListeners() {
	for _, l := range []net.Listener{s.config.GRPC, s.config.HTTP, s.config.HTTPS} {
		if l != nil {
			_ = l.Close() // an error does not matter, because the server stops
		}
	}
}

// ended returns the error with which a part of the server ended. While the server stops, it returns nil for errors of
// an orderly stop. A part may be stopped before its goroutine has started, and then reports that stop as an error.
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

// Orderly returns nil for an error that only reports a requested stop, and any other error unchanged. From joined
// errors it removes those that report a requested stop.
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

// PublicHTTP returns an HTTP server with the limits of the public port. It is exported for benchmarks, which use the
// same limits.
func PublicHTTP(h http.Handler) *http.Server {
	return &http.Server{
		Handler: frontdoor.Drained(h), ReadHeaderTimeout: 10 * time.Second, ReadTimeout: 20 * time.Second,
		WriteTimeout: time.Minute, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: maxHeaders,
	}
}

// serveOperations serves the operations port, if it is configured, and returns a function that closes it.
func (s *Server) serveOperations(part func(func(context.Context) error)) (end func()) {
	if s.config.Operations == nil {
		return func() {}
	}
	operations := &http.Server{
		Handler: frontdoor.Drained(s.telemetry.Operations(s.health)), ReadHeaderTimeout: 10 * time.Second, ReadTimeout: 10 * time.Second,
		WriteTimeout: 30 * time.Second, IdleTimeout: time.Minute, MaxHeaderBytes: maxHeaders,
		ErrorLog: slog.NewLogLogger(s.log.Handler(), slog.LevelWarn),
	}
	part(func(context.Context) error {
		return operations.Serve(s.limit(s.config.Operations, telemetry.PortOperations, maxProbes))
	})
	return func() { _ = operations.Close() } // an error does not matter, because the server stops
}

// limit returns a listener that limits and counts the connections of a port.
func (s *Server) limit(l net.Listener, port string, most int) net.Listener {
	open, refused := s.telemetry.Connections(port)
	return newSharedListener(l, most, open, refused, s.log.With("port", port))
}

// caughtUp waits until the responder knows every status, and until the CRLs are published or publishing them has
// failed. It returns false if ctx ends or a part fails first.
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

// stop closes the listeners and waits up to drainTimeout for the requests in flight. Then it waits up to stopTimeout
// until certificates that are being issued, counts of refusals and log entries are written. A stream that never ends by
// itself, such as a watch of the health service, makes stop wait for the whole drainTimeout.
func (s *Server) stop(ctx context.Context, public *http.Server) error {
	s.serving.Store(false)
	close(s.stopping)
	err := s.drain(ctx, public)
	ctx, cancel := context.WithTimeout(ctx, stopTimeout)
	defer cancel()
	s.auditor.Close(ctx)
	err = errors.Join(err, s.authority.Close(ctx))
	if serr := s.sequencer.Sync(ctx); !errors.Is(serr, translog.ErrUnsequenced) { // the server that leads does it, or the next one to start
		err = errors.Join(err, serr)
	}
	if s.config.Copy != nil {
		_ = s.copied(ctx) // otherwise the next start copies the entries
	}
	return err
}

// drain closes the listeners for gRPC and HTTPS together, so that neither accepts requests while the other one drains.
func (s *Server) drain(ctx context.Context, public *http.Server) error {
	ctx, cancel := context.WithTimeout(ctx, drainTimeout)
	defer cancel()
	var draining errgroup.Group
	draining.Go(func() error { s.api.Shutdown(ctx); return nil })
	if s.doors != nil {
		draining.Go(func() error {
			defer s.acmeDoor.Close()
			return s.doors.Shutdown(ctx)
		})
	}
	err := draining.Wait()
	if public.Shutdown(ctx) != nil {
		return errors.Join(err, public.Close()) // ends the connections of slow clients
	}
	return err
}

// keepEnrolled runs the agent of one of the server's own certificates until ctx ends. It retries after every failure,
// because the server itself can create a new token for the agent.
func (s *Server) keepEnrolled(ctx context.Context, a *enroll.Agent) error {
	for ctx.Err() == nil {
		if err := a.Run(ctx); err != nil && ctx.Err() == nil {
			s.log.Error("renewing a certificate of the server failed, retrying", "error", err)
			select {
			case <-ctx.Done():
			case <-time.After(time.Second):
			}
		}
	}
	return nil
}
