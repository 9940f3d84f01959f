package acme

import (
	"context"
	"net/http"

	"github.com/brevet-pki/brevet/server/frontdoor"
)

// directory serves the directory (RFC 8555 §7.1.1).
func (d *Door) directory(context.Context, *frontdoor.Request) (frontdoor.Response, error) {
	type meta struct {
		ExternalAccountRequired bool              `json:"externalAccountRequired"`
		Profiles                map[string]string `json:"profiles,omitempty"` // draft-ietf-acme-profiles
	}
	return d.object(http.StatusOK, struct {
		NewNonce    string `json:"newNonce"`
		NewAccount  string `json:"newAccount"`
		NewOrder    string `json:"newOrder"`
		RevokeCert  string `json:"revokeCert"`
		KeyChange   string `json:"keyChange"`
		RenewalInfo string `json:"renewalInfo"` // RFC 9773 §3
		Meta        meta   `json:"meta"`
	}{
		d.url(pathNewNonce), d.url(pathNewAccount), d.url(pathNewOrder), d.url(pathRevoke), d.url(pathKeyChange),
		d.url(pathRenewalInfo[:len(pathRenewalInfo)-1]), // clients add the slash
		meta{d.config.Terms.RequiresBinding(), d.config.Terms.Profiles()},
	})
}

// signedDirectory serves the directory by POST-as-GET (RFC 8555 §6.3).
func (d *Door) signedDirectory(ctx context.Context, r *request) (frontdoor.Response, error) {
	if err := r.mustRead(); err != nil {
		return frontdoor.Response{}, err
	}
	return d.directory(ctx, r.Request)
}

// newNonce serves newNonce (RFC 8555 §7.2).
func (d *Door) newNonce(ctx context.Context, r *frontdoor.Request) (frontdoor.Response, error) {
	resp := frontdoor.Response{Status: http.StatusOK, Header: d.newHeader()}
	if r.Method != http.MethodHead {
		resp.Status = http.StatusNoContent
	}
	return d.withNonce(ctx, resp)
}

// signedNonce serves newNonce by POST-as-GET (RFC 8555 §6.3).
func (d *Door) signedNonce(_ context.Context, r *request) (frontdoor.Response, error) {
	return frontdoor.Response{Status: http.StatusNoContent, Header: d.newHeader()}, r.mustRead()
}
