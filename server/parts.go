package server

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/server/authz"
	"github.com/brevet-pki/brevet/server/frontdoor"
	"github.com/brevet-pki/brevet/server/grpcapi"
	"github.com/brevet-pki/brevet/server/telemetry"
	"github.com/brevet-pki/brevet/translog"
)

// newAuthorizer returns the Authorizer of callers, which gRPC and HTTPS share.
func (s *Server) newAuthorizer() *authz.Authorizer {
	c := s.config
	roots, intermediates := trusted(c)
	return authz.New(authz.Config{
		TrustDomain: c.TrustDomain, Roots: roots, Intermediates: intermediates,
		Statuses: s.responder, Identities: c.Stores.RA, Certificates: c.Stores.RA, Clock: c.Clock,
	})
}

// newDoors returns the HTTPS server.
func (s *Server) newDoors(ctx context.Context, authorizer *authz.Authorizer) (*frontdoor.Server, error) {
	var err error
	if s.acmeDoor, err = s.newACMEDoor(ctx); err != nil {
		return nil, err
	}
	return frontdoor.New(frontdoor.Config{
		Certificate: s.certificate, Authorizer: authorizer, Admission: s.admissions,
		Handshakes: s.admissions.queues[handshakes], Meter: s.telemetry, Refusals: s.auditor, Log: s.log,
	}, s.estDoor(), s.acmeDoor.Door()), nil
}

// newAPI returns the gRPC server.
func (s *Server) newAPI(authorizer *authz.Authorizer) *grpcapi.Server {
	c := s.config
	return grpcapi.New(grpcapi.Config{
		Certificate: s.certificate, Authorizer: authorizer,
		Admission: s.admissions, Handshakes: s.admissions.queues[handshakes], Meter: s.telemetry, Refusals: s.auditor,
		Stats: s.telemetry.StatsHandler(grpcapi.Traced), Log: s.log,
	}, grpcapi.Services{
		Enrollment:   grpcapi.Enrollment{Registrar: s.registrar, Authority: s.authority, Renewals: s.rotations},
		Identities:   grpcapi.Identities{Registrar: s.registrar, Revocations: s.revocations, Copied: s.copied},
		Tokens:       grpcapi.Tokens{Registrar: s.registrar, Text: s.tokenText},
		Certificates: grpcapi.Certificates{Registrar: s.registrar, Authority: s.authority},
		Revocations:  grpcapi.Revocations{Registrar: s.registrar, Revocations: s.revocations, TrustDomain: c.TrustDomain, Copied: s.copied},
		Rotations:    grpcapi.Rotations{Registrar: s.registrar, Manager: s.rotations},
		CRLs:         grpcapi.CRLs{Records: c.Stores.CRLs, Updater: s.crlUpdater, Authorities: c.Authorities},
		Log:          grpcapi.Log{Records: translog.Whole{Store: c.Stores.Log, Archive: c.Archive}, Sequencer: s.sequencer, Archive: c.Archive, Readings: s.admissions.queues[readings], Followers: s.admissions.queues[followers]},
		Policies:     grpcapi.Policies{Revisions: s.policy, Records: c.Stores.Policies, Clock: c.Clock},
		Accounts:     grpcapi.Accounts{Registrar: s.registrar, Authority: s.acme},
		Store:        grpcapi.Store{Records: c.Stores.Retention, Sweeper: s.sweeper, Files: c.Disk, Clock: c.Clock},
	})
}

// certificate returns the server's current certificate. Its chain includes every root that the chain leads to, because
// an agent with a token knows only the fingerprint of one.
func (s *Server) certificate() (*tls.Certificate, error) {
	pair := s.own.Pair()
	if pair == nil {
		return nil, errors.New("it has no certificate of its own yet")
	}
	chain, root := pair.Chain, pair.Root()
	if len(chain) > 0 {
		// The cross-certificates may have changed since the certificate was issued.
		if current, its, err := s.authority.Chain(pki.IssuerOf(chain[0])); err == nil {
			chain, root = current, its
		}
	}
	_, signers := s.authority.Trust().CrossOf(root)
	return pair.TLSWith(slices.Concat(chain, []*x509.Certificate{root}, signers)), nil
}

// newHealth returns the checks of the probes.
func (s *Server) newHealth() *telemetry.Health {
	c := s.config
	return telemetry.NewHealth(
		telemetry.NotFenced(s.authority),
		telemetry.Serving(s.serving.Load),
		telemetry.Following(s.responder, c.Clock),
		telemetry.Unexpired(s.own, c.Clock),
		telemetry.Readable(c.Stores.Log),
		s.telemetry.Signing(),
		s.telemetry.Writable(c.Disk),
	).Degraded(telemetry.Copying(c.Copy), telemetry.Renewing(s.crlUpdater), s.delegated)
}

// delegated checks that the server has a certificate with which it answers OCSP for each CA whose key another server has.
func (s *Server) delegated(context.Context) error {
	var missing []error
	for _, d := range s.delegates {
		if p := d.Pair(); d.remote == nil || p != nil && !p.Expired(s.config.Clock()) {
			continue
		}
		why := "no server with its key has issued the certificate of the delegate"
		if refusal := d.remote.refused.Load(); refusal != nil {
			why = "the server with its key has refused the certificate of the delegate: " + refusal.Error()
		}
		missing = append(missing, fmt.Errorf("OCSP for %s is answered with tryLater: %s", d.subject, why))
	}
	return errors.Join(missing...)
}

// newGauges returns the metrics that are computed at scrape time.
func (s *Server) newGauges() *telemetry.Gauges {
	c := s.config
	parts := []telemetry.Part{
		telemetry.OfHealth(s.health),
		telemetry.OfIssuing(s.authority),
		s.telemetry.OfHSMs(),
		telemetry.OfConnections(maxConnections),
		telemetry.OfResponder(s.responder),
		telemetry.OfQueues(s.admissions.byName()),
		telemetry.OfBulkIssuance(s.api),
		telemetry.Expiries{
			Authorities: c.Authorities, Issuing: s.authority, Own: s.ownCertificates,
			Records: c.Stores.CRLs, Publisher: s.crlUpdater, Clock: c.Clock,
		}.Part(),
		telemetry.OfUnsignedCRLs(c.Authorities, s.crlUpdater),
		telemetry.OfBulkRevocations(c.Stores.Revocation),
		telemetry.OfRotations(s.rotations),
		telemetry.OfLog(c.Archive, c.Stores.Log),
		telemetry.OfDisk(c.Disk),
		telemetry.OfRetention(c.Stores.Retention, s.sweeper),
	}
	if c.Copy != nil {
		parts = append(parts, telemetry.OfCopy(c.Copy))
	}
	if s.acmeDoor != nil {
		parts = append(parts, telemetry.OfValidations(s.acmeDoor))
	}
	return telemetry.NewGauges(parts...)
}

// ownCertificates returns the server's own certificates, keyed by kind: server, and va for OCSP delegates.
func (s *Server) ownCertificates() map[string][]*x509.Certificate {
	own := map[string][]*x509.Certificate{}
	if p := s.own.Pair(); p != nil {
		own["server"] = append(own["server"], p.Certificate)
	}
	for _, d := range s.delegates {
		if p := d.Pair(); p != nil {
			own["va"] = append(own["va"], p.Certificate)
		}
	}
	return own
}
