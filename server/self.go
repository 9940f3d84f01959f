package server

import (
	"context"
	"encoding/hex"
	"errors"
	"net/netip"
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
	agent, err := s.newAgent(directory, enroll.Config{Authority: r, Token: r.token, KeyType: keys, Log: s.log.With("identity", r.id.Path())})
	if err != nil {
		return nil, err
	}
	err = agent.Ensure(ctx)
	return agent, err
}

// newAgent returns an agent that keeps its credential in a directory of the server.
func (s *Server) newAgent(directory string, c enroll.Config) (*enroll.Agent, error) {
	dir, err := enroll.OpenDirectory(filepath.Join(s.config.Directory, directory), s.log)
	if err != nil {
		return nil, err
	}
	c.Directory = dir
	agent, err := enroll.NewAgent(c)
	if err != nil {
		return nil, errors.Join(err, dir.Close())
	}
	s.closers = append(s.closers, dir)
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
	id, err := pki.ServerID(s.config.TrustDomain, s.config.Server)
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

// serverKeys is the type of the server's own keys.
const serverKeys = pki.P256
