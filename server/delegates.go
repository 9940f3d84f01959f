package server

import (
	"context"
	"crypto/x509"
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/enroll"
	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra"
)

// keysOfDelegates returns the key type of OCSP delegates: the first one in their profile.
func (s *Server) keysOfDelegates() (pki.KeyType, error) {
	profile, err := s.policy.Current().Profiles.Profile(ra.DelegateProfile)
	if err != nil {
		return "", err
	}
	return profile.Keys()[0], nil
}

// keepDelegate sets the OCSP delegate of a CA whose key no server has, or only this one had. The delegate was issued while the
// server had the key, and cannot be renewed. When it has expired, the server answers no OCSP requests for that CA.
func (s *Server) keepDelegate(cert *x509.Certificate) error {
	id := pki.IssuerOf(cert)
	pair, err := enroll.ReadPair(filepath.Join(s.config.Directory, delegateDirectory(id)))
	if errors.Is(err, enroll.ErrNoCredential) || errors.Is(err, fs.ErrNotExist) {
		return nil // the CA never had a delegate, like every root
	}
	if err != nil {
		return err
	}
	if pair.Expired(s.config.Clock()) {
		s.log.Warn("OCSP delegate of a CA without a key has expired, not answering OCSP for it", "issuer", cert.Subject.String())
		return nil
	}
	return s.responder.SetDelegate(id, pair.Certificate, pair.Key)
}

// delegateDirectory returns the name of the directory with a CA's OCSP delegate.
func delegateDirectory(id pki.IssuerID) string { return "va-" + id.Short() }

// RemoveDelegate removes the OCSP delegate of a CA from the directory of a server that is not running.
func RemoveDelegate(directory string, id pki.IssuerID) error {
	return os.RemoveAll(filepath.Join(directory, delegateDirectory(id)))
}

func (s *Server) enrollDelegate(ctx context.Context, iss ca.IssuingCA) error {
	id, err := pki.VAID(s.config.TrustDomain, iss.ID, s.config.Server)
	if err != nil {
		return err
	}
	r := &selfIdentity{id: id, actor: pki.ActorSystem("va"), registrar: s.registrar, authority: s.authority, renewals: s.rotations}
	if _, err := s.registrar.Reserve(ctx, id, ra.DelegateIdentity(iss.ID), r.actor); err != nil {
		return err
	}
	if s.delegateKeys, err = s.keysOfDelegates(); err != nil {
		return err
	}
	agent, err := s.agentFor(ctx, r, delegateDirectory(iss.ID), s.delegateKeys)
	if err != nil {
		return err
	}
	d := delegate{Agent: agent, issuer: iss.ID, subject: iss.Certificate.Subject.String()}
	s.delegates = append(s.delegates, d)
	s.useDelegate(d, agent.Pair()) // the first certificate, before the ports open; watchDelegate uses the later ones
	return nil
}

// delegate is the agent that renews the OCSP delegate of an issuing CA.
type delegate struct {
	*enroll.Agent
	issuer  pki.IssuerID
	subject string          // of the issuing CA
	remote  *remoteIdentity // nil if this server has the key of the CA
}

// watchDelegate gives the responder each new certificate of a delegate until the context ends.
func (s *Server) watchDelegate(ctx context.Context, d delegate) error {
	d.Watch(ctx, func(p *enroll.Pair) { s.useDelegate(d, p) })
	return nil
}

func (s *Server) useDelegate(d delegate, p *enroll.Pair) {
	if err := s.responder.SetDelegate(d.issuer, p.Certificate, p.Key); err != nil {
		s.log.Error("the OCSP delegate is unusable, the responder keeps the previous one", "issuer", d.issuer.String(), "error", err)
	}
}
