package grpcapi

import (
	"context"
	"encoding/binary"
	"strconv"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/brevet-pki/brevet/pki"
	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
	"github.com/brevet-pki/brevet/ra"
	"github.com/brevet-pki/brevet/revocation"
)

// Revocations serves brevet.v1.RevocationService.
type Revocations struct {
	brevetv1.UnimplementedRevocationServiceServer
	Registrar   *ra.Registrar
	Revocations *revocation.Authority
	TrustDomain string
	Copied      Copied
}

// Copied reports whether the second copy of the log's archive has all changes that were committed before. It may wait, for
// a bounded time. It returns nil if there is no second copy.
type Copied func(ctx context.Context) *bool

// RevokeCertificate serves the RPC of that name in brevet.v1.RevocationService.
func (s *Revocations) RevokeCertificate(ctx context.Context, req *brevetv1.RevokeCertificateRequest) (*brevetv1.RevokeCertificateResponse, error) {
	reason, since, err := groundsIn(req)
	if err != nil {
		return nil, err
	}
	c, err := findCertificate(ctx, s.Registrar, req)
	if err != nil {
		return nil, err
	}
	have, affected, err := s.apply(ctx, req, revocation.Change{
		Action: revocation.Revoke, Reason: reason, Certificate: c.Ref, InvalidSince: since, Comment: req.GetComment(),
	})
	if err != nil {
		return nil, err
	}
	return &brevetv1.RevokeCertificateResponse{Certificate: have, Affected: affected, Copied: s.Copied(ctx)}, nil
}

// apply applies a change to one certificate. It returns the certificate's record after the change, and the number of
// affected certificates.
func (s *Revocations) apply(ctx context.Context, req changingRequest, c revocation.Change) (*brevetv1.Certificate, *brevetv1.AffectedCertificates, error) {
	var err error
	if c.Actor, err = actorOf(ctx, req); err != nil {
		return nil, nil, err
	}
	out, err := s.Revocations.Apply(ctx, c)
	if err != nil {
		return nil, nil, err
	}
	after, err := s.Registrar.Store().Certificate(ctx, c.Certificate)
	if err != nil {
		return nil, nil, err
	}
	return certificateOut(after), affectedOut(out.Affected), nil
}

// HoldCertificate serves the RPC of that name in brevet.v1.RevocationService.
func (s *Revocations) HoldCertificate(ctx context.Context, req *brevetv1.HoldCertificateRequest) (*brevetv1.HoldCertificateResponse, error) {
	c, err := findCertificate(ctx, s.Registrar, req)
	if err != nil {
		return nil, err
	}
	have, affected, err := s.apply(ctx, req, revocation.Change{
		Action: revocation.Hold, Reason: pki.CertificateHold, Certificate: c.Ref, Comment: req.GetComment(),
	})
	if err != nil {
		return nil, err
	}
	return &brevetv1.HoldCertificateResponse{Certificate: have, Affected: affected, Copied: s.Copied(ctx)}, nil
}

// UnholdCertificate serves the RPC of that name in brevet.v1.RevocationService.
func (s *Revocations) UnholdCertificate(ctx context.Context, req *brevetv1.UnholdCertificateRequest) (*brevetv1.UnholdCertificateResponse, error) {
	c, err := findCertificate(ctx, s.Registrar, req)
	if err != nil {
		return nil, err
	}
	have, affected, err := s.apply(ctx, req, revocation.Change{Action: revocation.Unhold, Certificate: c.Ref, Comment: req.GetComment()})
	return &brevetv1.UnholdCertificateResponse{Certificate: have, Affected: affected}, err
}

// groundsIn converts the reason and the invalidity date of a request to revoke.
func groundsIn(req interface {
	GetReason() brevetv1.RevocationReason
	GetInvalidityTime() *timestamppb.Timestamp
}) (pki.Reason, time.Time, error) {
	reason, err := pki.ReasonFromCode(int(req.GetReason()))
	if err != nil {
		return 0, time.Time{}, pki.Refuse(pki.RuleReason, "use a value of brevet.v1.RevocationReason", "%d is not a reason to revoke", req.GetReason())
	}
	since, err := timeIn(req.GetInvalidityTime(), "invalidity_time")
	return reason, since, err
}

