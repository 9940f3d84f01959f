package grpcapi

import (
	"context"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/brevet-pki/brevet/pki"
	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
	"github.com/brevet-pki/brevet/ra"
	"github.com/brevet-pki/brevet/revocation"
)

// Identities serves brevet.v1.IdentityService.
type Identities struct {
	brevetv1.UnimplementedIdentityServiceServer
	Registrar   *ra.Registrar
	Revocations *revocation.Authority
	// TokenText returns the text of an enrollment token, which an agent needs for its first contact.
	TokenText func(pki.TokenSecret) string
}

// CreateIdentity serves the RPC of that name in brevet.v1.IdentityService.
func (s *Identities) CreateIdentity(ctx context.Context, req *brevetv1.CreateIdentityRequest) (*brevetv1.CreateIdentityResponse, error) {
	n, err := newIdentityOf(req.GetId(), &brevetv1.Registration{
		Kind: req.GetKind(), Profile: req.GetProfile(), Labels: req.GetLabels(), DnsNames: req.GetDnsNames(), IpAddresses: req.GetIpAddresses(),
	})
	if err != nil {
		return nil, err
	}
	id, err := s.Registrar.CreateIdentity(ctx, n, callerOf(ctx).Actor())
	if err != nil {
		return nil, err
	}
	return &brevetv1.CreateIdentityResponse{Identity: identityOut(id)}, nil
}

// newIdentityOf reads what an identity is to be registered with.
func newIdentityOf(name string, r *brevetv1.Registration) (ra.NewIdentity, error) {
	kind, err := pki.ParseKind(r.GetKind())
	if err != nil {
		return ra.NewIdentity{}, pki.Refuse(pki.RuleRequest, "use device, workload or operator", "%.64q is not a kind of identity", r.GetKind())
	}
	ips, err := addressesIn(r.GetIpAddresses())
	return ra.NewIdentity{
		Name: name, Kind: kind, Profile: r.GetProfile(), Labels: r.GetLabels(), DNSNames: r.GetDnsNames(), IPAddresses: ips,
	}, err
}

// GetIdentity serves the RPC of that name in brevet.v1.IdentityService.
func (s *Identities) GetIdentity(ctx context.Context, req *brevetv1.GetIdentityRequest) (*brevetv1.GetIdentityResponse, error) {
	id, err := s.find(ctx, req.GetId())
	return &brevetv1.GetIdentityResponse{Identity: id}, err
}

func (s *Identities) find(ctx context.Context, text string) (*brevetv1.Identity, error) {
	id, err := s.Registrar.ParseID(text)
	if err != nil {
		return nil, err
	}
	have, err := s.Registrar.Records().Identity(ctx, id)
	if err != nil {
		return nil, err
	}
	return identityOut(have), nil
}

// ListIdentities serves the RPC of that name in brevet.v1.IdentityService.
func (s *Identities) ListIdentities(ctx context.Context, req *brevetv1.ListIdentitiesRequest) (*brevetv1.ListIdentitiesResponse, error) {
	size, err := pageSize(req.GetPageSize())
	if err != nil {
		return nil, err
	}
	var after pki.SPIFFEID
	if req.GetPageToken() != "" {
		if after, err = pki.ParseSPIFFEID(req.GetPageToken()); err != nil {
			return nil, pki.Refuse(pki.RuleRequest, "send the next_page_token of the page before", "the page token is not of its form")
		}
	}
	list, err := s.Registrar.Records().Identities(ctx, after, size+1) // one more says that another page follows
	if err != nil {
		return nil, err
	}
	resp := &brevetv1.ListIdentitiesResponse{}
	for _, id := range list[:min(size, len(list))] {
		resp.Identities = append(resp.Identities, identityOut(id))
	}
	if len(list) > size {
		resp.NextPageToken = list[size-1].ID.String()
	}
	return resp, nil
}

// SuspendIdentity serves the RPC of that name in brevet.v1.IdentityService.
func (s *Identities) SuspendIdentity(ctx context.Context, req *brevetv1.SuspendIdentityRequest) (*brevetv1.SuspendIdentityResponse, error) {
	id, changed, err := s.order(ctx, req.GetId(), revocation.Order{Action: revocation.Hold, Reason: pki.CertificateHold, State: pki.Suspended, Why: req.GetComment()})
	return &brevetv1.SuspendIdentityResponse{Identity: id, Changed: changed}, err
}

// ResumeIdentity serves the RPC of that name in brevet.v1.IdentityService.
func (s *Identities) ResumeIdentity(ctx context.Context, req *brevetv1.ResumeIdentityRequest) (*brevetv1.ResumeIdentityResponse, error) {
	id, changed, err := s.order(ctx, req.GetId(), revocation.Order{Action: revocation.Release, Why: req.GetComment()})
	return &brevetv1.ResumeIdentityResponse{Identity: id, Changed: changed}, err
}

// RetireIdentity serves the RPC of that name in brevet.v1.IdentityService.
func (s *Identities) RetireIdentity(ctx context.Context, req *brevetv1.RetireIdentityRequest) (*brevetv1.RetireIdentityResponse, error) {
	since, err := timeIn(req.GetInvalidSince(), "invalid_since")
	if err != nil {
		return nil, err
	}
	id, changed, err := s.order(ctx, req.GetId(), revocation.Change{
		Action: revocation.Revoke, Reason: pki.CessationOfOperation, State: pki.Retired, InvalidSince: since, Comment: req.GetComment(),
	})
	return &brevetv1.RetireIdentityResponse{Identity: id, Changed: changed}, err
}

// order carries out a change of an identity, and returns how it stands afterwards and what has changed.
func (s *Identities) order(ctx context.Context, text string, o revocation.Order) (*brevetv1.Identity, *brevetv1.ChangedCertificates, error) {
	id, err := s.Registrar.ParseID(text)
	if err != nil {
		return nil, nil, err
	}
	have, err := s.Registrar.Records().Identity(ctx, id)
	if err != nil {
		return nil, nil, err
	}
	if have.Kind == pki.Server || have.Kind == pki.VA {
		return nil, nil, pki.Refuse(pki.RuleReserved, "stop the server instead", "%s is part of the CA itself", id)
	}
	o.Identity, o.By = id, callerOf(ctx).Actor()
	out, err := s.Revocations.Apply(ctx, o)
	if err != nil {
		return nil, nil, err
	}
	after, err := s.find(ctx, text)
	return after, reachedOut(out.Affected), err
}

// CreateToken serves the RPC of that name in brevet.v1.IdentityService.
func (s *Identities) CreateToken(ctx context.Context, req *brevetv1.CreateTokenRequest) (*brevetv1.CreateTokenResponse, error) {
	id, err := s.Registrar.ParseID(req.GetId())
	if err != nil {
		return nil, err
	}
	have, err := s.Registrar.Records().Identity(ctx, id)
	if err != nil {
		return nil, err
	}
	if have.Kind == pki.Server || have.Kind == pki.VA {
		return nil, pki.Refuse(pki.RuleReserved, "make tokens for devices, workloads and operators", "%s enrolls itself", id)
	}
	lifetime, err := durationOf(req.GetLifetime(), "lifetime")
	if err != nil {
		return nil, err
	}
	secret, t, err := s.Registrar.CreateToken(ctx, id, lifetime, req.GetReplace(), callerOf(ctx).Actor())
	if err != nil {
		return nil, err
	}
	return &brevetv1.CreateTokenResponse{Token: s.TokenText(secret), TokenId: t.ID.String(), ExpiresAt: timestamppb.New(t.ExpiresAt)}, nil
}
