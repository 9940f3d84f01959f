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
	"net"
	"slices"
	"sync/atomic"
	"time"

	"github.com/brevet-pki/brevet/audit"
	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/enroll"
	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra"
	"github.com/brevet-pki/brevet/ra/acme"
	"github.com/brevet-pki/brevet/ra/nonce"
	"github.com/brevet-pki/brevet/ra/policy"
	"github.com/brevet-pki/brevet/ra/revisions"
	"github.com/brevet-pki/brevet/revocation"
	"github.com/brevet-pki/brevet/revocation/crl"
	"github.com/brevet-pki/brevet/revocation/responder"
	"github.com/brevet-pki/brevet/revocation/rotation"
	acmedoor "github.com/brevet-pki/brevet/server/acme"
	"github.com/brevet-pki/brevet/server/frontdoor"
	"github.com/brevet-pki/brevet/server/grpcapi"
	"github.com/brevet-pki/brevet/server/telemetry"
	"github.com/brevet-pki/brevet/store/retention"
	"github.com/brevet-pki/brevet/translog"
)

// Config holds the configuration of a Server. All fields are required unless they say otherwise.
type Config struct {
	TrustDomain string
	// Server is the name of this server among those that share the store. It is empty if there is only one.
	Server string
	// Names are the DNS names and IP addresses in the server's own certificate.
	Names []string
	// Address is the address in enrollment tokens, at which agents reach the server: host:port.
	Address string
	// Directory holds the server's own credentials, in one directory for each of its identities.
	Directory string
	// CRLs configures the CRLs of the issuing CAs.
	CRLs CRLs
	GRPC net.Listener
	HTTP net.Listener
	// HTTPS is the listener for EST and ACME; nil for none.
	HTTPS net.Listener
	// HTTPSURL is the URL at which clients reach HTTPS, without a path. It may be empty if HTTPS is nil.
	HTTPSURL string
	// EST configures the door for EST; the zero value is the default.
	EST EST
	// Operations is the listener for metrics and probes; nil for none.
	Operations net.Listener
	// Issuers are the issuing CAs whose keys the server has. The last one is the current issuing CA.
	Issuers []ca.IssuingCA
	// Authorities are all installed CA certificates, including roots and CAs whose keys the server does not have.
	Authorities []*x509.Certificate
	// Retired are the CAs that no longer issue certificates, whether or not the server has their keys, and the roots
	// that are not in the trust bundle.
	Retired []pki.IssuerID
	// Cross are the installed cross-certificates.
	Cross []*x509.Certificate
	// PublicURL replaces {public_url} in the profiles. See [ca.NewProfile].
	PublicURL string
	Stores    Stores
	// MaxStaleness is for how long the server relies on the statuses that it has last read, if other servers use the same
	// store. Zero means that none does.
	MaxStaleness time.Duration
	Archive      *translog.Archive
	Copy         *translog.Copy // of Archive, or nil
	// HSMs hold the keys of Issuers.
	HSMs []telemetry.IssuingHSM
	Disk telemetry.Disk
	// Limits are the rate limits of callers.
	Limits Limits
	// OCSP configures OCSP responses; the zero value is the default.
	OCSP OCSP
	// ACME configures the ACME door.
	ACME ACME
	// Policy is the document of the first revision of the policy, in YAML. It has no effect if the store has a policy. Nil
	// means policy.Default.
	Policy []byte
	// EvidenceDirectory has the files of trust sources. See revisions.Files.
	EvidenceDirectory string
	// Retention is how long the store keeps the record of a certificate or token after its expiry.
	Retention time.Duration
	// Traces configures the export of traces; the zero value exports none.
	Traces telemetry.Traces
	Clock  func() time.Time
	Log    *slog.Logger
}

// CRLs configures the CRLs of the issuing CAs and the directories for them, as in [crl.Config].
type CRLs struct {
	Directory   string        // the directory of the server itself
	Directories []string      // mirrors for other web servers; may be empty
	Partitions  int           // see ca.Config; zero means ca.DefaultPartitions
	MaxAge      time.Duration // see CRLMaxAge of responder.Config
}

// OCSP configures OCSP responses, as in [responder.Config].
type OCSP struct {
	MaxAge         time.Duration
	ExtendedRevoke bool
}

