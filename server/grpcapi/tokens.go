package grpcapi

import (
	"context"
	"strconv"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/brevet-pki/brevet/pki"
	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
	"github.com/brevet-pki/brevet/ra"
)

// ListTokens serves the RPC of that name in brevet.v1.IdentityService.
func (s *Identities) ListTokens(ctx context.Context, req *brevetv1.ListTokensRequest) (*brevetv1.ListTokensResponse, error) {
	size, err := pageSize(req.GetPageSize())
	if err != nil {
		return nil, err
	}
	sel, err := s.tokenSelectionIn(ctx, req)
	if err != nil {
		return nil, err
	}
	from, err := cursorIn(req.GetPageToken())
	if err != nil {
		return nil, err
	}
	list, next, err := s.Registrar.Tokens(ctx, sel, from, size)
	if err != nil {
		return nil, err
	}
	resp := &brevetv1.ListTokensResponse{}
	for _, t := range list {
		resp.Tokens = append(resp.Tokens, tokenOut(t))
	}
	if next != 0 {
		resp.NextPageToken = strconv.FormatInt(int64(next), 10)
	}
	return resp, nil
}

func (s *Identities) tokenSelectionIn(ctx context.Context, req *brevetv1.ListTokensRequest) (ra.TokenSelection, error) {
	var sel ra.TokenSelection
	var err error
	if req.GetMadeBy() != "" {
		if sel.CreatedBy, err = s.known(ctx, req.GetMadeBy()); err != nil {
			return sel, err
		}
	}
	if req.GetIdentity() != "" {
		if sel.Identity, err = s.known(ctx, req.GetIdentity()); err != nil {
			return sel, err
		}
	}
	if req.GetState() != "" {
		sel.State, err = ra.ParseTokenState(req.GetState())
	}
	return sel, err
}

// known reads the name of an identity that is on record.
func (s *Identities) known(ctx context.Context, text string) (pki.SPIFFEID, error) {
	id, err := s.Registrar.ParseID(text)
	if err != nil {
		return id, err
	}
	_, err = s.Registrar.Records().Identity(ctx, id)
	return id, err
}

func tokenOut(t ra.ListedToken) *brevetv1.EnrollmentToken {
	out := &brevetv1.EnrollmentToken{
		Id: t.ID.String(), Identity: t.Identity.String(), Profile: t.Profile, Replace: t.Replace, State: string(t.State), MadeBy: t.CreatedBy.String(),
		CreatedAt: timestamppb.New(t.CreatedAt), ExpiresAt: timestamppb.New(t.ExpiresAt), RevokedBecause: t.RevokedBecause,
	}
	if !t.CreatorCertificate.IsZero() {
		out.MadeWith = t.CreatorCertificate.Serial.String()
	}
	return out
}

// RevokeToken serves the RPC of that name in brevet.v1.IdentityService.
func (s *Identities) RevokeToken(ctx context.Context, req *brevetv1.RevokeTokenRequest) (*brevetv1.RevokeTokenResponse, error) {
	v := ra.TokenRevocation{ID: req.GetTokenId(), By: callerOf(ctx).Actor(), Why: req.GetComment()}
	if req.GetMadeBy() != "" {
		var err error
		if v.CreatedBy, err = s.Registrar.ParseID(req.GetMadeBy()); err != nil {
			return nil, err
		}
	}
	n, err := s.Registrar.RevokeTokens(ctx, v)
	if err != nil {
		return nil, err
	}
	return &brevetv1.RevokeTokenResponse{Revoked: int32(n)}, nil //nolint:gosec // ra.MaxTokensCounted at most
}
