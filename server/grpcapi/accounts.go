package grpcapi

import (
	"context"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/brevet-pki/brevet/pki"
	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
	"github.com/brevet-pki/brevet/ra"
	"github.com/brevet-pki/brevet/ra/acme"
)

// Accounts serves brevet.v1.ACMEService.
type Accounts struct {
	brevetv1.UnimplementedACMEServiceServer
	Registrar *ra.Registrar
	Authority *acme.Authority
}

// externalKeyStates maps the states of external keys to those on the wire.
var externalKeyStates = map[acme.ExternalKeyState]brevetv1.ExternalKeyState{
	acme.ExternalKeyOpen:    brevetv1.ExternalKeyState_EXTERNAL_KEY_STATE_OPEN,
	acme.ExternalKeyUsed:    brevetv1.ExternalKeyState_EXTERNAL_KEY_STATE_USED,
	acme.ExternalKeyExpired: brevetv1.ExternalKeyState_EXTERNAL_KEY_STATE_EXPIRED,
	acme.ExternalKeyRevoked: brevetv1.ExternalKeyState_EXTERNAL_KEY_STATE_REVOKED,
}

// CreateExternalKey serves the RPC of that name in brevet.v1.ACMEService.
func (s *Accounts) CreateExternalKey(
	ctx context.Context, req *brevetv1.CreateExternalKeyRequest,
) (*brevetv1.CreateExternalKeyResponse, error) {
	n := acme.NewExternalKey{Rule: req.GetRule(), By: callerOf(ctx).Actor()}
	var err error
	if req.GetIdentity() != "" {
		if n.Identity, err = s.Registrar.ParseID(req.GetIdentity()); err != nil {
			return nil, err
		}
	}
	if n.Lifetime, err = durationOf(req.GetLifetime(), "lifetime"); err != nil {
		return nil, err
	}
	k, hmacKey, err := s.Authority.CreateExternalKey(ctx, n)
	if err != nil {
		return nil, err
	}
	return &brevetv1.CreateExternalKeyResponse{Key: s.keyOut(k), HmacKey: hmacKey}, nil
}

// ListExternalKeys serves the RPC of that name in brevet.v1.ACMEService.
func (s *Accounts) ListExternalKeys(
	ctx context.Context, req *brevetv1.ListExternalKeysRequest,
) (*brevetv1.ListExternalKeysResponse, error) {
	size, err := pageSize(req.GetPageSize())
	if err != nil {
		return nil, err
	}
	after, err := pageAfter(req, acmeIDAfter)
	if err != nil {
		return nil, err
	}
	list, next, err := s.Authority.ExternalKeys(ctx, after, size)
	if err != nil {
		return nil, err
	}
	resp := &brevetv1.ListExternalKeysResponse{}
	for _, k := range list {
		resp.Keys = append(resp.Keys, s.keyOut(k))
	}
	if !next.IsZero() {
		resp.NextPageToken = pageToken(req, next[:])
	}
	return resp, nil
}

// RevokeExternalKey serves the RPC of that name in brevet.v1.ACMEService.
func (s *Accounts) RevokeExternalKey(
	ctx context.Context, req *brevetv1.RevokeExternalKeyRequest,
) (*brevetv1.RevokeExternalKeyResponse, error) {
	id, ok := acme.ParseID(req.GetId())
	if !ok {
		return nil, pki.Refuse(pki.RuleRequest, "give the 22 characters that brevet acme eab list prints", "%.40q is not the ID of an external key", req.GetId())
	}
	if err := pki.CheckText("the comment", req.GetComment()); err != nil {
		return nil, err
	}
	r := acme.ExternalKeyRevocation{ID: id, By: callerOf(ctx).Actor(), Comment: req.GetComment()}
	k, revoked, err := s.Authority.RevokeExternalKey(ctx, r, req.GetRevokeCertificates())
	if err != nil {
		return nil, err
	}
	return &brevetv1.RevokeExternalKeyResponse{Key: s.keyOut(k), Revoked: int64(revoked)}, nil
}

// acmeIDAfter decodes the ID in a page token.
func acmeIDAfter(key []byte) (acme.ID, error) {
	if len(key) != len(acme.ID{}) {
		return acme.ID{}, errPageToken
	}
	return acme.ID(key), nil
}

// ListAccounts serves the RPC of that name in brevet.v1.ACMEService.
func (s *Accounts) ListAccounts(ctx context.Context, req *brevetv1.ListAccountsRequest) (*brevetv1.ListAccountsResponse, error) {
	size, err := pageSize(req.GetPageSize())
	if err != nil {
		return nil, err
	}
	after, err := pageAfter(req, acmeIDAfter)
	if err != nil {
		return nil, err
	}
	list, next, err := s.Authority.Accounts(ctx, after, size)
	if err != nil {
		return nil, err
	}
	resp := &brevetv1.ListAccountsResponse{}
	for i := range list {
		resp.Accounts = append(resp.Accounts, accountOut(&list[i]))
	}
	if !next.IsZero() {
		resp.NextPageToken = pageToken(req, next[:])
	}
	return resp, nil
}

// RevokeAccount serves the RPC of that name in brevet.v1.ACMEService.
func (s *Accounts) RevokeAccount(ctx context.Context, req *brevetv1.RevokeAccountRequest) (*brevetv1.RevokeAccountResponse, error) {
	id, ok := acme.ParseID(req.GetId())
	if !ok {
		return nil, pki.Refuse(pki.RuleRequest, "give the 22 characters that brevet acme account list prints", "%.40q is not the ID of an account", req.GetId())
	}
	if err := pki.CheckText("the comment", req.GetComment()); err != nil {
		return nil, err
	}
	r := acme.AccountRevocation{ID: id, By: callerOf(ctx).Actor(), Comment: req.GetComment()}
	a, revoked, err := s.Authority.RevokeAccount(ctx, r, req.GetRevokeCertificates())
	if err != nil {
		return nil, err
	}
	return &brevetv1.RevokeAccountResponse{Account: accountOut(&acme.ListedAccount{Account: a}), Revoked: int64(revoked)}, nil
}

func accountOut(a *acme.ListedAccount) *brevetv1.ACMEAccount {
	out := &brevetv1.ACMEAccount{
		Id: a.ID.String(), Status: string(a.Status), Contacts: a.Contact, CreateTime: timestamppb.New(a.CreatedAt),
		UnexpiredCertificates: int64(a.Unexpired),
	}
	if !a.ExternalKey.IsZero() {
		out.ExternalKeyId = a.ExternalKey.String()
	}
	return out
}

func (s *Accounts) keyOut(k acme.ExternalKey) *brevetv1.ExternalKey {
	out := &brevetv1.ExternalKey{
		Id: k.ID.String(), Rule: k.Rule, State: externalKeyStates[k.State(s.Authority.Clock())], AccountStatus: string(k.Status),
		CreatedBy: k.CreatedBy.String(), CreateTime: timestamppb.New(k.CreatedAt), ExpireTime: timestamppb.New(k.ExpiresAt),
		RevokedBecause: k.RevokedBecause,
	}
	if !k.Identity.IsZero() {
		out.Identity = k.Identity.String()
		if k.IdentityState != 0 {
			out.IdentityState = k.IdentityState.String()
		}
	}
	if !k.Account.IsZero() {
		out.AccountId = k.Account.String()
	}
	return out
}
