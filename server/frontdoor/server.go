package frontdoor

import (
	"bytes"
	"context"
	"crypto/tls"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"golang.org/x/time/rate"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/server/admission"
	"github.com/brevet-pki/brevet/server/authz"
	"github.com/brevet-pki/brevet/server/handshake"
	"github.com/brevet-pki/brevet/server/outcome"
)

// Limits of the listener.
const (
	maxHeaders    = 16 << 10 // size of a request's headers in bytes
	maxUnread     = 256      // requests of all sources whose body has not arrived; admission.FairLimit limits those of one source
	headerTimeout = 10 * time.Second
	readTimeout   = 20 * time.Second // for headers and body
	writeTimeout  = time.Minute
	idleTimeout   = 2 * time.Minute
	// maxAge is the age at which a connection ends with its next response, so that the server does not rely for long on
	// one proof of a client's key. Up to a tenth of it is random, so that clients do not reconnect together.
	maxAge = 30 * time.Minute
)

// Admission decides when a request may run, depending on its operation and its source. It is safe for concurrent use.
type Admission interface {
	// Admit counts a request whose headers have arrived, and refuses it if its source calls too often. refused is the error
	// by which the request is already refused, or nil. Admit returns its own refusal, or else refused. It does not block.
	Admit(op authz.Operation, from admission.Source, refused error) error
	// Enter waits until the request may run. The caller of Enter calls leave when the request has ended. Enter returns a
	// refusal if the request would wait for too long. until is when the caller's certificate expires; the zero time is unknown.
	Enter(ctx context.Context, op authz.Operation, from admission.Source, until time.Time) (leave func(), err error)
}

// Meter counts and traces handshakes and requests with their results. It is safe for concurrent use.
type Meter interface {
	// Start begins the trace of a request, and returns the request with the trace in its context. If the request is not
	// traced, it returns the request unchanged. The caller calls end after Request.
	Start(q *http.Request, handler string) (traced *http.Request, end func())
	// Handshake counts a TLS handshake, which failed if err is not nil.
	Handshake(err error)
	// Request counts a request that has ended. handler names the door and the operation. err is the error of the handler:
	// nil, a refusal, or an error whose text the client does not get.
	Request(ctx context.Context, handler string, status int, took time.Duration, err error)
	// Failure counts a request that failed because of the server. err is nil if the handler panicked.
	Failure(err error)
}

// RefusalLog records refusals. It is safe for concurrent use.
type RefusalLog interface {
	// Record records err if it is a refusal that is not recorded yet, and returns it. by and id name the caller; they are
	// zero if the caller is unknown.
	Record(ctx context.Context, by pki.Actor, id pki.SPIFFEID, err error) error
}

// Config holds the configuration of a Server. All fields are required.
type Config struct {
	// Certificate returns the server's newest certificate and its chain.
	Certificate func() (*tls.Certificate, error)
	Authorizer  *authz.Authorizer
	Admission   Admission
	// Handshakes limits how many handshakes use the CPU at the same time.
	Handshakes *admission.Queue
	Meter      Meter
	Refusals   RefusalLog
	Log        *slog.Logger
}

// Server serves doors. Its methods are safe for concurrent use.
type Server struct {
	config   Config
	http     *http.Server
	tls      *tls.Config
	unread   *admission.FairLimit
	failures map[string]*rate.Sometimes // limits the log messages of each handler
	maxAge   time.Duration              // of connections
}

// New returns a Server for doors, of which there is at least one. It accepts connections once Serve is called.
func New(c Config, doors ...Door) *Server {
	s := &Server{
		config: c, tls: tlsConfig(c.Certificate, doors),
		unread: admission.NewFairLimit("requests without a body", maxUnread), failures: map[string]*rate.Sometimes{}, maxAge: maxAge,
	}
	mux := http.NewServeMux()
	for _, d := range doors {
		for _, r := range d.Routes {
			h := handler{s, d, r, d.Name + "/" + string(r.Operation)}
			s.failures[h.name] = &rate.Sometimes{First: failuresEach, Interval: failureInterval}
			mux.Handle(r.Method+" "+r.Path, h)
		}
	}
	s.http = &http.Server{
		Handler: s.served(mux), ReadHeaderTimeout: headerTimeout, ReadTimeout: readTimeout, WriteTimeout: writeTimeout,
		IdleTimeout: idleTimeout, MaxHeaderBytes: maxHeaders, ErrorLog: slog.NewLogLogger(c.Log.Handler(), slog.LevelWarn),
		ConnContext: func(ctx context.Context, conn net.Conn) context.Context {
			return context.WithValue(ctx, peerKey{}, s.peerOf(conn))
		},
	}
	return s
}

