package acme

import (
	"context"
	"net/http"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra/acme"
	"github.com/brevet-pki/brevet/server/acme/jws"
	"github.com/brevet-pki/brevet/server/frontdoor"
)

// revoke serves revokeCert (RFC 8555 §7.6). The key of an account or the key of the certificate signs the request.
func (d *Door) revoke(ctx context.Context, r *request) (frontdoor.Response, error) {
	var payload struct {
		Certificate *string `json:"certificate"`
		Reason      int     `json:"reason"`
	}
	if err := r.decode(&payload); err != nil {
		return frontdoor.Response{}, err
	}
	const hint = "send the certificate in base64url of DER"
	if payload.Certificate == nil {
		return frontdoor.Response{}, pki.Refuse(pki.RuleRequest, hint, "the request has no certificate")
	}
	der, err := jws.Decode(*payload.Certificate)
	if err != nil {
		return frontdoor.Response{}, pki.Refuse(pki.RuleRequest, hint, "the certificate is not base64url without padding")
	}
	revocation := acme.RevokeRequest{Account: r.account.ID, Certificate: der, Reason: payload.Reason}
	if revocation.Account.IsZero() {
		revocation.Key = r.key.SPKI
	}
	if err := d.config.Certificates.Revoke(ctx, revocation); err != nil {
		return frontdoor.Response{}, err
	}
	return frontdoor.Response{Status: http.StatusOK, Header: d.newHeader()}, nil
}