// CreateBulkRevocation serves the RPC of that name in brevet.v1.RevocationService.
func (s *Revocations) CreateBulkRevocation(ctx context.Context, req *brevetv1.CreateBulkRevocationRequest) (*brevetv1.CreateBulkRevocationResponse, error) {
	reason, since, err := groundsIn(req)
	if err != nil {
		return nil, err
	}
	by, err := actorOf(ctx, req)
	if err != nil {
		return nil, err
	}
	b := revocation.BulkRequest{
		Action: revocation.Revoke, Reason: reason, InvalidSince: since, Actor: by, Comment: req.GetComment(),
	}
	if b.Selection, err = selectionIn(ctx, s.Registrar, req.GetSelection()); err != nil {
		return nil, err
	}
	created := revocation.BulkRevocation{BulkRequest: b, Counted: true}
	if req.GetDryRun() {
		var n revocation.Affected
		n, err = s.Revocations.CountBulk(ctx, b)
		created.Total, created.Expired = n.Valid+n.Expired, n.Expired
	} else {
		created, err = s.Revocations.RevokeBulk(ctx, b)
	}
	if err != nil {
		return nil, err
	}
	resp := &brevetv1.CreateBulkRevocationResponse{BulkRevocation: bulkOut(created)}
	if !req.GetDryRun() {
		resp.Copied = s.Copied(ctx)
	}
	return resp, nil
}

// selectionIn converts a selection. It looks up the certificate of a lineage. Identity, key and issuer are looked up
// later, when the certificates are selected.
func selectionIn(ctx context.Context, r *ra.Registrar, sel *brevetv1.CertificateSelection) (pki.Selection, error) {
	out := pki.Selection{Profile: sel.GetProfile(), Label: labelIn(sel.GetLabel())}
	var err error
	if out.Issuer, err = issuerIn(sel.GetIssuerId()); err != nil {
		return out, err
	}
	if sel.GetIdentity() != "" {
		if out.Identity, err = r.ParseID(sel.GetIdentity()); err != nil {
			return out, err
		}
	}
	if len(sel.GetKeyHash()) > 0 {
		if out.Key, err = keyHashIn(sel.GetKeyHash()); err != nil {
			return out, err
		}
	}
	if len(sel.GetLineageSerial()) > 0 {
		serial, err := serialIn(sel.GetLineageSerial(), "lineage_serial")
		if err != nil {
			return out, err
		}
		first, err := r.Store().CertificateBySerial(ctx, serial)
		if err != nil {
			return out, err
		}
		out.LineageOf = first.Ref
	}
	if out.IssuedFrom, err = timeIn(sel.GetIssueStartTime(), "issue_start_time"); err != nil {
		return out, err
	}
	out.IssuedUntil, err = timeIn(sel.GetIssueEndTime(), "issue_end_time")
	return out, err
}

func affectedOut(n revocation.Affected) *brevetv1.AffectedCertificates {
	return &brevetv1.AffectedCertificates{Valid: int64(n.Valid), Expired: int64(n.Expired)}
}

// GetBulkRevocation serves the RPC of that name in brevet.v1.RevocationService.
func (s *Revocations) GetBulkRevocation(ctx context.Context, req *brevetv1.GetBulkRevocationRequest) (*brevetv1.GetBulkRevocationResponse, error) {
	id, err := strconv.ParseInt(req.GetId(), 10, 64)
	if err != nil || id < 1 || strconv.FormatInt(id, 10) != req.GetId() {
		return nil, pki.Refuse(pki.RuleRequest, "send the id that CreateBulkRevocation returned", "%.64q is not the ID of a bulk revocation", req.GetId())
	}
	b, err := s.Revocations.BulkRevocation(ctx, id)
	if err != nil {
		return nil, err
	}
	return &brevetv1.GetBulkRevocationResponse{BulkRevocation: bulkOut(b)}, nil
}

// bulkActions maps the actions of bulk revocations in protobuf to those of package revocation.
var bulkActions = map[brevetv1.BulkRevocationAction]revocation.Action{
	brevetv1.BulkRevocationAction_BULK_REVOCATION_ACTION_REVOKE: revocation.Revoke,
	brevetv1.BulkRevocationAction_BULK_REVOCATION_ACTION_HOLD:   revocation.Hold,
	brevetv1.BulkRevocationAction_BULK_REVOCATION_ACTION_UNHOLD: revocation.Unhold,
}