// tlsConfig returns a configuration that requests a client certificate, but neither requires nor verifies it in the
// handshake, as the one of gRPC does. It accepts the oldest version that a door accepts. Sessions are not resumed: the
// handshake of each connection proves that the client has the key of its certificate.
func tlsConfig(certificate func() (*tls.Certificate, error), doors []Door) *tls.Config {
	oldest := uint16(tls.VersionTLS13)
	for _, d := range doors {
		oldest = min(oldest, d.MinVersion)
	}
	return &tls.Config{
		MinVersion: oldest, ClientAuth: tls.RequestClientCert, SessionTicketsDisabled: true, NextProtos: []string{"http/1.1"},
		VerifyPeerCertificate: handshake.CheckCertificates,
		// Clients such as strongSwan 5.9.8 read a response in two pieces, and each must be in one record.
		DynamicRecordSizingDisabled: true,
		GetCertificate:              func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return certificate() },
	}
}

// Serve serves the connections of a listener until the server stops. It then returns http.ErrServerClosed.
func (s *Server) Serve(l net.Listener) error {
	return s.http.Serve(handshake.Listen(l, s.tls, s.config.Handshakes, s.config.Meter.Handshake))
}

// Shutdown closes the listeners, and waits for the requests in flight. When ctx ends, it closes their connections.
func (s *Server) Shutdown(ctx context.Context) error {
	if err := s.http.Shutdown(ctx); err != nil {
		return s.http.Close()
	}
	return nil
}

// served returns a handler that responds to requests for which there is no route, and passes the others to the mux.
// Requests without a route count for the rate of their address. The last response of a connection says so.
func (s *Server) served(mux *http.ServeMux) http.Handler {
	return Drained(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		if peerIn(q.Context()).isOld() {
			w.Header().Set("Connection", "close")
		}
		// For a path that is not clean, the mux has a handler that redirects the client.
		found, _ := mux.Handler(q)
		route, ok := found.(handler)
		if !ok {
			s.serveOther(mux, w, q)
			return
		}
		q, end := s.config.Meter.Start(q, route.name)
		defer end()
		mux.ServeHTTP(w, q)
	}))
}

// serveOther responds to a request without a route.
func (s *Server) serveOther(mux *http.ServeMux, w http.ResponseWriter, q *http.Request) {
	begun, ctx, coded := time.Now(), q.Context(), &outcome.StatusWriter{ResponseWriter: w, Status: http.StatusOK}
	err := s.config.Admission.Admit("", peerIn(ctx).source(), nil)
	if err != nil {
		err = s.config.Refusals.Record(ctx, pki.Actor{}, pki.SPIFFEID{}, err)
		if after, ok := RetryAfter(err); ok {
			w.Header().Set("Retry-After", strconv.Itoa(after))
		}
		http.Error(coded, err.Error(), StatusOf(err))
	} else {
		mux.ServeHTTP(coded, q) // 404, 405 with the methods that are allowed, or a redirect to a clean path
	}
	s.config.Meter.Request(ctx, "other", coded.Status, time.Since(begun), err)
}

// peer is the client of a connection, as its handshake has shown it.
type peer struct {
	client    *authz.Client // its own certificate; nil if it sent none
	malformed error         // the refusal of its certificate, if that does not parse or has too many names
	chain     [][]byte
	address   net.Addr
	until     time.Time // when the connection is old
}

type peerKey struct{}

func peerIn(ctx context.Context) peer {
	p, _ := ctx.Value(peerKey{}).(peer)
	return p
}

// peerOf returns the peer of a connection. It clears the list of parsed certificates, which belongs to the connection: a
// certificate can take a hundred times as much memory as its DER.
func (s *Server) peerOf(conn net.Conn) peer {
	jitter := time.Duration(rand.Int64N(int64(s.maxAge)/10 + 1)) //nolint:gosec // not a secret
	p := peer{address: conn.RemoteAddr(), until: time.Now().Add(s.maxAge - jitter)}
	secured, ok := conn.(*tls.Conn)
	if !ok {
		return p
	}
	certificates := secured.ConnectionState().PeerCertificates
	for _, c := range certificates {
		p.chain = append(p.chain, bytes.Clone(c.Raw))
	}
	clear(certificates)
	if len(p.chain) > 0 {
		p.client, p.malformed = authz.NewClient(p.chain[0])
	}
	return p
}

// isOld reports whether the connection has reached its maximum age.
func (p peer) isOld() bool { return time.Now().After(p.until) }

func (p peer) source() admission.Source { return admission.Address(p.address) }

// from returns the client's address, and the zero Addr if it is not an IP address.
func (p peer) from() netip.Addr {
	if tcp, ok := p.address.(*net.TCPAddr); ok {
		return tcp.AddrPort().Addr().Unmap()
	}
	return netip.Addr{}
}

// versionName returns how configuration and messages call a version of TLS.
func versionName(v uint16) string { return strings.TrimPrefix(tls.VersionName(v), "TLS ") }
