package grpcapi

import (
	"context"
	"net/netip"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/brevet-pki/brevet/pki"
	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
	"github.com/brevet-pki/brevet/ra"
)

// Tokens serves brevet.v1.TokenService.
type Tokens struct {
	brevetv1.UnimplementedTokenServiceServer
	Registrar *ra.Registrar
	// Text returns the text of an enrollment token: the secret, and the data for the agent's first connection.
	Text func(pki.TokenSecret) string
}

// CreateToken serves the RPC of that name in brevet.v1.TokenService.
func (s *Tokens) CreateToken(ctx context.Context, req *brevetv1.CreateTokenRequest) (*brevetv1.CreateTokenResponse, error) {
	n, err := s.newTokenOf(ctx, req)
	if err != nil {
		return nil, err
	}
	by, err := actorOf(ctx, req)
	if err != nil {
		return nil, err
	}
	secret, t, err := s.Registrar.CreateToken(ctx, n, by)
	if err != nil {
		return nil, err
	}
	return &brevetv1.CreateTokenResponse{Token: s.Text(secret), TokenId: t.ID.String(), ExpireTime: timestamppb.New(t.ExpiresAt)}, nil
}

// newTokenOf converts a request. It refuses a request that does not have exactly one of identity and pattern.
func (s *Tokens) newTokenOf(ctx context.Context, req *brevetv1.CreateTokenRequest) (ra.NewToken, error) {
	n := ra.NewToken{Pattern: req.GetPattern(), Replace: req.GetReplace()}
	var err error
	switch {
	case (req.GetPattern() == "") != (req.GetSpec() == nil):
		return n, pki.Refuse(pki.RuleRequest, "set pattern and spec, or identity alone", "one of pattern and spec is missing")
	case req.GetPattern() != "" && req.GetIdentity() != "":
		return n, pki.Refuse(pki.RuleRequest, "set pattern and spec, or identity alone", "the request has an identity and a pattern")
	case req.GetPattern() != "":
		n.Spec, err = newIdentityOf("", req.GetSpec())
	default:
		n.Identity, err = s.enrollable(ctx, req.GetIdentity())
	}
	if err != nil {
		return n, err
	}
	if n.Lifetime, err = durationOf(req.GetLifetime(), "lifetime"); err != nil {
		return n, err
	}
	if n.Networks, err = networksIn(req.GetNetworks()); err != nil {
		return n, err
	}
	if len(req.GetKeyHash()) > 0 {
		n.Key, err = keyHashIn(req.GetKeyHash())
	}
	return n, err
}

// enrollable parses the name of an identity, and refuses an identity that tokens cannot enroll.
func (s *Tokens) enrollable(ctx context.Context, text string) (pki.SPIFFEID, error) {
	id, err := s.Registrar.ParseID(text)
	if err != nil {
		return id, err
	}
	have, err := s.Registrar.Store().Identity(ctx, id)
	if err != nil {
		return id, err
	}
	if have.Kind == pki.Server || have.Kind == pki.VA {
		return id, pki.Refuse(pki.RuleReserved, "make tokens for devices, workloads and operators", "%s enrolls itself", id)
	}
	return id, nil
}

// networksIn parses networks. Package ra limits their number.
func networksIn(texts []string) ([]netip.Prefix, error) {
	var networks []netip.Prefix
	for _, text := range texts {
		n, err := netip.ParsePrefix(text)
		if err != nil {
			return nil, pki.Refuse(pki.RuleRequest, "use networks such as 10.2.0.0/16 or 2001:db8::/32", "%.80q is not a network", text)
		}
		networks = append(networks, n)
	}
	return networks, nil
}

// ListTokens serves the RPC of that name in brevet.v1.TokenService.
func (s *Tokens) ListTokens(ctx context.Context, req *brevetv1.ListTokensRequest) (*brevetv1.ListTokensResponse, error) {
	size, err := pageSize(req.GetPageSize())
	if err != nil {
		return nil, err
	}
	f, err := s.filterIn(ctx, req)
	if err != nil {
		return nil, err
	}
	after, err := pageAfter(req, tokenPositionIn)
	if err != nil {
		return nil, err
	}
	list, next, err := s.Registrar.Tokens(ctx, f, after, size)
	if err != nil {
		return nil, err
	}
	resp := &brevetv1.ListTokensResponse{}
	for _, t := range list {
		resp.Tokens = append(resp.Tokens, tokenOut(t))
	}
	if !next.IsZero() {
		resp.NextPageToken = pageToken(req, append(timeKey(next.CreatedAt), next.ID.Bytes()...))
	}
	return resp, nil
}

