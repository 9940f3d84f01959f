package server

import (
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"slices"
	"sync/atomic"
	"time"

	"github.com/brevet-pki/brevet/audit"
	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/enroll"
	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra"
	"github.com/brevet-pki/brevet/ra/token"
	"github.com/brevet-pki/brevet/revocation"
	"github.com/brevet-pki/brevet/revocation/crl"
	"github.com/brevet-pki/brevet/revocation/responder"
	"github.com/brevet-pki/brevet/server/grpcapi"
	"github.com/brevet-pki/brevet/server/telemetry"
	"github.com/brevet-pki/brevet/store/retention"
	"github.com/brevet-pki/brevet/translog"
)

// Config is what a Server is made of. All fields are needed.
type Config struct {
	TrustDomain string
	// Names are the DNS names and IP addresses that the server's own certificate carries.
	Names []string
	// Address is where enrollment tokens send agents, host:port.
	Address string
	// Directory keeps the server's own credentials: one directory for each of its roles.
	Directory string
	// CRLs says where CRLs lie.
	CRLs CRLs
	GRPC net.Listener
	HTTP net.Listener
	// Operations serves metrics and probes; nil for none.
	Operations net.Listener
	// Issuers sign certificates and CRLs; the last one is the current one. Authorities are all CA certificates that
	// are installed, roots included.
	Issuers     []ca.IssuingCA
	Authorities []*x509.Certificate
	// Retired are the CAs, with a key or without, from which nothing is issued any more.
	Retired  []pki.IssuerID
	Profiles map[string]*ca.Profile
	Stores   Stores
	Archive  *translog.Archive
	// Tokens hold the keys of the issuers.
	Tokens []telemetry.IssuingToken
	Disk   telemetry.Disk
	// Limits say how often callers may call.
	Limits Limits
	// OCSP says how relying parties are answered; the zero value is the default.
	OCSP OCSP
	// Retention is how long records stay in the store after the end of what they are about.
	Retention time.Duration
	// Traces says where traces of calls go; the zero value is nowhere.
	Traces telemetry.Traces
	Clock  func() time.Time
	Log    *slog.Logger
}

// CRLs says which CRLs the issuing CAs have, and which directories hold them, as in crl.Config.
type CRLs struct {
	Directory   string        // the server's own
	Directories []string      // further ones, for other web servers; none is fine
	Partitions  int           // as in ca.Config; zero is ca.DefaultPartitions
	MaxAge      time.Duration // as CRLMaxAge of responder.Config
}

// OCSP is how relying parties are answered, as in responder.Config.
type OCSP struct {
	MaxAge         time.Duration
	ExtendedRevoke bool
}

// Stores are the views of the store that the server's parts ask for.
type Stores struct {
	CA         ca.Journal
	RA         ra.Store
	Audit      audit.Store
	Retention  retention.Store
	Revocation revocation.Store
	CRLs       crl.Store
	Feed       responder.Feed
	Log        translog.Store
}

// How long a stopping server waits for calls in flight, and then for what they have written.
const (
	drainPatience = 5 * time.Second
	stopPatience  = 10 * time.Second
)

// Server is issuer, registration authority, validation authority and log in one process.
type Server struct {
	config      Config
	log         *slog.Logger
	sequencer   *translog.Sequencer
	responder   *responder.Responder
	authority   *ca.Authority
	auditor     *audit.Recorder
	registrar   *ra.Registrar
	crlUpdater  *crl.Updater
	revocations *revocation.Authority
	sweeper     *retention.Sweeper
	admissions  *admissions
	own         *enroll.Agent // the server's own certificate
	delegates   []delegate    // one OCSP key for each issuing CA
	api         *grpcapi.Server
	telemetry   *telemetry.Recorder
	health      *telemetry.Health
	closers     []io.Closer // the credential directories
	ready       func()
	stopping    chan struct{} // closed when the server stops
	serving     atomic.Bool
}

// New puts the parts together, settles what an earlier process left behind, and brings the archive up to date. It
// serves nothing yet. On an error, nothing is left running.
func New(ctx context.Context, c Config) (*Server, error) {
	if err := errors.Join(c.Limits.check(), c.checkTokens()); err != nil {
		return nil, err
	}
	s := &Server{config: c, log: c.Log, stopping: make(chan struct{})}
	var err error
	s.telemetry, err = telemetry.NewRecorder(ctx, telemetry.Config{
		Profiles: c.Profiles, Tokens: c.Tokens, Issuer: c.issuing(), Traces: c.Traces, Clock: c.Clock, Log: c.Log,
	})
	if err != nil {
		return nil, err
	}
	if err := s.assemble(ctx, c); err != nil {
		s.telemetry.Close(ctx)
		return nil, err
	}
	return s, nil
}

