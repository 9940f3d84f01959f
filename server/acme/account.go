package acme

import (
	"context"
	"errors"
	"net/http"

	"github.com/go-jose/go-jose/v4/json"

	"github.com/brevet-pki/brevet/fair"
	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra/acme"
	"github.com/brevet-pki/brevet/server/acme/jws"
	"github.com/brevet-pki/brevet/server/frontdoor"
)

func (d *Door) accountURL(id acme.ID) string { return d.url(pathAccount + id.String()) }

// accountOut returns the response with an account (RFC 8555 §7.1.2). It has no list of orders.
func (d *Door) accountOut(status int, a acme.Account) (frontdoor.Response, error) {
	resp, err := d.object(status, struct {
		Status  acme.AccountStatus `json:"status"`
		Contact []string           `json:"contact,omitempty"`
	}{a.Status, a.Contact})
	if err == nil {
		resp.Header.Set("Location", d.accountURL(a.ID))
	}
	return resp, err
}

// newAccount serves newAccount (RFC 8555 §7.3).
func (d *Door) newAccount(ctx context.Context, r *request) (frontdoor.Response, error) {
	var payload struct {
		Contact      []string        `json:"contact"`
		OnlyExisting bool            `json:"onlyReturnExisting"`
		Binding      json.RawMessage `json:"externalAccountBinding"`
	}
	if err := r.decode(&payload); err != nil {
		return frontdoor.Response{}, err
	}
	n := acme.NewAccount{
		Key: r.key.SPKI, Thumbprint: r.key.Thumbprint, Contact: payload.Contact, OnlyExisting: payload.OnlyExisting, From: r.From,
	}
	if payload.Binding != nil {
		b, err := jws.ParseBinding(payload.Binding, r.url, r.key)
		if err != nil {
			return frontdoor.Response{}, err
		}
		n.Binding = &acme.Binding{KeyID: b.KeyID, Verify: b.Verify}
	}
	if err := d.countAccount(ctx, n); err != nil {
		return frontdoor.Response{}, err
	}
	a, isNew, err := d.config.Accounts.NewAccount(ctx, n)
	if err != nil {
		return frontdoor.Response{}, err
	}
	status := http.StatusOK
	if isNew {
		status = http.StatusCreated
	}
	return d.accountOut(status, a)
}

// hourlyEach is how often an hour an address may create an account without an external key, and an account may change its
// key. The log has an entry about each, forever.
const hourlyEach = 10

// countAccount refuses to create an account without an external key if the client's address has created too many.
func (d *Door) countAccount(ctx context.Context, n acme.NewAccount) error {
	if n.Binding != nil || n.OnlyExisting || d.config.Terms.RequiresBinding() {
		return nil
	}
	_, err := d.config.Accounts.AccountByKey(ctx, n.Thumbprint)
	if refusal, ok := pki.AsRefusal(err); !ok || refusal.Rule != pki.RuleACMEAccount {
		return err
	}
	return d.newAccounts.Allow(fair.Host(n.From), d.config.Clock())
}

// account serves the account (RFC 8555 §7.3.2 and §7.3.6).
func (d *Door) account(ctx context.Context, r *request) (frontdoor.Response, error) {
	if r.PathValue("account") != r.account.ID.String() {
		return frontdoor.Response{}, pki.Refuse(pki.RuleACMEAccount, "send the request to the URL of the account that signs it",
			"the account that signs the request has no such resource")
	}
	a := r.account
	if r.isRead() {
		return d.accountOut(http.StatusOK, a)
	}
	var payload struct {
		Status  *acme.AccountStatus `json:"status"`
		Contact *[]string           `json:"contact"`
	}
	err := r.decode(&payload)
	switch {
	case err != nil:
	case payload.Status != nil && *payload.Status == acme.AccountDeactivated:
		a, err = d.config.AccountChanges.Deactivate(ctx, a.ID)
	case payload.Status != nil && *payload.Status != a.Status:
		err = pki.Refuse(pki.RuleRequest, "send the status deactivated, or none", "a client cannot set this status of an account")
	case payload.Contact != nil:
		a, err = d.config.AccountChanges.SetContact(ctx, a.ID, *payload.Contact)
	}
	if err != nil {
		return frontdoor.Response{}, err
	}
	return d.accountOut(http.StatusOK, a)
}

// keyChange serves keyChange (RFC 8555 §7.3.5).
func (d *Door) keyChange(ctx context.Context, r *request) (frontdoor.Response, error) {
	key, inner, err := jws.ParseChange(r.payload, r.url)
	if err != nil {
		return frontdoor.Response{}, err
	}
	var payload struct {
		Account string          `json:"account"`
		OldKey  json.RawMessage `json:"oldKey"`
	}
	if err := jws.Unmarshal(inner, &payload); err != nil || payload.OldKey == nil {
		return frontdoor.Response{}, pki.Refuse(pki.RuleRequest, "send a JSON object with account and oldKey",
			"the payload of the inner JWS is not a JSON object with account and oldKey")
	}
	old, err := jws.ParseKey(payload.OldKey)
	if err != nil {
		return frontdoor.Response{}, err
	}
	if payload.Account != d.accountURL(r.account.ID) || !old.Equal(r.key) {
		return frontdoor.Response{}, pki.Refuse(pki.RuleRequest, "name the account that signs the request, and its current key",
			"the inner JWS is for another account or for another current key than the outer JWS")
	}
	if key.Equal(r.key) {
		return frontdoor.Response{}, pki.Refuse(pki.RuleRequest, "change to a new key", "the new key is the current key of the account")
	}
	if err := d.keyChanges.Allow(r.account.ID, d.config.Clock()); err != nil {
		return frontdoor.Response{}, err
	}
	a, err := d.config.AccountChanges.ChangeKey(ctx, r.account.ID, r.account.Thumbprint, key.SPKI, key.Thumbprint)
	if refusal, ok := pki.AsRefusal(err); ok && refusal.Rule == pki.RuleACMEAccountKey {
		other, errOther := d.config.Accounts.AccountByKey(ctx, key.Thumbprint)
		if errOther != nil {
			return frontdoor.Response{}, errors.Join(err, errOther)
		}
		return frontdoor.Response{}, conflict{refusal, d.accountURL(other.ID)}
	}
	if err != nil {
		return frontdoor.Response{}, err
	}
	return d.accountOut(http.StatusOK, a)
}