// tokenPositionIn decodes the sort key in a page token of ListTokens.
func tokenPositionIn(key []byte) (p ra.TokenPosition, err error) {
	if p.CreatedAt, key, err = cutTime(key); err == nil {
		p.ID, err = pki.TokenIDFromBytes(key)
	}
	return p, err
}

// tokenStates maps the states of tokens in protobuf to those of package ra.
var tokenStates = map[brevetv1.TokenState]ra.TokenState{
	brevetv1.TokenState_TOKEN_STATE_OPEN:    ra.TokenOpen,
	brevetv1.TokenState_TOKEN_STATE_SPENT:   ra.TokenSpent,
	brevetv1.TokenState_TOKEN_STATE_REVOKED: ra.TokenRevoked,
	brevetv1.TokenState_TOKEN_STATE_EXPIRED: ra.TokenExpired,
	brevetv1.TokenState_TOKEN_STATE_STALE:   ra.TokenStale,
}

// filterIn converts the filter of a request.
func (s *Tokens) filterIn(ctx context.Context, req *brevetv1.ListTokensRequest) (ra.TokenFilter, error) {
	var f ra.TokenFilter
	var err error
	if req.GetCreatedBy() != "" {
		if f.CreatedBy, err = s.known(ctx, req.GetCreatedBy()); err != nil {
			return f, err
		}
	}
	if req.GetIdentity() != "" {
		if f.Identity, err = s.known(ctx, req.GetIdentity()); err != nil {
			return f, err
		}
	}
	if f.States, err = statesIn(tokenStates, req.GetStates()); err != nil {
		return f, err
	}
	if f.CreatedFrom, err = timeIn(req.GetCreateStartTime(), "create_start_time"); err != nil {
		return f, err
	}
	f.CreatedUntil, err = timeIn(req.GetCreateEndTime(), "create_end_time")
	return f, err
}

// known parses the name of an identity, and refuses an identity that is not on record.
func (s *Tokens) known(ctx context.Context, text string) (pki.SPIFFEID, error) {
	id, err := s.Registrar.ParseID(text)
	if err != nil {
		return id, err
	}
	_, err = s.Registrar.Store().Identity(ctx, id)
	return id, err
}

func tokenOut(t ra.ListedToken) *brevetv1.EnrollmentToken {
	out := &brevetv1.EnrollmentToken{
		Id: t.ID.String(), Identity: t.Identity.String(), Profile: t.Profile, Replace: t.Replace, State: wireOf(tokenStates, t.State),
		CreatedBy: t.CreatedBy.String(), CreateTime: timestamppb.New(t.CreatedAt), ExpireTime: timestamppb.New(t.ExpiresAt),
		RevocationCause: t.RevokedBecause, Pattern: t.Pattern, Kind: wireOf(kinds, t.Kind), Labels: t.Labels,
	}
	for _, n := range t.Networks {
		out.Networks = append(out.Networks, n.String())
	}
	if !t.RequiredKey.IsZero() {
		out.KeyHash = t.RequiredKey.Bytes()
	}
	if !t.CreatorCertificate.IsZero() {
		out.CreatorSerial = t.CreatorCertificate.Serial.Bytes()
	}
	return out
}

// RevokeToken serves the RPC of that name in brevet.v1.TokenService.
func (s *Tokens) RevokeToken(ctx context.Context, req *brevetv1.RevokeTokenRequest) (*brevetv1.RevokeTokenResponse, error) {
	by, err := actorOf(ctx, req)
	if err != nil {
		return nil, err
	}
	v := ra.TokenRevocation{ID: req.GetTokenId(), By: by, Comment: req.GetComment()}
	if req.GetCreatedBy() != "" {
		if v.CreatedBy, err = s.Registrar.ParseID(req.GetCreatedBy()); err != nil {
			return nil, err
		}
	}
	n, err := s.Registrar.RevokeTokens(ctx, v)
	if err != nil {
		return nil, err
	}
	return &brevetv1.RevokeTokenResponse{Revoked: int64(n)}, nil
}