// assemble makes the parts.
func (s *Server) assemble(ctx context.Context, c Config) error {
	s.sequencer = translog.NewSequencer(c.Stores.Log, c.Archive, c.Log)
	if err := s.sequencer.Reconcile(ctx); err != nil {
		return err
	}
	var err error
	s.responder, err = responder.New(responder.Config{
		MaxAge: c.OCSP.MaxAge, CRLMaxAge: c.CRLs.MaxAge, ExtendedRevoke: c.OCSP.ExtendedRevoke, Meter: s.telemetry, Clock: c.Clock, Log: c.Log,
	})
	if err != nil {
		return err
	}
	for _, cert := range c.Authorities {
		if err := s.responder.AddIssuer(cert); err != nil {
			return err
		}
	}
	if s.crlUpdater, err = newCRLs(ctx, c, s.responder); err != nil {
		return err
	}
	s.revocations, err = revocation.New(revocation.Config{
		Store: c.Stores.Revocation, Observer: s.responder, CRLs: s.crlUpdater, Clock: c.Clock, Log: c.Log,
	})
	if err != nil {
		return err
	}
	s.sweeper, err = retention.NewSweeper(retention.Config{
		Store: c.Stores.Retention, Retention: c.Retention, Busy: func() bool { return s.authority.InFlight() > 0 }, Clock: c.Clock, Log: c.Log,
	})
	if err != nil {
		return err
	}
	s.authority, err = ca.New(ctx, ca.Config{
		IssuingCAs: c.Issuers, Profiles: c.Profiles, Partitions: c.CRLs.partitions(),
		Journal: s.telemetry.Journal(c.Stores.CA), Observer: pki.StatusObservers{s.responder, s.crlUpdater}, Meter: s.telemetry, Clock: c.Clock, Log: c.Log,
	})
	if err != nil {
		return err
	}
	s.auditor = audit.New(c.Stores.Audit, c.Clock, c.Log)
	s.registrar = ra.New(ra.Config{
		TrustDomain: c.TrustDomain, Store: c.Stores.RA, CA: s.authority, Superseder: superseder{s.revocations}, Retired: c.Retired,
		Authenticators: map[pki.EvidenceKind]ra.Authenticator{pki.EvidenceToken: token.New(c.Stores.RA)}, Clock: c.Clock, Auditor: s.auditor,
	})
	s.admissions = newAdmissions(c)
	if err := s.prepare(ctx); err != nil {
		return errors.Join(err, s.Close(ctx))
	}
	return nil
}

// newCRLs makes the updater of CRLs. It makes the distribution points durable that certificates will name, so it comes before
// the authority that issues them.
func newCRLs(ctx context.Context, c Config, publisher crl.Publisher) (*crl.Updater, error) {
	var signers []crl.Issuer
	for _, iss := range c.Issuers {
		signers = append(signers, crl.Issuer{Certificate: iss.Certificate, Signer: iss.Signer})
	}
	return crl.New(ctx, crl.Config{
		Issuers: signers, Elsewhere: elsewhere(c), Store: c.Stores.CRLs, Publisher: publisher,
		Directory: c.CRLs.Directory, Mirrors: c.CRLs.Directories, Points: pointsOf(c), Clock: c.Clock, Log: c.Log,
	})
}

func (c CRLs) partitions() int { return cmp.Or(c.Partitions, ca.DefaultPartitions) }

// pointsOf returns the distribution points that certificates will name. What earlier ones name is on record.
func pointsOf(c Config) []crl.Point {
	var points []crl.Point
	for _, iss := range c.Issuers {
		for _, name := range slices.Sorted(maps.Keys(c.Profiles)) {
			for n := range c.CRLs.partitions() {
				partition := uint16(n + 1)
				if url, delta := c.Profiles[name].CRLPoint(iss.ID, partition); url != "" {
					points = append(points, crl.Point{Issuer: iss.ID, Partition: partition, URL: url, DeltaURL: delta})
				}
			}
		}
	}
	return points
}

// trusted returns the CA certificates that callers' certificates may chain to: those that are installed. A generation
// without its key, and its root, are among them: what it issued is good until it expires.
func trusted(c Config) (roots, intermediates *x509.CertPool) {
	roots, intermediates = x509.NewCertPool(), x509.NewCertPool()
	for _, iss := range c.Issuers {
		roots.AddCert(iss.Root)
		for _, cert := range iss.Chain {
			intermediates.AddCert(cert)
		}
	}
	for _, cert := range elsewhere(c) {
		if ca.IsRoot(cert) {
			roots.AddCert(cert)
		} else {
			intermediates.AddCert(cert)
		}
	}
	return roots, intermediates
}