func bulkOut(b revocation.BulkRevocation) *brevetv1.BulkRevocation {
	out := &brevetv1.BulkRevocation{
		Selection: selectionOut(b.Selection), Action: wireOf(bulkActions, b.Action), Reason: brevetv1.RevocationReason(b.Reason),
		InvalidityTime: timeOut(b.InvalidSince), Comment: b.Comment, CreatedBy: b.Actor.String(), CreateTime: timeOut(b.At),
		Expired: int64(b.Expired), Applied: int64(b.Applied),
	}
	if b.ID != 0 { // after a dry run, there is no bulk revocation, and the ID is 0
		out.State = wireOf(bulkStates, b.State())
		out.Id = strconv.FormatInt(b.ID, 10)
	}
	if b.Counted {
		total := int64(b.Total)
		out.Total = &total
	}
	return out
}

// bulkStates maps the states of bulk revocations in protobuf to those of package revocation.
var bulkStates = map[brevetv1.BulkRevocationState]revocation.BulkState{
	brevetv1.BulkRevocationState_BULK_REVOCATION_STATE_SELECTING: revocation.BulkSelecting,
	brevetv1.BulkRevocationState_BULK_REVOCATION_STATE_APPLYING:  revocation.BulkApplying,
	brevetv1.BulkRevocationState_BULK_REVOCATION_STATE_DONE:      revocation.BulkDone,
}

func selectionOut(s pki.Selection) *brevetv1.CertificateSelection {
	out := &brevetv1.CertificateSelection{
		Profile: s.Profile, Identity: s.Identity.String(), IssueStartTime: timeOut(s.IssuedFrom), IssueEndTime: timeOut(s.IssuedUntil),
	}
	if s.Label != (pki.Label{}) {
		out.Label = &brevetv1.Label{Name: s.Label.Name, Value: s.Label.Value}
	}
	if !s.Issuer.IsZero() {
		out.IssuerId = s.Issuer.Bytes()
	}
	if !s.LineageOf.IsZero() {
		out.LineageSerial = s.LineageOf.Serial.Bytes()
	}
	if !s.Key.IsZero() {
		out.KeyHash = s.Key.Bytes()
	}
	return out
}

// ListBulkRevocations serves the RPC of that name in brevet.v1.RevocationService.
func (s *Revocations) ListBulkRevocations(ctx context.Context, req *brevetv1.ListBulkRevocationsRequest) (*brevetv1.ListBulkRevocationsResponse, error) {
	size, err := pageSize(req.GetPageSize())
	if err != nil {
		return nil, err
	}
	states, err := statesIn(bulkStates, req.GetStates())
	if err != nil {
		return nil, err
	}
	after, err := pageAfter(req, bulkKey)
	if err != nil {
		return nil, err
	}
	list, next, err := s.Revocations.BulkRevocations(ctx, states, after, size)
	if err != nil {
		return nil, err
	}
	resp := &brevetv1.ListBulkRevocationsResponse{}
	for _, b := range list {
		resp.BulkRevocations = append(resp.BulkRevocations, bulkOut(b))
	}
	if next != 0 {
		resp.NextPageToken = pageToken(req, binary.BigEndian.AppendUint64(nil, uint64(next))) //nolint:gosec // IDs count up from 1
	}
	return resp, nil
}

// bulkKey decodes the sort key of a bulk revocation, which is its ID.
func bulkKey(key []byte) (int64, error) {
	if len(key) != 8 {
		return 0, errPageToken
	}
	return int64(binary.BigEndian.Uint64(key)), nil //nolint:gosec // any value is a sort key
}

// RevokeCompromisedKey serves the RPC of that name in brevet.v1.RevocationService.
func (s *Revocations) RevokeCompromisedKey(ctx context.Context, req *brevetv1.RevokeCompromisedKeyRequest) (*brevetv1.RevokeCompromisedKeyResponse, error) {
	key, err := revocation.VerifyCompromise(s.TrustDomain, req.GetPublicKey(), req.GetSignature())
	if err != nil {
		return nil, err
	}
	out, err := s.Revocations.Apply(ctx, revocation.Change{
		Action: revocation.Revoke, Reason: pki.KeyCompromise, Key: key, Actor: pki.ActorKey(key),
	})
	if err != nil {
		return nil, err
	}
	return &brevetv1.RevokeCompromisedKeyResponse{KeyHash: key.Bytes(), Affected: affectedOut(out.Affected), Copied: s.Copied(ctx)}, nil
}
