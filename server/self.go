package server

import (
	"context"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/enroll"
	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra"
	"github.com/brevet-pki/brevet/revocation/rotation"
)

// selfTimeout limits one request of the server to its own registrar.
const selfTimeout = 30 * time.Second

// selfTokenLifetime is the lifetime of a token that the server creates for itself and uses immediately.
const selfTokenLifetime = time.Minute

// selfIdentity is one of the server's own identities. It implements [enroll.Authority] without a network: it passes the
// agent's requests to the registrar, which treats them like those of other identities.
type selfIdentity struct {
	id        pki.SPIFFEID
	actor     pki.Actor
	registrar *ra.Registrar
	authority *ca.Authority
	renewals  *rotation.Manager
}

// Enroll implements enroll.Authority.
func (r *selfIdentity) Enroll(ctx context.Context, req enroll.EnrollRequest) (enroll.Credential, error) {
	evidence, err := req.Present(ctx, nil) // a token, which responds to no challenge
	if err != nil {
		return enroll.Credential{}, err
	}
	cert, err := r.registrar.Enroll(ctx, ra.EnrollRequest{
		RequestID: req.RequestID, Evidence: evidence, CSR: req.CSR, Lifetime: req.Lifetime,
	})
	if err != nil {
		return enroll.Credential{}, err
	}
	return r.credential(cert)
}

// Renew implements enroll.Authority.
func (r *selfIdentity) Renew(ctx context.Context, req enroll.RenewRequest) (enroll.Credential, error) {
	serial, err := pki.SerialFromInt(req.Current.Certificate.SerialNumber)
	if err != nil {
		return enroll.Credential{}, err
	}
	old, err := r.registrar.Store().CertificateBySerial(ctx, serial)
	if err != nil {
		return enroll.Credential{}, err
	}
	cert, err := r.registrar.Renew(ctx, ra.RenewRequest{
		RequestID: req.RequestID, Identity: old.Identity, Predecessor: old.Ref, CSR: req.CSR, Lifetime: req.Lifetime,
		Door: pki.DoorSelf,
	})
	if err != nil {
		return enroll.Credential{}, err
	}
	return r.credential(cert)
}

// RenewalInfo implements enroll.Authority.
func (r *selfIdentity) RenewalInfo(_ context.Context, p *enroll.Pair) (enroll.RenewalInfo, error) {
	serial, err := pki.SerialFromInt(p.Certificate.SerialNumber)
	if err != nil {
		return enroll.RenewalInfo{}, err
	}
	var info enroll.RenewalInfo
	if len(p.Chain) == 0 {
		return info, errors.New("the certificate was not issued by an issuing CA")
	}
	ref := pki.CertRef{Issuer: pki.IssuerOf(p.Chain[0]), Serial: serial}
	info.Window.Start, info.Window.End, info.RetryAfter, err = r.renewals.RenewalInfo(ref)
	info.BundleRevision = revisionOf(r.authority.Trust())
	return info, err
}

func (r *selfIdentity) credential(cert ca.Certificate) (enroll.Credential, error) {
	chain, root, err := r.authority.Chain(cert.Ref.Issuer)
	if err != nil {
		return enroll.Credential{}, err
	}
	ders := make([][]byte, len(chain))
	for i, c := range chain {
		ders[i] = c.Raw
	}
	trust := r.authority.Trust()
	var roots [][]byte
	for _, c := range trust.RootsWith(root) {
		roots = append(roots, c.Raw)
	}
	c, err := enroll.ParseCredential(cert.DER, ders, roots)
	c.Renewal = enroll.RenewalWindow(pki.RenewalWindowOf(cert.Ref.Serial, cert.NotAfter))
	c.BundleRevision = revisionOf(trust)
	return c, err
}

// TrustBundle implements enroll.Authority.
func (r *selfIdentity) TrustBundle(context.Context, *enroll.Pair) (enroll.TrustBundle, error) {
	trust := r.authority.Trust()
	return enroll.TrustBundle{Roots: trust.Roots(), Revision: revisionOf(trust)}, nil
}

// revisionOf returns the revision of the trust bundle in hexadecimal.
func revisionOf(trust *ca.Trust) string {
	revision := trust.Revision()
	return hex.EncodeToString(revision[:])
}

// token creates a one-time token with which the identity enrolls.
func (r *selfIdentity) token() (enroll.Token, error) {
	ctx, cancel := context.WithTimeout(context.Background(), selfTimeout)
	defer cancel()
	secret, _, err := r.registrar.CreateToken(ctx, ra.NewToken{Identity: r.id, Lifetime: selfTokenLifetime, Replace: true}, r.actor)
	return enroll.Token{Bootstrap: enroll.Bootstrap{TrustDomain: r.id.TrustDomain()}, Secret: secret}, err
}