// Stores holds the interfaces of the store. Each part of the server uses one of them.
type Stores struct {
	CA         ca.Journal
	RA         ra.Store
	Policies   ra.PolicyStore
	Nonces     nonce.Store
	ACME       acme.Store
	ACMENonces acmedoor.UsedNonces // of all servers of the store; nil if there is only one
	Audit      audit.Store
	Retention  retention.Store
	Revocation revocation.Store
	Rotations  rotation.Store
	CRLs       crl.Store
	Exchange   crl.Exchange     // nil if no other server can share the store
	Delegates  DelegateRequests // nil if no other server can share the store
	Feed       responder.Feed
	Log        translog.Store
}

// Timeouts of a stopping server.
const (
	drainTimeout = 5 * time.Second  // for the requests in flight
	stopTimeout  = 10 * time.Second // for the certificates and log entries that these requests caused
)

// Server runs issuer, registration authority, validation authority and log in one process.
type Server struct {
	config      Config
	log         *slog.Logger
	sequencer   *translog.Sequencer
	responder   *responder.Responder
	authority   *ca.Authority
	auditor     *audit.Recorder
	policy      *revisions.Revisions
	registrar   *ra.Registrar
	acme        *acme.Authority
	crlUpdater  *crl.Updater
	revocations *revocation.Authority
	rotations   *rotation.Manager
	sweeper     *retention.Sweeper
	admissions  *admissions
	own         *enroll.Agent // the server's own certificate
	delegates   []delegate    // the OCSP delegate of each issuing CA
	// delegateKeys is the type of the delegates' keys. It is empty until there is a delegate, and is not changed after New.
	delegateKeys pki.KeyType
	api          *grpcapi.Server
	doors        *frontdoor.Server // nil without HTTPS
	acmeDoor     *acmedoor.Door    // nil without HTTPS
	telemetry    *telemetry.Recorder
	health       *telemetry.Health
	closers      []io.Closer // the credential directories
	ready        func()
	stopping     chan struct{} // closed when the server stops
	serving      atomic.Bool
}

