package grpcapi

import (
	"context"
	"errors"

	"github.com/brevet-pki/brevet/ca"
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
	Copied      Copied
}

// CreateIdentity serves the RPC of that name in brevet.v1.IdentityService.
func (s *Identities) CreateIdentity(ctx context.Context, req *brevetv1.CreateIdentityRequest) (*brevetv1.CreateIdentityResponse, error) {
	n, err := newIdentityOf(req.GetId(), req.GetSpec())
	if err != nil {
		return nil, err
	}
	by, err := actorOf(ctx, req)
	if err != nil {
		return nil, err
	}
	id, err := s.Registrar.CreateIdentity(ctx, n, by)
	if err != nil {
		return nil, err
	}
	return &brevetv1.CreateIdentityResponse{Identity: identityOut(id)}, nil
}

// newIdentityOf converts the name and the attributes of an identity to be registered.
func newIdentityOf(name string, spec *brevetv1.IdentitySpec) (ra.NewIdentity, error) {
	kind, ok := kinds[spec.GetKind()]
	if !ok {
		return ra.NewIdentity{}, pki.Refuse(pki.RuleRequest, "use device, workload or operator", "%s is not a kind of identity", spec.GetKind())
	}
	dns, ips, err := namesIn(spec.GetNames())
	if err != nil {
		return ra.NewIdentity{}, err
	}
	set, err := rolesIn(spec.GetRoles())
	if err != nil {
		return ra.NewIdentity{}, err
	}
	subject, err := subjectIn(spec.GetEvidenceSubject())
	return ra.NewIdentity{
		Name: name, Kind: kind, Profile: spec.GetProfile(), Labels: spec.GetLabels(), DNSNames: dns, IPAddresses: ips,
		Subject: subject, Roles: set,
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
	have, err := s.Registrar.Store().Identity(ctx, id)
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
	f, err := identityFilterIn(req)
	if err != nil {
		return nil, err
	}
	after, err := pageAfter(req, func(key []byte) (pki.SPIFFEID, error) { return pki.ParseSPIFFEID(string(key)) })
	if err != nil {
		return nil, err
	}
	list, next, err := s.Registrar.Identities(ctx, f, after, size)
	if err != nil {
		return nil, err
	}
	resp := &brevetv1.ListIdentitiesResponse{}
	for _, id := range list {
		resp.Identities = append(resp.Identities, identityOut(id))
	}
	if !next.IsZero() {
		resp.NextPageToken = pageToken(req, []byte(next.String()))
	}
	return resp, nil
}

// identityFilterIn converts the filter of a request.
func identityFilterIn(req *brevetv1.ListIdentitiesRequest) (ra.IdentityFilter, error) {
	f := ra.IdentityFilter{
		Profile: req.GetProfile(), Label: labelIn(req.GetLabel()), WithoutUnexpired: req.GetWithoutUnexpiredCertificate(),
	}
	var err error
	if f.Kinds, err = statesIn(kinds, req.GetKinds()); err != nil {
		return f, err
	}
	if f.States, err = statesIn(identityStates, req.GetStates()); err != nil {
		return f, err
	}
	if err := errors.Join(pki.CheckProfileName(f.Profile), f.Label.Check()); err != nil {
		return f, err
	}
	f.NotRenewedSince, err = timeIn(req.GetNotRenewedSinceTime(), "not_renewed_since_time")
	return f, err
}

// UpdateIdentity serves the RPC of that name in brevet.v1.IdentityService.
func (s *Identities) UpdateIdentity(ctx context.Context, req *brevetv1.UpdateIdentityRequest) (*brevetv1.UpdateIdentityResponse, error) {
	u, err := s.updateIn(req)
	if err != nil {
		return nil, err
	}
	by, err := actorOf(ctx, req)
	if err != nil {
		return nil, err
	}
	id, err := s.Registrar.UpdateIdentity(ctx, u, by)
	if err != nil {
		return nil, err
	}
	return &brevetv1.UpdateIdentityResponse{Identity: identityOut(id)}, nil
}

// hintMask is the hint of an update mask that does not name attributes.
const hintMask = "name profile, labels, names, evidence_subject or roles"

// updateIn converts a request to update an identity. Only the attributes in its update mask change.
func (s *Identities) updateIn(req *brevetv1.UpdateIdentityRequest) (ra.IdentityUpdate, error) {
	var u ra.IdentityUpdate
	var err error
	if u.ID, err = s.Registrar.ParseID(req.GetId()); err != nil {
		return u, err
	}
	if req.GetRevision() < 1 {
		return u, pki.Refuse(pki.RuleRequest, "send the revision of the identity as GetIdentity returns it", "revision is %d", req.GetRevision())
	}
	u.Revision = uint64(req.GetRevision()) //nolint:gosec // at least 1
	if len(req.GetUpdateMask().GetPaths()) == 0 {
		return u, pki.Refuse(pki.RuleRequest, hintMask, "update_mask names no attribute")
	}
	for _, path := range req.GetUpdateMask().GetPaths() {
		switch path {
		case "profile":
			profile := req.GetSpec().GetProfile()
			u.Profile = &profile
		case "labels":
			labels := req.GetSpec().GetLabels()
			u.Labels = &labels
		case "names":
			names := ca.Names{}
			if names.DNS, names.IPs, err = namesIn(req.GetSpec().GetNames()); err != nil {
				return u, err
			}
			u.Names = &names
		case "evidence_subject":
			subject, err := subjectIn(req.GetSpec().GetEvidenceSubject())
			if err != nil {
				return u, err
			}
			u.Subject = &subject
		case "roles":
			set, err := rolesIn(req.GetSpec().GetRoles())
			if err != nil {
				return u, err
			}
			u.Roles = &set
		default:
			return u, pki.Refuse(pki.RuleRequest, hintMask, "update_mask names %.64q, which does not change", path)
		}
	}
	return u, nil
}

// SuspendIdentity serves the RPC of that name in brevet.v1.IdentityService.
func (s *Identities) SuspendIdentity(ctx context.Context, req *brevetv1.SuspendIdentityRequest) (*brevetv1.SuspendIdentityResponse, error) {
	id, affected, err := s.apply(ctx, req, revocation.Change{Action: revocation.Hold, Reason: pki.CertificateHold, State: pki.Suspended, Comment: req.GetComment()})
	if err != nil {
		return nil, err
	}
	return &brevetv1.SuspendIdentityResponse{Identity: id, Affected: affected, Copied: s.Copied(ctx)}, nil
}

// ResumeIdentity serves the RPC of that name in brevet.v1.IdentityService.
func (s *Identities) ResumeIdentity(ctx context.Context, req *brevetv1.ResumeIdentityRequest) (*brevetv1.ResumeIdentityResponse, error) {
	id, affected, err := s.apply(ctx, req, revocation.Change{Action: revocation.Unhold, Comment: req.GetComment()})
	return &brevetv1.ResumeIdentityResponse{Identity: id, Affected: affected}, err
}

// RetireIdentity serves the RPC of that name in brevet.v1.IdentityService.
func (s *Identities) RetireIdentity(ctx context.Context, req *brevetv1.RetireIdentityRequest) (*brevetv1.RetireIdentityResponse, error) {
	since, err := timeIn(req.GetInvalidityTime(), "invalidity_time")
	if err != nil {
		return nil, err
	}
	id, affected, err := s.apply(ctx, req, revocation.Change{
		Action: revocation.Revoke, Reason: pki.CessationOfOperation, State: pki.Retired, InvalidSince: since, Comment: req.GetComment(),
	})
	if err != nil {
		return nil, err
	}
	return &brevetv1.RetireIdentityResponse{Identity: id, Affected: affected, Copied: s.Copied(ctx)}, nil
}

// apply applies a change to the identity in a request. It returns the identity after the change, and the number of
// affected certificates.
func (s *Identities) apply(ctx context.Context, req interface {
	changingRequest
	GetId() string
}, c revocation.Change,
) (*brevetv1.Identity, *brevetv1.AffectedCertificates, error) {
	id, err := s.Registrar.ParseID(req.GetId())
	if err != nil {
		return nil, nil, err
	}
	have, err := s.Registrar.Store().Identity(ctx, id)
	if err != nil {
		return nil, nil, err
	}
	if have.Kind == pki.Server || have.Kind == pki.VA {
		return nil, nil, pki.Refuse(pki.RuleReserved, "stop the server instead", "%s is part of the CA itself", id)
	}
	c.Identity = id
	if c.Actor, err = actorOf(ctx, req); err != nil {
		return nil, nil, err
	}
	out, err := s.Revocations.Apply(ctx, c)
	if err != nil {
		return nil, nil, err
	}
	after, err := s.find(ctx, req.GetId())
	return after, affectedOut(out.Affected), err
}