// agentFor returns the agent of one of the server's identities, after the agent has obtained a valid certificate.
func (s *Server) agentFor(ctx context.Context, r *selfIdentity, directory string, keys pki.KeyType) (*enroll.Agent, error) {
	dir, err := enroll.OpenDirectory(filepath.Join(s.config.Directory, directory), s.log)
	if err != nil {
		return nil, err
	}
	agent, err := enroll.NewAgent(enroll.Config{
		Directory: dir, Authority: r, Token: r.token, KeyType: keys, Log: s.log.With("identity", r.id.Path()),
	})
	if err != nil {
		return nil, errors.Join(err, dir.Close())
	}
	s.closers = append(s.closers, dir)
	if err := agent.Ensure(ctx); err != nil {
		return nil, err
	}
	return agent, nil
}

// CheckNames converts Config.Names to the form that they have in the server's certificate. It returns an error if a
// certificate cannot contain them.
func CheckNames(names []string) (ca.Names, error) {
	dns, ips, err := ra.CheckNames(splitNames(names))
	return ca.Names{DNS: dns, IPs: ips}, err
}

func splitNames(names []string) (dns []string, ips []netip.Addr) {
	for _, n := range names {
		if ip, err := netip.ParseAddr(n); err == nil {
			ips = append(ips, ip)
		} else {
			dns = append(dns, n)
		}
	}
	return dns, ips
}

func (s *Server) enrollSelf(ctx context.Context) error {
	id, err := pki.ServerID(s.config.TrustDomain)
	if err != nil {
		return err
	}
	want := ra.NewIdentity{Kind: pki.Server}
	want.DNSNames, want.IPAddresses = splitNames(s.config.Names)
	r := &selfIdentity{id: id, actor: pki.ActorSystem("server"), registrar: s.registrar, authority: s.authority, renewals: s.rotations}
	have, err := s.registrar.Reserve(ctx, id, want, r.actor)
	if err != nil {
		return err
	}
	if s.own, err = s.agentFor(ctx, r, "server", serverKeys); err != nil {
		return err
	}
	// Agents with a new token know only the root of the current issuing CA.
	if hasNames(s.own.Pair(), have) && s.own.Pair().Root().Equal(s.authority.Current().Root) {
		return nil
	}
	t, err := r.token()
	if err != nil {
		return err
	}
	return s.own.Enroll(ctx, t)
}

// hasNames reports whether a certificate has exactly the names of an identity.
func hasNames(p *enroll.Pair, id ra.Identity) bool {
	var ips []netip.Addr
	for _, ip := range p.Certificate.IPAddresses {
		if a, ok := netip.AddrFromSlice(ip); ok {
			ips = append(ips, a.Unmap())
		}
	}
	return slices.Equal(p.Certificate.DNSNames, id.DNSNames) && slices.Equal(ips, id.IPAddresses)
}

// delegateProfile is the profile of OCSP delegates.
const delegateProfile = "ocsp"

// serverKeys is the type of the server's own keys.
const serverKeys = pki.P256

// keysOfDelegates returns the key type of OCSP delegates: the first one in their profile.
func (s *Server) keysOfDelegates() (pki.KeyType, error) {
	profile, err := s.policy.Current().Profiles.Profile(delegateProfile)
	if err != nil {
		return "", err
	}
	return profile.Keys()[0], nil
}

// keepDelegate sets the OCSP delegate of a CA whose key the server no longer has. The delegate was issued while the
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
	id, err := pki.VAID(s.config.TrustDomain, iss.ID)
	if err != nil {
		return err
	}
	r := &selfIdentity{id: id, actor: pki.ActorSystem("va"), registrar: s.registrar, authority: s.authority, renewals: s.rotations}
	want := ra.NewIdentity{Kind: pki.VA, Profile: delegateProfile, Labels: map[string]string{ra.IssuerLabel: iss.ID.String()}}
	if _, err := s.registrar.Reserve(ctx, id, want, r.actor); err != nil {
		return err
	}
	if s.delegateKeys, err = s.keysOfDelegates(); err != nil {
		return err
	}
	agent, err := s.agentFor(ctx, r, delegateDirectory(iss.ID), s.delegateKeys)
	if err != nil {
		return err
	}
	d := delegate{agent, iss.ID}
	s.delegates = append(s.delegates, d)
	s.useDelegate(d, agent.Pair()) // the first certificate, before the ports open; watchDelegate uses the later ones
	return nil
}

// delegate is the agent that renews the OCSP delegate of an issuing CA.
type delegate struct {
	*enroll.Agent
	issuer pki.IssuerID
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