// New creates the server's parts, completes the unfinished work of an earlier process, and updates the archive. It does
// not serve yet. If it fails, it stops what it has started.
func New(ctx context.Context, c Config) (*Server, error) {
	if err := errors.Join(c.Limits.check(), c.checkHSMs(), c.checkShared()); err != nil {
		return nil, err
	}
	s := &Server{config: c, log: c.Log, stopping: make(chan struct{})}
	var err error
	s.telemetry, err = telemetry.NewRecorder(ctx, telemetry.Config{
		HSMs: c.HSMs, Issuer: c.issuing(), Traces: c.Traces, Clock: c.Clock, Log: c.Log,
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

// assemble creates the parts.
func (s *Server) assemble(ctx context.Context, c Config) error {
	s.sequencer = translog.NewSequencerWithCopy(c.Stores.Log, c.Archive, c.Copy, c.Log)
	if err := s.reconcile(ctx); err != nil {
		return err
	}
	var err error
	s.responder, err = responder.New(responder.Config{
		MaxAge: c.OCSP.MaxAge, CRLMaxAge: c.CRLs.MaxAge, MaxStaleness: c.MaxStaleness, ExtendedRevoke: c.OCSP.ExtendedRevoke,
		Meter: s.telemetry, Clock: c.Clock, Log: c.Log,
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
		Grace: func() time.Duration { return s.policy.Grace() }, // no change is made before there is a policy
	})
	if err != nil {
		return err
	}
	s.rotations, err = rotation.New(rotation.Config{Store: c.Stores.Rotations, Statuses: s.responder, Clock: c.Clock, Log: c.Log})
	if err != nil {
		return err
	}
	s.sweeper, err = retention.NewSweeper(retention.Config{
		Store: c.Stores.Retention, Entries: translog.NewRemover(c.Stores.Log, c.Archive), Retention: c.Retention,
		Busy: func() bool { return s.authority.InFlight() > 0 }, Clock: c.Clock, Log: c.Log,
	})
	if err != nil {
		return err
	}
	s.authority, err = ca.New(ctx, ca.Config{
		TrustDomain: c.TrustDomain, IssuingCAs: c.Issuers, Partitions: c.CRLs.partitions(),
		Trust:   ca.NewTrust(ca.TrustConfig{CAs: c.Authorities, Retired: c.Retired, Cross: c.Cross, Clock: c.Clock}),
		Journal: s.telemetry.Journal(c.Stores.CA), Observer: pki.StatusObservers{s.responder, s.crlUpdater}, Meter: s.telemetry, Clock: c.Clock, Log: c.Log,
	})
	if err != nil {
		return err
	}
	s.auditor = audit.New(c.Stores.Audit, c.Clock, c.Log)
	if s.policy, err = s.newPolicy(ctx); err != nil {
		return err
	}
	s.registrar = ra.New(ra.Config{
		TrustDomain: c.TrustDomain, Store: c.Stores.RA, CA: s.authority, Superseder: superseder{s.revocations}, Retired: c.Retired,
		Revision: s.policy.Current, Clock: c.Clock, Auditor: s.auditor,
	})
	if s.acme, err = s.newACME(ctx); err != nil {
		return err
	}
	s.admissions = newAdmissions(c)
	if err := s.prepare(ctx); err != nil {
		return errors.Join(err, s.Close(ctx))
	}
	return nil
}

// newPolicy returns the revisions of the policy. The key of challenges depends on the log epoch, which a restore changes.
func (s *Server) newPolicy(ctx context.Context) (*revisions.Revisions, error) {
	c := s.config
	nonces, err := nonce.New(ctx, c.Stores.Nonces, c.Archive.Epoch())
	if err != nil {
		return nil, err
	}
	first := c.Policy
	if first == nil {
		first = policy.Default()
	}
	return revisions.New(ctx, revisions.Config{
		Compiler: revisions.Compiler{
			TrustDomain: c.TrustDomain, PublicURL: c.PublicURL, Issuer: issuer{s}, Tokens: c.Stores.RA, Nonces: nonces,
			Certificates: c.Stores.RA, Retention: c.Retention, Orders: c.Stores.ACME,
			Files: revisions.NewFiles(c.EvidenceDirectory, c.Log), Clock: c.Clock, Log: c.Log,
		},
		Store: c.Stores.Policies, Identities: c.Stores.RA, First: first, Clock: c.Clock, Log: c.Log,
	})
}

// newCRLs returns the CRL updater.
func newCRLs(ctx context.Context, c Config, publisher crl.Publisher) (*crl.Updater, error) {
	var signers []crl.Issuer
	for _, iss := range c.Issuers {
		signers = append(signers, crl.Issuer{Certificate: iss.Certificate, Signer: iss.Signer})
	}
	return crl.New(ctx, crl.Config{
		Issuers: signers, Elsewhere: elsewhere(c), Store: c.Stores.CRLs, Exchange: c.Stores.Exchange, Publisher: publisher,
		Directory: c.CRLs.Directory, Mirrors: c.CRLs.Directories, Clock: c.Clock, Log: c.Log,
	})
}

func (c CRLs) partitions() int { return cmp.Or(c.Partitions, ca.DefaultPartitions) }

// trusted returns the installed CA certificates, to which callers' certificates may chain. They include CAs whose keys
// the server no longer has, and their roots, because certificates from those CAs are valid until they expire.
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

// elsewhere returns the CA certificates whose keys the server does not have. The CRLs of these CAs are signed in
// ceremonies and imported.
func elsewhere(c Config) []*x509.Certificate {
	return slices.DeleteFunc(slices.Clone(c.Authorities), func(cert *x509.Certificate) bool {
		return slices.ContainsFunc(c.Issuers, func(i ca.IssuingCA) bool { return i.ID == pki.IssuerOf(cert) })
	})
}

// prepare creates the server's own identities, the agents that enroll them, and the servers for gRPC and HTTPS.
func (s *Server) prepare(ctx context.Context) error {
	if err := s.enrollSelf(ctx); err != nil {
		return fmt.Errorf("prepare its own certificate: %w", err)
	}
	for _, iss := range s.config.Issuers {
		if now := s.config.Clock(); now.After(iss.Certificate.NotAfter) || now.Before(iss.Certificate.NotBefore) {
			// All certificates of the CA are expired or not valid yet, so relying parties request no status of them.
			s.log.Warn("issuing CA is not valid now, not answering OCSP for it", "issuer", iss.Certificate.Subject.String())
			continue
		}
		if err := s.enrollDelegate(ctx, iss); err != nil {
			return fmt.Errorf("prepare the OCSP delegate of %s: %w", iss.Certificate.Subject, err)
		}
	}
	if err := s.prepareElsewhere(); err != nil {
		return err
	}
	authorizer := s.newAuthorizer()
	s.api = s.newAPI(authorizer)
	if s.config.HTTPS != nil {
		var err error
		if s.doors, err = s.newDoors(ctx, authorizer); err != nil {
			return err
		}
	}
	s.health = s.newHealth()
	s.telemetry.Register(s.newGauges())
	return nil
}

// prepareElsewhere creates the OCSP delegates of the CAs whose keys the server does not have.
func (s *Server) prepareElsewhere() error {
	var awaited []*x509.Certificate // of other servers
	if s.config.Stores.Delegates != nil {
		awaited = s.crlUpdater.Awaited()
	}
	now := s.config.Clock()
	for _, cert := range elsewhere(s.config) {
		prepare := s.keepDelegate
		if slices.ContainsFunc(awaited, cert.Equal) && now.Before(cert.NotAfter) {
			prepare = s.requestDelegate
		}
		if err := prepare(cert); err != nil {
			return fmt.Errorf("prepare the OCSP delegate of %s: %w", cert.Subject, err)
		}
	}
	return nil
}

// OnReady sets a function that is called once the server serves. It must be called before Run.
func (s *Server) OnReady(f func()) { s.ready = f }

// Close releases the resources of a server for which Run is not called.
func (s *Server) Close(ctx context.Context) error {
	if s.api != nil {
		s.api.Close()
	}
	if s.acmeDoor != nil {
		s.acmeDoor.Close()
	}
	if s.auditor != nil {
		s.auditor.Close(ctx)
	}
	if s.policy != nil {
		s.policy.Close()
	}
	s.telemetry.Close(ctx)
	if s.config.Copy != nil {
		_ = s.config.Copy.Close() // all that was copied is durable
	}
	return errors.Join(s.authority.Close(ctx), s.closeDirectories(), s.responder.Close())
}

func (s *Server) closeDirectories() error {
	var err error
	for _, c := range s.closers {
		err = errors.Join(err, c.Close())
	}
	return err
}

// operatorTokenLifetime is the lifetime of a token that a ceremony creates for an operator.
const operatorTokenLifetime = 24 * time.Hour

// OperatorToken registers an admin and creates a one-time token that enrolls it. If there is an admin with this name,
// and no other role, the token replaces its credential. The method checks no authorization: its user runs this process,
// and can use the issuing key anyway.
func (s *Server) OperatorToken(ctx context.Context, name string, by pki.Actor) (string, error) {
	id, err := s.registrar.CreateIdentity(ctx, ra.NewIdentity{Name: name, Kind: pki.Operator, Roles: pki.RolesOf(pki.RoleAdmin)}, by)
	if err != nil {
		return "", err
	}
	secret, _, err := s.registrar.CreateToken(ctx, ra.NewToken{Identity: id.ID, Lifetime: operatorTokenLifetime, Replace: true}, by)
	if err != nil {
		return "", err
	}
	return s.tokenText(secret), nil
}

// tokenText returns the text of an enrollment token: the secret, and the data for the agent's first connection.
func (s *Server) tokenText(secret pki.TokenSecret) string {
	return enroll.Token{Secret: secret, Bootstrap: enroll.Bootstrap{
		RootFingerprint: sha256.Sum256(s.authority.Current().Root.Raw), TrustDomain: s.config.TrustDomain, Server: s.config.Address,
	}}.Text()
}

// superseder revokes the certificates of an identity that enrolls again.
type superseder struct{ revocations *revocation.Authority }

// Supersede implements ra.Superseder.
func (s superseder) Supersede(ctx context.Context, id pki.SPIFFEID, by pki.Actor) error {
	_, err := s.revocations.Apply(ctx, revocation.Change{
		Action: revocation.Revoke, Reason: pki.Superseded, Identity: id, Actor: by,
	})
	return err
}

// checkHSMs returns an error if the key of an issuing CA is in no HSM.
func (c Config) checkHSMs() error {
	for _, iss := range c.Issuers {
		if !slices.ContainsFunc(c.HSMs, func(t telemetry.IssuingHSM) bool { return slices.Contains(t.Issuers, iss.ID) }) {
			return fmt.Errorf("no token holds the key of %s", iss.Certificate.Subject)
		}
	}
	return nil
}

// checkShared returns an error if other servers use the store, and this one would not share with them what it must.
func (c Config) checkShared() error {
	if c.MaxStaleness > 0 && (c.Stores.Exchange == nil || c.Stores.ACMENonces == nil) {
		return errors.New("other servers use the store: the server needs its exchange of CRLs and its nonces of ACME")
	}
	return nil
}

// issuing returns the ID of the current issuing CA. It is zero if there is none; package ca then refuses the
// configuration.
func (c Config) issuing() pki.IssuerID {
	if len(c.Issuers) == 0 {
		return pki.IssuerID{}
	}
	return c.Issuers[len(c.Issuers)-1].ID
}

// sessions returns the maximum number of concurrent signatures of the current issuing CA in its HSM.
func (c Config) sessions() int {
	for _, t := range c.HSMs {
		if slices.Contains(t.Issuers, c.issuing()) {
			_, most := t.Calls()
			return most
		}
	}
	return 0
}
