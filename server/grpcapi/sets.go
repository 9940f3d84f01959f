package grpcapi

import (
	"context"

	"github.com/brevet-pki/brevet/pki"
	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
	"github.com/brevet-pki/brevet/revocation"
)

// RevokeCertificates serves the RPC of that name in brevet.v1.CertificateService.
func (s *Certificates) RevokeCertificates(ctx context.Context, req *brevetv1.RevokeCertificatesRequest) (*brevetv1.RevokeCertificatesResponse, error) {
	reason, since, err := groundsIn(req)
	if err != nil {
		return nil, err
	}
	o := revocation.BulkRequest{Reason: reason, InvalidSince: since, By: callerOf(ctx).Actor(), Why: req.GetComment()}
	if o.Selection, err = s.selectionIn(ctx, req.GetSelection()); err != nil {
		return nil, err
	}
	o.Action = revocation.Revoke
	set := revocation.BulkRevocation{BulkRequest: o, Counted: true}
	if req.GetDryRun() {
		var n revocation.Reached
		n, err = s.Revocations.CountBulk(ctx, o)
		set.Total, set.Ended = n.Valid+n.Ended, n.Ended
	} else {
		set, err = s.Revocations.RevokeBulk(ctx, o)
	}
	if err != nil {
		return nil, err
	}
	return &brevetv1.RevokeCertificatesResponse{Set: setOut(set)}, nil
}

// selectionIn reads a selection. What it names is looked for with the members.
func (s *Certificates) selectionIn(ctx context.Context, sel *brevetv1.CertificateSelection) (revocation.Selection, error) {
	out := revocation.Selection{Profile: sel.GetProfile(), Label: revocation.Label{Name: sel.GetLabelName(), Value: sel.GetLabelValue()}}
	var err error
	if sel.GetIssuer() != "" {
		if out.Issuer, err = pki.ParseIssuerID(sel.GetIssuer()); err != nil {
			return out, pki.Refuse(pki.RuleRequest, "give the 64 hexadecimal digits that brevet crl list --output json has", "%.80q is not an issuer ID", sel.GetIssuer())
		}
	}
	if sel.GetIdentity() != "" {
		if out.Identity, err = s.Registrar.ParseID(sel.GetIdentity()); err != nil {
			return out, err
		}
	}
	if sel.GetKeyHash() != "" {
		if out.Key, err = pki.ParseKeyHash(sel.GetKeyHash()); err != nil {
			return out, pki.Refuse(pki.RuleRequest, "give 64 hexadecimal digits: the SHA-256 of the SubjectPublicKeyInfo", "%.80q is not the hash of a key", sel.GetKeyHash())
		}
	}
	if sel.GetLineageOf() != "" {
		first, err := s.find(ctx, sel.GetLineageOf(), "")
		if err != nil {
			return out, err
		}
		out.LineageOf = first.Ref
	}
	if out.IssuedFrom, err = timeIn(sel.GetIssuedFrom(), "issued_from"); err != nil {
		return out, err
	}
	out.IssuedUntil, err = timeIn(sel.GetIssuedUntil(), "issued_until")
	return out, err
}

func reachedOut(n revocation.Affected) *brevetv1.ChangedCertificates {
	return &brevetv1.ChangedCertificates{Valid: int64(n.Valid), Ended: int64(n.Expired)}
}

// GetRevocationSet serves the RPC of that name in brevet.v1.CertificateService.
func (s *Certificates) GetRevocationSet(ctx context.Context, req *brevetv1.GetRevocationSetRequest) (*brevetv1.GetRevocationSetResponse, error) {
	if req.GetId() < 1 {
		return nil, pki.Refuse(pki.RuleRequest, "give the number that RevokeCertificates answered with", "a set of certificates has no number %d", req.GetId())
	}
	set, err := s.Revocations.Set(ctx, req.GetId())
	if err != nil {
		return nil, err
	}
	return &brevetv1.GetRevocationSetResponse{Set: setOut(set)}, nil
}

func setOut(s revocation.BulkRevocation) *brevetv1.RevocationSet {
	out := &brevetv1.RevocationSet{
		Id: s.ID, Selection: selectionOut(s.Selection), Reason: s.Reason.String(), InvalidSince: timeOut(s.InvalidSince), Comment: s.Comment,
		OrderedBy: s.Actor.String(), OrderedAt: timeOut(s.At), Followed: int64(s.Applied), Done: s.Done, Ended: int64(s.Expired), Action: s.Action.String(),
	}
	if s.Counted {
		total := int64(s.Total)
		out.Total = &total
	}
	return out
}

func selectionOut(s revocation.Selection) *brevetv1.CertificateSelection {
	out := &brevetv1.CertificateSelection{
		Profile: s.Profile, LabelName: s.Label.Name, LabelValue: s.Label.Value, IssuedFrom: timeOut(s.IssuedFrom), IssuedUntil: timeOut(s.IssuedUntil),
		Identity: s.Identity.String(),
	}
	if !s.Issuer.IsZero() {
		out.Issuer = s.Issuer.String()
	}
	if !s.LineageOf.IsZero() {
		out.LineageOf = s.LineageOf.Serial.String()
	}
	if !s.Key.IsZero() {
		out.KeyHash = s.Key.String()
	}
	return out
}

// RevokeCompromisedKey serves the RPC of that name in brevet.v1.CertificateService.
func (s *Certificates) RevokeCompromisedKey(ctx context.Context, req *brevetv1.RevokeCompromisedKeyRequest) (*brevetv1.RevokeCompromisedKeyResponse, error) {
	key, err := revocation.VerifyCompromise(s.TrustDomain, req.GetPublicKey(), req.GetSignature())
	if err != nil {
		return nil, err
	}
	out, err := s.Revocations.Apply(ctx, revocation.Order{
		Action: revocation.Revoke, Reason: pki.KeyCompromise, Key: key, By: pki.ActorKey(key),
	})
	if err != nil {
		return nil, err
	}
	return &brevetv1.RevokeCompromisedKeyResponse{KeyHash: key.String(), Changed: reachedOut(out.Affected)}, nil
}
