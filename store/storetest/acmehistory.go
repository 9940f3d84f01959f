package storetest

import (
	"context"
	"time"

	"pgregory.net/rapid"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra/acme"
)

// account makes a random change of external keys and accounts of ACME.
func (h *history) account(t *rapid.T) {
	ctx := context.Background()
	switch rapid.SampledFrom([]string{"key", "revoke key", "create", "change"}).Draw(t, "account") {
	case "key":
		k := acme.ExternalKey{ID: h.w.acmeID(), Rule: "web", CreatedBy: operator, CreatedAt: h.w.now, ExpiresAt: h.w.now.Add(time.Hour)}
		if rapid.Bool().Draw(t, "named") {
			k.Identity, k.Rule = h.anyIdentity(t), ""
		}
		if len(h.records) > 0 && rapid.Bool().Draw(t, "by a caller") {
			r := rapid.SampledFrom(h.records).Draw(t, "creator")
			k.CreatedBy = pki.ActorCaller(r.Identity, r.Ref)
		}
		_, err := h.w.ACME.CreateExternalKey(ctx, k, []byte("sealed"))
		h.allowRefusal(t, err)
		if err == nil {
			h.externalKeys = append(h.externalKeys, k.ID)
		}
	case "revoke key":
		if len(h.externalKeys) > 0 {
			id := rapid.SampledFrom(h.externalKeys).Draw(t, "external key")
			_, err := h.w.ACME.RevokeExternalKey(ctx, acme.ExternalKeyRevocation{ID: id, By: operator, Comment: "lost", At: h.w.now})
			h.allowRefusal(t, err)
		}
	case "create":
		a := h.w.newAccount()
		if len(h.externalKeys) > 0 {
			a.ExternalKey = rapid.SampledFrom(h.externalKeys).Draw(t, "external key")
		}
		_, created, err := h.w.ACME.CreateAccount(ctx, a)
		h.allowRefusal(t, err)
		if created {
			h.accounts = append(h.accounts, a.ID)
		}
	default:
		if len(h.accounts) > 0 {
			h.changeAccount(t, rapid.SampledFrom(h.accounts).Draw(t, "which account"))
		}
	}
}

// changeAccount changes an account, or issues a certificate for an order of it.
func (h *history) changeAccount(t *rapid.T, id acme.ID) {
	ctx := context.Background()
	a, err := h.w.ACME.Account(ctx, id)
	must(t, err)
	next := h.w.newAccount()
	switch rapid.SampledFrom([]string{"key", "contact", "deactivate", "revoke", "order"}).Draw(t, "change of the account") {
	case "key":
		_, err = h.w.ACME.ChangeAccount(ctx, acme.AccountChange{
			ID: id, NewKey: next.Key, NewThumbprint: next.Thumbprint, OldThumbprint: a.Thumbprint, At: h.w.now,
		})
	case "contact":
		_, err = h.w.ACME.ChangeAccount(ctx, acme.AccountChange{ID: id, SetContact: true, Contact: next.Contact, At: h.w.now})
	case "revoke":
		_, err = h.w.ACME.RevokeAccount(ctx, acme.AccountRevocation{ID: id, By: operator, Comment: "stolen", At: h.w.now})
	case "deactivate":
		_, err = h.w.ACME.ChangeAccount(ctx, acme.AccountChange{ID: id, Deactivate: true, At: h.w.now})
	default:
		if a.Status == acme.AccountValid {
			o := h.w.readyOrder(t, id, "a.example")
			h.add(t, h.w.orderRecord(t, h.w.readIdentity(t, h.anyIdentity(t)), o))
		}
	}
	h.allowRefusal(t, err)
}
