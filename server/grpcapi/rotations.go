package grpcapi

import (
	"context"
	"encoding/binary"
	"strconv"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/brevet-pki/brevet/pki"
	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
	"github.com/brevet-pki/brevet/ra"
	"github.com/brevet-pki/brevet/revocation/rotation"
)

// Rotations serves brevet.v1.RotationService.
type Rotations struct {
	brevetv1.UnimplementedRotationServiceServer
	Registrar *ra.Registrar
	Manager   *rotation.Manager
}

// StartRotation serves the RPC of that name in brevet.v1.RotationService.
func (s *Rotations) StartRotation(ctx context.Context, req *brevetv1.StartRotationRequest) (*brevetv1.StartRotationResponse, error) {
	by, err := actorOf(ctx, req)
	if err != nil {
		return nil, err
	}
	r := rotation.Request{Actor: by, Comment: req.GetComment()}
	if r.Selection, err = selectionIn(ctx, s.Registrar, req.GetSelection()); err != nil {
		return nil, err
	}
	if r.Over, err = periodIn(req.GetOver()); err != nil {
		return nil, err
	}
	if r.Confirm, err = countIn(req.GetConfirm()); err != nil {
		return nil, err
	}
	if req.GetDryRun() {
		n, err := s.Manager.Count(ctx, r)
		if err != nil {
			return nil, err
		}
		return &brevetv1.StartRotationResponse{
			Rotation: rotationOut(rotation.Rotation{Request: r, Affected: n.Affected}, nil), Living: int64(n.Living),
			NeedsConfirmation: n.NeedsConfirmation(),
		}, nil
	}
	started, err := s.Manager.Start(ctx, r)
	if err != nil {
		return nil, err
	}
	return &brevetv1.StartRotationResponse{Rotation: rotationOut(started, nil)}, nil
}

// periodIn converts the period of a rotation. It returns zero for nil, which package rotation refuses.
func periodIn(d *durationpb.Duration) (time.Duration, error) {
	if d == nil {
		return 0, nil
	}
	if err := d.CheckValid(); err != nil {
		return 0, pki.Refuse(pki.RuleRequest, "send the period of the rotation", "over is not a duration")
	}
	return d.AsDuration(), nil
}

// countIn converts the number of certificates that the caller confirms.
func countIn(n int64) (int, error) {
	if n < 0 {
		return 0, pki.Refuse(pki.RuleRequest, "send the number of affected certificates", "confirm is negative")
	}
	return int(n), nil
}

// rotationIn converts the ID of a rotation.
func rotationIn(text string) (int64, error) {
	id, err := strconv.ParseInt(text, 10, 64)
	if err != nil || id < 1 || strconv.FormatInt(id, 10) != text {
		return 0, pki.Refuse(pki.RuleRequest, "send the id that StartRotation returned", "%.64q is not the ID of a rotation", text)
	}
	return id, nil
}

// GetRotation serves the RPC of that name in brevet.v1.RotationService.
func (s *Rotations) GetRotation(ctx context.Context, req *brevetv1.GetRotationRequest) (*brevetv1.GetRotationResponse, error) {
	id, err := rotationIn(req.GetId())
	if err != nil {
		return nil, err
	}
	r, p, err := s.Manager.Rotation(ctx, id)
	if err != nil {
		return nil, err
	}
	return &brevetv1.GetRotationResponse{Rotation: rotationOut(r, &p)}, nil
}

// ListRotations serves the RPC of that name in brevet.v1.RotationService.
func (s *Rotations) ListRotations(ctx context.Context, req *brevetv1.ListRotationsRequest) (*brevetv1.ListRotationsResponse, error) {
	size, err := pageSize(req.GetPageSize())
	if err != nil {
		return nil, err
	}
	after, err := pageAfter(req, bulkKey)
	if err != nil {
		return nil, err
	}
	list, next, err := s.Manager.Rotations(ctx, after, size)
	if err != nil {
		return nil, err
	}
	resp := &brevetv1.ListRotationsResponse{}
	for _, r := range list {
		resp.Rotations = append(resp.Rotations, rotationOut(r, nil))
	}
	if next != 0 {
		resp.NextPageToken = pageToken(req, binary.BigEndian.AppendUint64(nil, uint64(next))) //nolint:gosec // IDs count up from 1
	}
	return resp, nil
}

// StopRotation serves the RPC of that name in brevet.v1.RotationService.
func (s *Rotations) StopRotation(ctx context.Context, req *brevetv1.StopRotationRequest) (*brevetv1.StopRotationResponse, error) {
	id, err := rotationIn(req.GetId())
	if err != nil {
		return nil, err
	}
	by, err := actorOf(ctx, req)
	if err != nil {
		return nil, err
	}
	r, err := s.Manager.Stop(ctx, id, by)
	if err != nil {
		return nil, err
	}
	return &brevetv1.StopRotationResponse{Rotation: rotationOut(r, nil)}, nil
}

// rotationStates maps the states of rotations in protobuf to those of package rotation.
var rotationStates = map[brevetv1.RotationState]rotation.State{
	brevetv1.RotationState_ROTATION_STATE_OPEN:      rotation.Open,
	brevetv1.RotationState_ROTATION_STATE_COMPLETED: rotation.Completed,
	brevetv1.RotationState_ROTATION_STATE_STOPPED:   rotation.Stopped,
}

// rotationOut converts a rotation. If p is nil, only a rotation that has ended has a progress.
func rotationOut(r rotation.Rotation, p *rotation.Progress) *brevetv1.Rotation {
	out := &brevetv1.Rotation{
		Selection: selectionOut(r.Selection), Over: durationpb.New(r.Over), Comment: r.Comment, StartedBy: r.Actor.String(),
		StartTime: timeOut(r.At), EndTime: timeOut(r.EndedAt), Affected: int64(r.Affected),
	}
	if r.ID != 0 { // after a dry run, there is no rotation, and the ID is 0
		out.Id, out.State = strconv.FormatInt(r.ID, 10), wireOf(rotationStates, r.State())
	}
	if p == nil && r.State() != rotation.Open {
		p = &r.Final
	}
	if p != nil {
		out.Progress = &brevetv1.RotationProgress{Renewed: int64(p.Renewed), Gone: int64(r.Gone(*p)), Due: int64(p.Due)}
	}
	return out
}