// elsewhere returns the CA certificates whose CRLs are signed in ceremonies and imported: those without a key here.
func elsewhere(c Config) []*x509.Certificate {
	return slices.DeleteFunc(slices.Clone(c.Authorities), func(cert *x509.Certificate) bool {
		return slices.ContainsFunc(c.Issuers, func(i ca.IssuingCA) bool { return i.ID == pki.IssuerOf(cert) })
	})
}

// prepare makes the server's own identities and the agents that enroll them, and the gRPC server on top.
func (s *Server) prepare(ctx context.Context) error {
	if err := s.enrollSelf(ctx); err != nil {
		return fmt.Errorf("server: prepare its own certificate: %w", err)
	}
	for _, iss := range s.config.Issuers {
		if now := s.config.Clock(); now.After(iss.Certificate.NotAfter) || now.Before(iss.Certificate.NotBefore) {
			// Everything it issued is expired with it, and nobody asks.
			s.log.Warn("an issuing CA is not valid now: OCSP does not answer for it", "issuer", iss.Certificate.Subject.String())
			continue
		}
		if err := s.enrollDelegate(ctx, iss); err != nil {
			return fmt.Errorf("server: prepare the OCSP delegate of %s: %w", iss.Certificate.Subject, err)
		}
	}
	for _, cert := range elsewhere(s.config) {
		if err := s.keepDelegate(cert); err != nil {
			return fmt.Errorf("server: keep the OCSP delegate of %s: %w", cert.Subject, err)
		}
	}
	s.api = s.newAPI()
	s.health = s.newHealth()
	s.telemetry.Register(s.newGauges())
	return nil
}

// OnReady sets what is called once the server serves. It must be called before Run.
func (s *Server) OnReady(f func()) { s.ready = f }

// Close releases what New opened, for a server that is not run.
func (s *Server) Close(ctx context.Context) error {
	if s.api != nil {
		s.api.Close()
	}
	if s.auditor != nil {
		s.auditor.Close(ctx)
	}
	s.telemetry.Close(ctx)
	return errors.Join(s.authority.Close(ctx), s.closeDirectories(), s.responder.Close())
}

func (s *Server) closeDirectories() error {
	var err error
	for _, c := range s.closers {
		err = errors.Join(err, c.Close())
	}
	return err
}

// operatorTokenLifetime is how long the token lives that a ceremony hands to an operator.
const operatorTokenLifetime = 24 * time.Hour

// OperatorToken registers an operator and makes a one-time token for enrolling as one, in the place of whoever has the
// name so far. It is for whoever runs this process, who holds the issuing key anyway.
func (s *Server) OperatorToken(ctx context.Context, name string, by pki.Actor) (string, error) {
	id, err := s.registrar.CreateIdentity(ctx, ra.NewIdentity{Name: name, Kind: pki.Operator}, by)
	if err != nil {
		return "", err
	}
	secret, _, err := s.registrar.CreateToken(ctx, id.ID, operatorTokenLifetime, true, by)
	if err != nil {
		return "", err
	}
	return s.tokenText(secret), nil
}

// tokenText is what an agent needs for its first contact.
func (s *Server) tokenText(secret pki.TokenSecret) string {
	return enroll.Token{Secret: secret, Bootstrap: enroll.Bootstrap{
		RootFingerprint: sha256.Sum256(s.authority.Current().Root.Raw), TrustDomain: s.config.TrustDomain, Server: s.config.Address,
	}}.Text()
}

// superseder revokes what an identity had before it enrolled anew.
type superseder struct{ revocations *revocation.Authority }

// Supersede implements ra.Superseder.
func (s superseder) Supersede(ctx context.Context, id pki.SPIFFEID, by pki.Actor) error {
	_, err := s.revocations.Apply(ctx, revocation.Change{
		Action: revocation.Revoke, Reason: pki.Superseded, Identity: id, Actor: by,
	})
	return err
}

// checkTokens refuses an issuing CA whose key is in no HSM token.
func (c Config) checkTokens() error {
	for _, iss := range c.Issuers {
		if !slices.ContainsFunc(c.Tokens, func(t telemetry.IssuingToken) bool { return slices.Contains(t.Issuers, iss.ID) }) {
			return fmt.Errorf("server: no token holds the key of %s", iss.Certificate.Subject)
		}
	}
	return nil
}

// issuing returns the CA that issues now; the zero ID if none is installed, which package ca refuses.
func (c Config) issuing() pki.IssuerID {
	if len(c.Issuers) == 0 {
		return pki.IssuerID{}
	}
	return c.Issuers[len(c.Issuers)-1].ID
}

// sessions returns how many signatures of the CA that issues now can be in its HSM token at once.
func (c Config) sessions() int {
	for _, t := range c.Tokens {
		if slices.Contains(t.Issuers, c.issuing()) {
			_, most := t.Calls()
			return most
		}
	}
	return 0
}
